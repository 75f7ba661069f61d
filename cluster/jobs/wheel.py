"""The project as a wheel: a zip of the code that this process runs, for a cluster that has the dependencies and not the project."""

import importlib.metadata
import importlib.util
import zipfile
from collections.abc import Iterator
from pathlib import Path

from index.base.errors import RequestError

_NAME = "fsl-dist"
_ROOMS = ("cluster", "tune", "fsl_dist", "index")
# The first moment a zip can hold: the same code is the same bytes, and is sent to a cluster once.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_wheel(path: Path) -> None:
    """Write a wheel of the code that this process runs, installed, editable or on PYTHONPATH: packages and metadata."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(_files()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)


def check_wheel(path: Path) -> None:
    """Raise RequestError unless `path` is a wheel of this project."""
    if not path.is_file():
        raise RequestError(f"--wheel {path} is no file (pip wheel --no-deps . makes one)")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise RequestError(f"--wheel {path} is no wheel: {error}") from None
    missing = [room for room in _ROOMS if f"{room}/__init__.py" not in names]
    if missing:
        raise RequestError(f"--wheel {path} is no wheel of {_NAME}: it has no {', '.join(missing)}")


def _files() -> Iterator[tuple[str, bytes]]:
    for room in _ROOMS:
        folder = _folder_of(room)
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                yield f"{room}/{path.relative_to(folder).as_posix()}", path.read_bytes()
    found = importlib.metadata.distribution(_NAME)
    folder_name = f"fsl_dist-{found.version}.dist-info"
    for name in ("METADATA", "entry_points.txt"):
        if text := found.read_text(name):
            yield f"{folder_name}/{name}", text.encode()
    yield (
        f"{folder_name}/WHEEL",
        b"Wheel-Version: 1.0\nGenerator: fsl-dist\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    )


def _folder_of(room: str) -> Path:
    spec = importlib.util.find_spec(room)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
