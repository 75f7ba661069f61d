"""Very many very small images for the episode benchmark: as a data set, as loose files, and as one tar per class."""

import io
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fsl_dist.data.catalogue import CatalogueMetadata, ShardFile, write_catalogue

SIDE = 16
"""pixels of an image's side, grey"""

_BLOCK = 512  # of a tar; a member is a header and one block of content
_DIGITS = 7
_CONTENTS = 256  # different images; members repeat them
_SAMPLES_A_SHARD = 10_000  # 10 MB


@dataclass(frozen=True, slots=True)
class TinyImages:
    """`num_classes` classes of `per_class` images; image i is of class i // per_class."""

    num_classes: int
    per_class: int

    @property
    def num_images(self) -> int:
        return self.num_classes * self.per_class


def write_dataset(folder: Path, images: TinyImages) -> None:
    """A data set as `pack` lays one out by default, the classes mixed over shards of 10 MB; all of it split train."""
    (folder / "shards").mkdir(parents=True)
    (folder / "catalogue").mkdir()
    contents = _contents()
    templates = _templates(contents)
    order = np.random.default_rng(0).permutation(images.num_images)
    shards: list[ShardFile] = []
    place = np.empty(images.num_images, dtype=np.int64)
    place[order] = np.arange(images.num_images)
    for start in range(0, images.num_images, _SAMPLES_A_SHARD):
        path = folder / "shards" / f"shard-{len(shards):06d}.tar"
        _write_tar(path, order[start : start + _SAMPLES_A_SHARD], templates)
        shards.append(ShardFile(f"shards/{path.name}", path.stat().st_size))
    rows = np.arange(images.num_images)
    none, side = np.full(len(rows), -1), np.full(len(rows), SIDE)
    sizes = np.array([len(content) for content in contents])
    checksums = np.array([zlib.crc32(content) for content in contents])
    write_catalogue(
        folder / "catalogue" / "000001.arrow",
        {
            "key": [f"{row:0{_DIGITS}d}" for row in rows.tolist()],
            "shard": place // _SAMPLES_A_SHARD,
            "offset": place % _SAMPLES_A_SHARD * 2 * _BLOCK + _BLOCK,
            "size": sizes[rows % _CONTENTS],
            "label": rows // images.per_class,
            "group": none,
            "blind_group": none,
            "split": np.zeros(len(rows)),
            "width": side,
            "height": side,
            "crc32": checksums[rows % _CONTENTS],
        },
        CatalogueMetadata(class_names=list(_class_names(images)), shards=shards, options={}),
    )


def write_files(folder: Path, images: TinyImages) -> None:
    """`folder`/CLASS/IMAGE.png."""
    contents = _contents()
    for label, name in enumerate(_class_names(images)):
        (folder / name).mkdir(parents=True)
        for row in range(label * images.per_class, (label + 1) * images.per_class):
            (folder / name / f"{row:0{_DIGITS}d}.png").write_bytes(contents[row % _CONTENTS])


def write_class_tars(folder: Path, images: TinyImages) -> None:
    """`folder`/CLASS.tar, WebDataset shards of one class each."""
    folder.mkdir(parents=True)
    templates = _templates(_contents())
    for label, name in enumerate(_class_names(images)):
        rows = np.arange(label * images.per_class, (label + 1) * images.per_class)
        _write_tar(folder / f"{name}.tar", rows, templates)


def _class_names(images: TinyImages) -> Iterable[str]:
    return (f"class-{label:06d}" for label in range(images.num_classes))


def _contents() -> list[bytes]:
    """PNG files, each of one block at most."""
    pixels = np.random.default_rng(0).integers(0, 256, (_CONTENTS, SIDE, SIDE), dtype=np.uint8)
    found = []
    for grey in pixels:
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, "PNG")
        found.append(buffer.getvalue())
    assert max(map(len, found)) <= _BLOCK
    return found


def _templates(contents: list[bytes]) -> NDArray[np.uint8]:
    """uint8 [len(contents), 2 blocks]: each as a member of a tar, header and content, called 0000000.png."""
    templates = np.zeros((len(contents), 2 * _BLOCK), dtype=np.uint8)
    for template, content in zip(templates, contents, strict=True):
        info = tarfile.TarInfo("0" * _DIGITS + ".png")
        info.size = len(content)
        member = info.tobuf(tarfile.USTAR_FORMAT) + content
        template[: len(member)] = np.frombuffer(member, dtype=np.uint8)
    return templates


def _write_tar(path: Path, rows: NDArray[np.int64], templates: NDArray[np.uint8]) -> None:
    """Members ROW.png; the headers of all of them at once, since tarfile takes 20 µs for one."""
    members = templates[rows % len(templates)]
    digits = rows[:, None] // 10 ** np.arange(_DIGITS)[::-1] % 10
    members[:, :_DIGITS] += digits.astype(np.uint8)
    # A header's checksum is the sum of its bytes with eight spaces in the checksum's place, in octal.
    members[:, 148:156] = ord(" ")
    sums = members[:, :_BLOCK].sum(axis=1, dtype=np.int64)
    members[:, 148:154] = sums[:, None] // 8 ** np.arange(6)[::-1] % 8 + ord("0")
    members[:, 154] = 0
    with path.open("wb") as file:
        file.write(members.tobytes())
        file.write(bytes(2 * _BLOCK))
