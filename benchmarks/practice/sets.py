"""The data sets of the comparison, and how each is packed from the archives of real data."""

import csv
import hashlib
import random
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

import fsl_dist
from fsl_dist.data.catalogue import Catalogue, is_dataset
from fsl_dist.errors import RequestError
from index.base.files import write_atomic

WEIGHTS = Path("weights") / "mobilenet_v2_imagenet.pth"
"""torchvision's MobileNetV2, below the folder of archives"""

_TAIL_CLASSES, _TAIL_LARGEST, _TAIL_SMALLEST, _TAIL_SEED = 40, 90, 6, 5
_IMAGES = (".jpg", ".png")


@dataclass(frozen=True, slots=True)
class PracticeSet:
    """One data set, and what all rows get of it."""

    name: str
    about: str
    """classes, images and split in words, for the table's caption"""
    archive: str = ""
    """file below the folder of archives; empty where none is needed"""
    image_size: int = 96
    """pixels of a side that every network sees"""
    images: int = 19_200
    """images seen by each fine-tuned row"""
    rates: tuple[float, ...] = (2e-4, 6e-4, 2e-3)
    """learning rates tried where the last blocks learn, of which validation chooses"""
    whole_rates: tuple[float, ...] = (3e-4, 1e-3)
    """the same where the whole network learns"""
    copies: int = 8
    """augmented copies of each training image whose activations are cached"""
    has_flip: bool = True
    """whether a mirrored image is still of its class"""
    key: str = ""
    """what tells its packed images from those of another set with this name"""
    source: Callable[[Path, Path], Path] = field(default=lambda unpacked, work: unpacked)
    """(unpacked archive, work folder) → the folder to pack"""
    packing: Mapping[str, object] = field(default_factory=dict)
    """arguments of `fsl_dist.pack`; `table` is relative to the folder"""


def open_set(chosen: PracticeSet, archives: Path | None, work: Path) -> Catalogue:
    """The packed data set below `work`, packed at the first call.

    Raises:
        RequestError: the archive is not there.
    """
    packed = work / "packed"
    if not is_dataset(packed):
        folder = chosen.source(_unpack(chosen, archives, work), work)
        arguments = dict(chosen.packing)
        if "table" in arguments:
            arguments["table"] = folder / str(arguments["table"])
        fsl_dist.pack(folder, packed, progress=False, **arguments)  # type: ignore[arg-type]
    return fsl_dist.open_data(packed)


def own_set(folder: Path, image_size: int, images: int) -> PracticeSet:
    """The set of a folder of your own: class folders, or whatever else `pack` reads without options."""
    return PracticeSet(
        name=folder.name,
        about=f"images of {folder.name}, divided by class with seed 0 unless it has split folders",
        image_size=image_size,
        images=images,
        key=_hash_listing(folder),
        source=lambda unpacked, work: folder,
    )


def _hash_listing(folder: Path) -> str:
    """A hash of names, sizes and times of all files of a folder, and of where it is."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:12]


def _unpack(chosen: PracticeSet, archives: Path | None, work: Path) -> Path:
    """The archive's own folder, unpacked below the folder of all sets; `work` where the set needs none."""
    if not chosen.archive:
        return work
    if archives is None:
        raise RequestError(
            f"set {chosen.name} needs {chosen.archive}; FSL_DIST_TEST_DATA must name the folder with the archives "
            "of real data"
        )
    archive = archives / chosen.archive
    if not archive.is_file():
        raise RequestError(f"set {chosen.name} needs {archive}, which does not exist")
    out = work.parent / "unpacked" / chosen.archive.partition(".")[0]
    done = out.with_suffix(".done")
    if not done.exists():
        with tarfile.open(archive) as members:
            members.extractall(out.parent, filter="data")
        write_atomic(done, b"")
    return out


def _write_digits(_: Path, work: Path) -> Path:
    """scikit-learn's handwritten digits as PNG files in class folders."""
    from sklearn.datasets import load_digits

    out = work / "source"
    scans = load_digits()
    for number, (scan, label) in enumerate(zip(scans.images, scans.target, strict=True)):
        path = out / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((scan * (255 / 16)).astype(np.uint8)).save(path)
    return out


def _write_tail_table(unpacked: Path, work: Path) -> Path:
    """A long tail of the largest classes, 90 … 6 images by a geometric rule, drawn by a fixed seed; as a table of
    files."""
    classes = {
        folder.name: sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGES)
        for folder in sorted(unpacked.iterdir())
        if folder.is_dir()
    }
    largest = sorted(classes, key=lambda name: (-len(classes[name]), name))[:_TAIL_CLASSES]
    draw = random.Random(_TAIL_SEED)
    rows = ["file,class"]
    for rank, name in enumerate(largest):
        size = round(_TAIL_LARGEST * (_TAIL_SMALLEST / _TAIL_LARGEST) ** (rank / (_TAIL_CLASSES - 1)))
        files = draw.sample(classes[name], len(classes[name]))[: max(_TAIL_SMALLEST, size)]
        rows += [f"{path.relative_to(unpacked).as_posix()},{name}" for path in files]
    return _write_table(unpacked, work, "tail.csv", rows)


def _write_drawer_table(unpacked: Path, work: Path) -> Path:
    """Omniglot's labels with a column `part`: drawers 1–12 train, 13–16 validate, 17–20 test."""
    rows = ["file,class,alphabet,part"]
    with (unpacked / "labels.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            drawer = int(row["drawer"])
            part = "train" if drawer <= 12 else "val" if drawer <= 16 else "test"
            rows.append(f"{row['file']},{row['class']},{row['alphabet']},{part}")
    return _write_table(unpacked, work, "drawers.csv", rows)


def _write_table(unpacked: Path, work: Path, name: str, rows: list[str]) -> Path:
    """Writes the table next to the images, where its paths start; returns their folder."""
    write_atomic(unpacked / name, ("\n".join(rows) + "\n").encode())
    return unpacked


# Grey strokes are far from ImageNet: on digits the largest of the usual rates was always the best on validation.
_FAR_RATES, _FAR_WHOLE_RATES = (6e-4, 2e-3, 6e-3), (1e-3, 3e-3)
_OMNIGLOT = PracticeSet(
    "omniglot",
    "",
    archive="omniglot.tar.gz",
    image_size=64,
    images=48_000,
    rates=_FAR_RATES,
    whole_rates=_FAR_WHOLE_RATES,
    copies=3,
    has_flip=False,
    source=_write_drawer_table,
)

SETS = {
    chosen.name: chosen
    for chosen in (
        PracticeSet(
            "digits",
            "scikit-learn's handwritten digits, 8 × 8 grey pixels, 10 classes; a fifth for training, 70 % for test",
            image_size=64,
            images=6_400,
            rates=_FAR_RATES,
            whole_rates=_FAR_WHOLE_RATES,
            has_flip=False,
            source=_write_digits,
            packing={"fractions": (0.2, 0.1, 0.7)},
        ),
        PracticeSet(
            "blood-cells",
            "white blood cells, 5 classes of 4 … 209 images, two microscopes; divided by class",
            archive="wbc_masks.tar",
            images=6_400,
            packing={"table": "labels.csv"},
        ),
        PracticeSet(
            "groceries-tail",
            "40 classes of groceries, 90 … 6 images by a geometric rule; divided by class",
            archive="grocery.tar",
            source=_write_tail_table,
            packing={"table": "tail.csv"},
        ),
        PracticeSet(
            "groceries",
            "81 classes of groceries; divided by class",
            archive="grocery.tar",
            images=24_000,
            packing={"table": "labels.csv"},
        ),
        PracticeSet(
            "ham10000-lt",
            "7 diagnoses of skin lesions, long tail; divided by class, images of a lesion on one side",
            archive="ham10000_lt.tar",
            images=24_000,
            packing={"table": "labels.csv", "keep_together": "lesion_id"},
        ),
        replace(
            _OMNIGLOT,
            name="omniglot-alphabets",
            about="Omniglot, a class is one of 50 alphabets; 12 drawers for training, 4 for validation, 4 for test",
            packing={"table": "drawers.csv", "label_column": "alphabet", "group_column": "class", "split_column": "part"},
        ),
        replace(
            _OMNIGLOT,
            name="omniglot-characters",
            about="Omniglot, a class is one of 1,623 characters; 12 drawers for training, 4 for validation, 4 for test",
            packing={"table": "drawers.csv", "split_column": "part"},
        ),
    )
}  # fmt: skip
