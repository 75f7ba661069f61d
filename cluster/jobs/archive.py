"""The code that this process runs, as a zip for a Ray cluster that has the dependencies but not the project.

It is not a wheel: pip builds wheels from sources, which an installed package no longer has. The zip contains the same
packages and the metadata for versions and entry points. It is unpacked on PYTHONPATH.
"""

import importlib.metadata
import importlib.util
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from index.base.errors import RequestError

_NAME = "fsl-dist"
_PACKAGES = ("cluster", "tune", "fsl_dist", "index")
# The package data of pyproject.toml: a checkout has other files between its modules.
_SUFFIXES = (".py", ".yaml", ".json", ".html", ".css", ".js", ".md", ".typed")
# The earliest time that a zip can hold: equal code gives equal bytes, which are sent to a cluster once.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_archive(path: Path) -> None:
    """Write the packages that this process runs to the zip `path`: installed, editable or on PYTHONPATH."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(_files()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)


def check_wheel(path: Path) -> None:
    """Raise RequestError unless `path` is a wheel of this project."""
    if not path.is_file():
        raise RequestError(f"--wheel {path} is not a file (pip wheel --no-deps . makes one)")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise RequestError(f"--wheel {path} is not a wheel: {error}") from None
    missing = [package for package in _PACKAGES if f"{package}/__init__.py" not in names]
    if missing:
        raise RequestError(f"--wheel {path} is not a wheel of {_NAME}: {', '.join(missing)} missing")


def _files() -> Iterator[tuple[str, bytes]]:
    for package in _PACKAGES:
        folder = _folder_of(package)
        # In a checkout, cluster/k8s is a link to k8s/.
        for root, _, names in os.walk(folder, followlinks=True):
            for path in (Path(root, name) for name in names if name.endswith(_SUFFIXES)):
                yield f"{package}/{path.relative_to(folder).as_posix()}", path.read_bytes()
    found = importlib.metadata.distribution(_NAME)
    for name in ("METADATA", "entry_points.txt"):
        if text := found.read_text(name):
            yield f"fsl_dist-{found.version}.dist-info/{name}", text.encode()


def _folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
