"""`doctor`: what it finds, what it says can be done, and folders of earlier versions, which get their checksums."""

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from damage_worker import uses_of

import fsl_dist
from fsl_dist.errors import RequestError
from index.base import checksums

pytestmark = pytest.mark.faults

FOLDERS = ("data", "run", "flat", "ivf", "sweep")


@pytest.fixture
def copies(base: Path, tmp_path: Path) -> Path:
    """Copies to damage."""
    for name in FOLDERS:
        shutil.copytree(base / name, tmp_path / name)
    return tmp_path


def take_checksums_off(folder: Path) -> int:
    """Make the files those of an earlier version; returns how many had a checksum."""
    number = 0
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.suffix == ".arrow":
            with pa.OSFile(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            metadata = {k: v for k, v in table.schema.metadata.items() if k not in (b"checksum", b"version")}
            table = table.replace_schema_metadata(metadata)
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            number += 1
            continue
        if path.suffix not in (".json", ".jsonl", ".yaml") and path.name != "current":
            continue
        text = path.read_text()
        bare = re.sub(r',?\s*"checksum": "\w+"', "", re.sub(r"\A# checksum [^\n]*\n", "", text))
        if path.name == "current":
            bare = f"{text.split()[0]}\n"
        number += bare != text
        path.write_text(bare)
    return number


def answers(kind: str, folder: Path, base: Path) -> dict:
    return {name: json.dumps(use(), default=str) for name, use in uses_of(kind, folder, base, 0).items()}


@pytest.mark.parametrize("kind", ["data", "run", "ivf", "sweep"])
def test_folders_of_earlier_versions_answer_alike_and_get_checksums(
    base: Path, copies: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copies / kind
    expected = answers(kind, folder, base)
    before = fsl_dist.doctor(folder)
    assert before.is_sound
    assert before.without_checksum == ()
    num_files = take_checksums_off(folder)
    assert num_files > 0
    checksums._named.clear()
    assert answers(kind, folder, base) == expected
    assert sum("has no checksum" in record.getMessage() for record in caplog.records) >= 1
    found = fsl_dist.doctor(folder)
    assert found.is_sound
    assert len(found.without_checksum) == num_files
    assert "write_checksums=True" in str(found)
    written = fsl_dist.doctor(folder, write_checksums=True)
    assert len(written.written) == num_files
    after = fsl_dist.doctor(folder)
    assert after.is_sound
    assert after.without_checksum == ()
    assert answers(kind, folder, base) == expected


def flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "file", "said", "repair"),
    [
        ("data", "catalogue/000002.arrow", "do not match its checksum", "go back to version 1"),
        ("data", "shards/shard-000000.tar", "does not match its checksum", "training skips it"),
        ("run", "config.yaml", "do not match the checksum in its first line", "remove its first line"),
        ("run", "metrics.jsonl", "line ", "remove the lines"),
        (
            "run",
            "checkpoints/*/state.pt",
            "is damaged",
            "remove the folder; the run then resumes from",
        ),
        ("run", "index/train/versions/*/labels.npy", "is damaged", "rebuilds it"),
        ("ivf", "versions/000002/shard-00000.faiss", "is damaged", "makes version 1 current"),
        ("flat", "versions/000002/changes/00000001.npz", "is damaged", "roll_back"),
        ("sweep", "trials/0002/result.json", "is damaged", "resuming the sweep runs the trial again"),
    ],
)
def test_damage_is_named_with_what_can_be_done(
    copies: Path, kind: str, file: str, said: str, repair: str
) -> None:
    paths = sorted((copies / kind).glob(file))
    for place in (0.3, 0.5, 0.7):
        flip(paths[-1], place)
    found = fsl_dist.doctor(copies / kind)
    assert not found.is_sound
    assert any(said in finding.problem for finding in found.damaged)
    assert any(repair in finding.repair for finding in found.damaged), [f.repair for f in found.damaged]
    # A damaged file is none that lost its checksum: it stays damaged.
    assert not fsl_dist.doctor(copies / kind, write_checksums=True).is_sound
    assert not fsl_dist.doctor(copies / kind).is_sound


def test_a_configuration_that_was_edited_gets_a_new_checksum(copies: Path) -> None:
    path = copies / "run" / "config.yaml"
    text = path.read_text()
    path.write_text(re.sub(r"\A[^\n]*\n", "", text).replace("epochs: 2", "epochs: 3"))
    assert fsl_dist.open_run(copies / "run").config.training.epochs == 3
    found = fsl_dist.doctor(copies / "run", write_checksums=True)
    assert found.written == (str(path),)
    assert fsl_dist.open_run(copies / "run").config.training.epochs == 3
    assert path.read_text().startswith("# checksum ")


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not a run"):
        fsl_dist.doctor(tmp_path)
    with pytest.raises(RequestError, match="no such folder"):
        fsl_dist.doctor(tmp_path / "none")
