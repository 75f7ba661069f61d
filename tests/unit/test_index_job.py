"""Building as a job: stopped anywhere it resumes, and the files are those of a build that was not stopped."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from index import versions
from index.base import files
from index.base.errors import FslDistError, RequestError, StaleOwnerError
from index.base.files import Owner
from index.base.pieces import do_here
from index.changes import roll_back
from index.config import IndexConfig
from index.search import open_index
from index.vectors import unit_vectors
from index.writing import job
from index.writing.attempts import list_attempts
from index.writing.build import build
from index.writing.vector_files import build_from_files

CONFIG = IndexConfig(shards=3)
NUM, DIM = 150, 4


class Sines:
    """An embedding that can be computed anywhere; it counts what it computes."""

    batch_size = 2

    def __init__(self) -> None:
        self.num_computed = 0

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        self.num_computed += len(ids)
        return np.sin(np.outer(ids, np.arange(1, DIM + 1))).astype(np.float32)

    def are_missing(self, ids: np.ndarray) -> np.ndarray:
        return np.isin(ids, self.missing)

    missing: tuple[int, ...] = ()


def plan_at(out: Path, **config: object) -> job.Plan:
    rng = np.random.default_rng(5)
    labels, ids = rng.integers(0, 4, NUM), rng.permutation(NUM * 2)[:NUM]
    settings = IndexConfig(**{"shards": 3, **config})
    return job.Plan(
        out=out, labels=labels, ids=ids, dim=DIM, config=settings, source={"parameters": "a"}, identity={}
    )


def contents(version: Path) -> dict[str, object]:
    """Every file of a version by its bytes; the manifest but for its time."""
    files: dict[str, object] = {path.name: path.read_bytes() for path in sorted(version.iterdir())}
    files["manifest.json"] = json.loads((version / "manifest.json").read_text())
    files["manifest.json"] |= {"created": "", "checksum": ""}
    return files


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def write_files(folder: Path, vectors: np.ndarray | None = None) -> tuple[Path, Path]:
    rng = np.random.default_rng(1)
    if vectors is None:
        vectors = rng.standard_normal((5000, DIM)).astype(np.float32)
    np.save(folder / "X.npy", vectors)
    np.save(folder / "Y.npy", rng.integers(0, 7, len(vectors)).astype(np.int16))
    return folder / "X.npy", folder / "Y.npy"


def test_a_build_from_files_has_the_files_of_a_build_in_memory(tmp_path: Path) -> None:
    vectors, labels = write_files(tmp_path)
    there = build_from_files(tmp_path / "job", vectors, str(labels), None, CONFIG)
    at_once = build(tmp_path / "memory", np.load(vectors), np.load(labels).astype(np.int64), config=CONFIG)
    found, wanted = contents(there), contents(at_once)
    manifest = found.pop("manifest.json")
    assert manifest["fingerprint"] != ""
    assert manifest["source"] == {"vectors": str(vectors), "labels": str(labels)}
    assert manifest | {"fingerprint": "", "source": {}} == wanted.pop("manifest.json")
    assert found == wanted
    assert files.list_folder(tmp_path / "job" / "staging") == []
    # A block of 1,024 rows or all at once: the mean is the same number.
    little = build_from_files(
        tmp_path / "little", vectors, str(labels), None, IndexConfig(shards=1, memory_mb=1)
    )
    much = build_from_files(tmp_path / "much", vectors, str(labels), None, IndexConfig(shards=1))
    assert contents(little) == contents(much)


def test_computed_vectors_lie_at_their_ids(tmp_path: Path) -> None:
    plan = plan_at(tmp_path / "out")
    job.run(plan, embed=Sines())
    index = open_index(tmp_path / "out")
    assert sorted(index.ids.tolist()) == sorted(plan.ids.tolist())
    assert np.array_equal(index.vectors(0, NUM), Sines()(index.ids))
    assert np.array_equal(index.labels_of(plan.ids), plan.labels)


def test_stopped_before_any_file_it_goes_on_to_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = contents(job.run(plan_at(tmp_path / "undisturbed"), embed=Sines()))

    class Killed(BaseException):
        pass

    replacing, stops = files.replacing, 0
    for stop_at in range(1000):
        out, calls = tmp_path / f"stopped-{stop_at}", 0

        def counted(path: Path, *, stop_at: int = stop_at, is_forced: bool = True):
            nonlocal calls
            calls += 1
            if calls > stop_at:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name(f".{path.name}.abc.tmp").write_bytes(b"half")  # as a kill leaves it
                raise Killed
            return replacing(path, is_forced=is_forced)

        with monkeypatch.context() as patch:
            patch.setattr(files, "replacing", counted)
            try:
                job.run(plan_at(out), embed=Sines())
            except Killed:
                stops += 1
                if stop_at and (out / "staging").is_dir():
                    assert len(versions.list_versions(out)) <= 1
        embed = Sines()
        version = job.run(plan_at(out), embed=embed)
        assert version.name == "000001"
        assert contents(version) == wanted
        assert versions.find_version(out) == version
        assert files.list_folder(out / "staging") == []
        if calls <= stop_at:  # it was through before it was to be stopped
            break
    # plan twice, rows, 3 pieces, 3 shards, labels, ids and what is noted of the 8, manifest, current
    assert stops == 21


def test_only_what_is_missing_is_computed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def stop_after_two(work: job.Work, numbers: Sequence[int]) -> Iterator[tuple[int, None]]:
        yield from do_here(work, numbers[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.run(plan_at(tmp_path), embed=Sines(), spread=stop_after_two)
    (attempt,) = list_attempts(tmp_path)
    assert (attempt.num_vectors, attempt.pieces, attempt.shards) == (NUM, "2 of 3", "0 of 3")
    embed, told = Sines(), []
    with caplog.at_level("INFO", logger="index"):
        job.run(plan_at(tmp_path), embed=embed, progress=lambda *told_now: told.append(told_now))
    assert embed.num_computed == NUM - 2 * 64
    assert "resumed: 2 of 3 pieces of stage 'embed' were there" in caplog.text
    assert told == [("embed", 3, 3), ("write", 1, 3), ("write", 2, 3), ("write", 3, 3)]
    assert list_attempts(tmp_path) == []


def test_a_piece_that_was_damaged_meanwhile_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stop_at_shards(work: job.Work, numbers: Sequence[int]) -> Iterator[tuple[int, None]]:
        if len(told):
            raise KeyboardInterrupt
        told.append(numbers)
        yield from do_here(work, numbers)

    told: list[Sequence[int]] = []
    with pytest.raises(KeyboardInterrupt):
        job.run(plan_at(tmp_path / "a"), embed=Sines(), spread=stop_at_shards)
    (piece,) = (tmp_path / "a" / "staging").glob("*/piece-000001.npy")
    flip_last_byte(piece)
    embed = Sines()
    found = job.run(plan_at(tmp_path / "a"), embed=embed)
    assert "piece-000001.npy of an earlier try is damaged and will be rebuilt" in caplog.text
    assert embed.num_computed == 64
    assert contents(found) == contents(job.run(plan_at(tmp_path / "b"), embed=Sines()))


def test_something_else_starts_anew_and_the_same_is_not_built_twice(tmp_path: Path) -> None:
    first = job.run(plan_at(tmp_path), embed=Sines())
    embed = Sines()
    # What is kept and how much memory is taken change no file.
    assert job.run(plan_at(tmp_path, keep_versions=2, memory_mb=9), embed=embed) == first
    assert embed.num_computed == 0
    second = job.run(plan_at(tmp_path, shards=2), embed=embed)
    assert (second.name, embed.num_computed) == ("000002", NUM)
    roll_back(tmp_path)
    assert versions.find_version(tmp_path) == first
    assert job.run(plan_at(tmp_path, shards=2), embed=embed) == second
    assert versions.find_version(tmp_path) == second
    # A version that is damaged is no answer.
    flip_last_byte(second / "shard-00000.npy")
    assert job.run(plan_at(tmp_path, shards=2), embed=embed).name == "000003"


def test_a_builder_that_lost_the_index_publishes_nothing(tmp_path: Path) -> None:
    class Overtaken(Sines):
        def __call__(self, ids: np.ndarray) -> np.ndarray:
            Owner.claim(tmp_path)
            return super().__call__(ids)

    with pytest.raises(StaleOwnerError, match="holds claim 1 and stops writing"):
        job.run(plan_at(tmp_path), embed=Overtaken())
    assert versions.list_versions(tmp_path) == []
    assert job.run(plan_at(tmp_path), embed=Sines()).name == "000001"


def test_vectors_that_do_not_fit_are_named_by_their_row(tmp_path: Path) -> None:
    vectors = np.ones((40, DIM), np.float32)
    vectors[17, 2] = np.nan
    written = write_files(tmp_path, vectors)
    with pytest.raises(RequestError, match=r"X\.npy row 17 contains a NaN"):
        build_from_files(tmp_path / "out", written[0], str(written[1]), None, CONFIG)
    assert files.list_folder(tmp_path / "out" / "staging") == []
    assert versions.list_versions(tmp_path / "out") == []
    np.save(tmp_path / "I.npy", np.zeros(40, np.int64))
    with pytest.raises(RequestError, match="id 0 is given to more than one vector"):
        build_from_files(tmp_path / "out", written[0], str(written[1]), str(tmp_path / "I.npy"), CONFIG)
    np.save(written[0], np.asfortranarray(np.ones((40, DIM), np.float32)))
    with pytest.raises(RequestError, match="stored column by column"):
        build_from_files(tmp_path / "out", written[0], str(written[1]), None, CONFIG)


def test_unit_vectors_have_length_one_or_a_name() -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 9)).astype(np.float32) * 1000
    wanted = [row / np.sqrt(sum(float(x) ** 2 for x in row)) for row in vectors.astype(np.float64)]
    np.testing.assert_allclose(unit_vectors(vectors, "vectors"), wanted, rtol=1e-6)
    vectors[3] = 0
    with pytest.raises(RequestError, match="vectors row 103 is all zeros and has no direction"):
        unit_vectors(vectors, "vectors", np.arange(100, 150))


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replacing = files.replacing

    def full(path: Path, *, is_forced: bool = True):
        if path.name == "labels.npy":
            raise OSError(28, "No space left on device", str(path))
        return replacing(path, is_forced=is_forced)

    with monkeypatch.context() as patch:
        patch.setattr(files, "replacing", full)
        with pytest.raises(
            FslDistError, match=r"stopped: No space left on device \(.*labels\.npy\); the published version"
        ):
            job.run(plan_at(tmp_path), embed=Sines())
    embed = Sines()
    job.run(plan_at(tmp_path), embed=embed)
    assert embed.num_computed == 0


@pytest.mark.parametrize("is_fixed", [True, False])
def test_parquet_has_vectors_labels_and_ids(tmp_path: Path, is_fixed: bool) -> None:
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((300, DIM)).astype(np.float32)
    labels, ids = rng.integers(0, 5, 300), rng.permutation(1000)[:300]
    flat = pa.array(vectors.reshape(-1))
    lists = (
        pa.FixedSizeListArray.from_arrays(flat, DIM)
        if is_fixed
        else pa.ListArray.from_arrays(np.arange(301, dtype=np.int32) * DIM, flat)
    )
    table = pa.table({"vector": lists, "label": labels, "id": ids, "weight": np.ones(300)})
    parquet.write_table(table, tmp_path / "X.parquet", row_group_size=70)
    found = build_from_files(tmp_path / "out", tmp_path / "X.parquet", "label", "id", CONFIG)
    wanted = build(tmp_path / "wanted", vectors, labels, ids, CONFIG)
    for name in ("shard-00000.npy", "shard-00002.npy", "labels.npy", "ids.npy"):
        assert (found / name).read_bytes() == (wanted / name).read_bytes()
    for columns, message in [
        (("name", None), "has no column 'name'; it has vector, label, id, weight"),
        (("weight", None), "column 'weight' of .* has type double; it must contain a whole number"),
    ]:
        with pytest.raises(RequestError, match=message):
            build_from_files(tmp_path / "out", tmp_path / "X.parquet", *columns, CONFIG)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"v": [[1.0, 2.0]]}, "lists of double; they must be of float32"),
        ({"w": [1]}, "must have one column of lists, the vectors; it has none"),
        (
            {"v": pa.array([[1.0], [2.0, 3.0]], pa.list_(pa.float32())), "y": [0, 1]},
            "2 numbers in row 1 and 1 in",
        ),
        ({"v": pa.array([[1.0], None], pa.list_(pa.float32())), "y": [0, 1]}, "rows without a vector"),
        ({"v": pa.array([], pa.list_(pa.float32())), "y": pa.array([], pa.int64())}, "has no rows"),
    ],
)
def test_tables_without_vectors_are_refused(tmp_path: Path, columns, message: str) -> None:
    parquet.write_table(pa.table(columns), tmp_path / "X.parquet")
    with pytest.raises(RequestError, match=message):
        build_from_files(tmp_path / "out", tmp_path / "X.parquet", "y", None, IndexConfig())
    (tmp_path / "X.parquet").write_bytes(b"no table")
    with pytest.raises(RequestError, match="is not a Parquet file"):
        build_from_files(tmp_path / "out", tmp_path / "X.parquet", "y", None, IndexConfig())


def test_rows_without_a_vector_of_their_own_are_left_out(tmp_path: Path) -> None:
    plan = plan_at(tmp_path / "out")
    embed = Sines()
    order = np.lexsort((plan.ids, plan.labels))
    embed.missing = tuple(plan.ids[order[[0, 1, 63, 64, 65, 149]]].tolist())
    index = open_index(job.run(plan, embed=embed))
    assert sorted(index.ids.tolist()) == sorted(set(plan.ids.tolist()) - set(embed.missing))
    found = dict(zip(index.ids.tolist(), index.vectors(0, index.num_vectors), strict=True))
    for known_by, vector in found.items():
        np.testing.assert_array_equal(vector, Sines()(np.array([known_by]))[0])
    labels = dict(zip(plan.ids.tolist(), plan.labels.tolist(), strict=True))
    assert index.labels.tolist() == [labels[known_by] for known_by in index.ids.tolist()]
    embed.missing = ()  # restored
    assert open_index(job.run(plan, embed=embed)).num_vectors == NUM
