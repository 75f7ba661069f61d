"""The catalogue: sorted rows, ranges, names, and errors that say what to do."""

import numpy as np
import pyarrow as pa
import pytest

from fsl_dist.data.catalogue import SPLITS, Catalogue, CatalogueMetadata, ShardFile, write_catalogue
from fsl_dist.data.write_report import BadSample
from fsl_dist.errors import RequestError, VersionError


def make_columns(num_samples, seed=0, num_classes=5):
    draw = np.random.default_rng(seed)
    return {
        "key": [f"k{number:07d}" for number in draw.permutation(num_samples)],
        "shard": draw.integers(0, 3, num_samples),
        "offset": draw.integers(0, 10**9, num_samples),
        "size": draw.integers(1, 10**6, num_samples),
        "label": draw.integers(0, num_classes, num_samples),
        "group": draw.integers(-1, 4, num_samples),
        "blind_group": np.full(num_samples, -1),
        "split": draw.choice([0, 2, 3], num_samples),
        "width": draw.integers(1, 500, num_samples),
        "height": draw.integers(1, 500, num_samples),
        "crc32": draw.integers(0, 2**32, num_samples),
    }


METADATA = CatalogueMetadata(
    class_names=list("abcde"),
    group_names=list("wxyz"),
    shards=[ShardFile(f"shards/{number}.tar", 10) for number in range(3)],
    bad_samples=[BadSample("a/ü.jpg", "has zero bytes")],
    options={"seed": 0},
)


def write(folder, columns, version=1):
    (folder / "catalogue").mkdir(parents=True, exist_ok=True)
    path = folder / "catalogue" / f"{version:06d}.arrow"
    return write_catalogue(path, columns, METADATA, version=version)


@pytest.fixture
def columns():
    return make_columns(200)


@pytest.fixture
def catalogue(tmp_path, columns):
    write(tmp_path, columns)
    return Catalogue.open(tmp_path)


def test_rows_are_sorted_and_keep_their_cells(catalogue, columns):
    rows = sorted(
        zip(
            *(
                np.asarray(columns[name]).tolist()
                for name in ("split", "label", "group", "key", "offset", "crc32")
            ),
            strict=True,
        )
    )
    ids = np.arange(200)
    where = catalogue.locate(ids)
    found = zip(
        catalogue.splits.tolist(),
        catalogue.labels.tolist(),
        catalogue.groups.tolist(),
        catalogue.keys(ids),
        where.offset.tolist(),
        where.crc32.tolist(),
        strict=True,
    )
    assert list(found) == rows
    assert catalogue.labels.dtype == np.int64
    assert (catalogue.num_samples, catalogue.num_classes, catalogue.label_name(2)) == (200, 5, "c")
    assert catalogue.bad_samples == METADATA.bad_samples


def test_columns_are_views_of_the_mapped_file(catalogue):
    for column in (catalogue.labels, catalogue.groups, catalogue.splits):
        assert not column.flags.owndata
        assert not column.flags.writeable


def test_splits_are_ranges_and_selections_are_classes(catalogue):
    assert catalogue.split_names == ["train", "test", "novel"]
    covered = []
    for name in SPLITS:
        ids = catalogue.split_ids(name)
        assert np.all(catalogue.splits[ids.start : ids.stop] == SPLITS.index(name))
        covered += list(ids)
    assert covered == list(range(200))
    selection = catalogue.select("test")
    assert np.array_equal(selection.ids, np.array(catalogue.split_ids("test")))
    for position, label in enumerate(selection.labels):
        assert np.all(catalogue.labels[selection.of_class(position)] == label)


def test_asking_for_what_is_not_there(catalogue):
    with pytest.raises(RequestError, match="has no split 'val'; it has train, test, novel"):
        catalogue.select("val")
    with pytest.raises(RequestError, match="split 'dev' is unknown; the splits are train, val, test, novel"):
        catalogue.split_ids("dev")
    for wrong in (-1, 200):
        with pytest.raises(RequestError, match=f"sample id {wrong} is outside 0 … 199"):
            catalogue.locate([0, wrong, 3])


def test_the_file_and_the_fingerprint_follow_from_the_content(tmp_path, columns):
    shuffle = np.random.default_rng(1).permutation(200)
    shuffled = {name: np.asarray(values)[shuffle] for name, values in columns.items()}
    relabelled = {**columns, "label": (columns["label"] + 1) % 5}
    prints = [write(tmp_path / n, c) for n, c in (("a", columns), ("b", shuffled), ("c", relabelled))]
    assert prints[0] == prints[1] != prints[2]
    first, second = ((tmp_path / name / "catalogue" / "000001.arrow").read_bytes() for name in "ab")
    assert first == second
    assert Catalogue.open(tmp_path / "a").fingerprint == prints[0]


def test_the_highest_version_is_current(tmp_path, columns):
    write(tmp_path, columns)
    write(tmp_path, make_columns(10), version=12)
    assert Catalogue.open(tmp_path).num_samples == 10
    assert Catalogue.open(tmp_path, version=1).num_samples == 200
    with pytest.raises(RequestError, match=r"has no catalogue version 2; it has \[1, 12\]"):
        Catalogue.open(tmp_path, version=2)


def test_what_is_no_data_set_is_told(tmp_path):
    with pytest.raises(RequestError, match="no such folder; `pack` creates one"):
        Catalogue.open(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="is not a data set: it has no catalogue"):
        Catalogue.open(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.98])
def test_a_cut_catalogue_is_damaged(tmp_path, columns, keep):
    write(tmp_path, columns)
    file = tmp_path / "catalogue" / "000001.arrow"
    data = file.read_bytes()
    file.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(VersionError, match="damaged or unfinished"):
        Catalogue.open(tmp_path)


def test_a_foreign_arrow_file_is_refused(tmp_path):
    (tmp_path / "catalogue").mkdir()
    table = pa.table({"x": [1]})
    with pa.ipc.new_file(str(tmp_path / "catalogue" / "000001.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(
        VersionError, match="'fsl-dist catalogue 3', the format that this version reads, is not"
    ):
        Catalogue.open(tmp_path)


def test_a_changed_cell_breaks_the_fingerprint(tmp_path, columns):
    write(tmp_path, columns)
    Catalogue.open(tmp_path).check_fingerprint()
    file = tmp_path / "catalogue" / "000001.arrow"
    data = bytearray(file.read_bytes())
    offsets = Catalogue.open(tmp_path).locate(np.arange(200)).offset
    place = data.index(offsets.tobytes())
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(VersionError, match="its bytes do not match its checksum"):
        Catalogue.open(tmp_path)


def test_a_catalogue_at_the_place_of_another_version_is_refused(tmp_path, columns):
    write(tmp_path, columns)
    write(tmp_path, {**columns, "label": columns["label"][::-1]}, version=2)
    first, second = (tmp_path / "catalogue" / f"{version:06d}.arrow" for version in (1, 2))
    second.write_bytes(first.read_bytes())
    with pytest.raises(VersionError, match="is that of version 1: it was swapped"):
        Catalogue.open(tmp_path)
    assert Catalogue.open(tmp_path, 1).num_samples == 200


def without_checksum(file):
    """The catalogue as versions without checksums wrote it."""
    table = pa.ipc.open_file(file).read_all()
    metadata = {k: v for k, v in table.schema.metadata.items() if k not in (b"checksum", b"version")}
    table = table.replace_schema_metadata(metadata)
    earlier = file.with_suffix(".earlier")
    with pa.ipc.new_file(str(earlier), table.schema) as writer:
        writer.write_table(table)
    earlier.replace(file)


def test_a_catalogue_without_a_checksum_opens_with_a_line_and_damage_to_its_content_is_found(
    tmp_path, columns, caplog
):
    write(tmp_path, columns)
    expected = Catalogue.open(tmp_path)
    file = tmp_path / "catalogue" / "000001.arrow"
    without_checksum(file)
    for _ in range(2):
        opened = Catalogue.open(tmp_path)
        assert opened.fingerprint == expected.fingerprint
        np.testing.assert_array_equal(opened.labels, expected.labels)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "has no checksum" in said
    assert f"doctor({tmp_path}, write_checksums=True) adds one" in said
    data = bytearray(file.read_bytes())
    data[data.index(opened.locate(np.arange(200)).offset.tobytes())] ^= 1
    file.write_bytes(data)
    with pytest.raises(VersionError, match="its content does not match its fingerprint"):
        Catalogue.open(tmp_path)
