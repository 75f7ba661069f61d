"""Near-duplicates: what `pack` leaves out and keeps, and what `find_near_duplicates` lists."""

import logging

import numpy as np
import pyarrow as pa
import pytest
from dataset_files import all_bytes
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.catalogue_file import fingerprint_of
from fsl_dist.data.images import CheckedImage
from fsl_dist.data.ingest import duplicates, pack_pieces
from fsl_dist.data.ingest.duplicates import describe_near_duplicates, drop_duplicates, find_near_duplicates
from fsl_dist.data.ingest.inspection import describe, summarise
from fsl_dist.data.ingest.listing import Candidate, TableColumns
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import append, pack
from fsl_dist.data.ingest.resplit import ResplitOptions, resplit
from fsl_dist.errors import RequestError

CHINA, FLOWER = (Image.fromarray(photograph) for photograph in load_sample_images().images)


def picture(number):
    """One of 16 different pictures of 150 × 150 pixels."""
    photograph = (CHINA, FLOWER)[number % 2]
    left, top = 160 * (number // 2 % 4 % 3), 200 * (number // 2 // 4)
    return photograph.crop((left + 10, top + 10, left + 160, top + 160))


def write(root, name, image, **options):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def write_source(root):
    """Eight pictures, of which owl holds three again in another form, one by its name, and one as it is."""
    for number in range(4):
        write(root, f"ant/{number:04d}.png", picture(number))
        write(root, f"owl/{number:04d}.png", picture(number + 8))
    write(root, "owl/again.jpg", picture(0), quality=60)
    write(root, "owl/small.png", picture(8).resize((75, 75), Image.Resampling.BILINEAR))
    write(root, "owl/sub/0001.PNG", ImageEnhance.Brightness(picture(1)).enhance(0.8))
    write(root, "owl/copy.png", picture(2))
    return root


def keys_of(dataset):
    catalogue = Catalogue.open(dataset)
    return set(catalogue.keys(range(catalogue.num_samples)))


NUMBERED = {f"{name}/{number:04d}" for name in ("ant", "owl") for number in range(4)}


def test_without_dedupe_all_are_packed(tmp_path):
    report = pack(write_source(tmp_path / "src"), tmp_path / "out", PackOptions())
    assert (report.num_samples, report.duplicates) == (12, ())


def test_phash_leaves_out_every_near_duplicate_and_flags_other_classes(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    report = pack(write_source(tmp_path / "src"), tmp_path / "out", PackOptions(dedupe="phash"))
    assert keys_of(tmp_path / "out") == NUMBERED
    assert report.bad_samples == ()
    found = [(d.path, d.kept, d.label, d.kept_label, d.is_conflict) for d in report.duplicates]
    assert found == [
        ("owl/again.jpg", "ant/0000.png", "owl", "ant", True),
        ("owl/copy.png", "ant/0002.png", "owl", "ant", True),
        ("owl/small.png", "owl/0000.png", "owl", "owl", False),
        ("owl/sub/0001.PNG", "ant/0001.png", "owl", "ant", True),
    ]
    assert report.duplicates[1].distance == 0
    assert all(0 <= d.distance <= 6 and d.distance % 2 == 0 for d in report.duplicates)
    assert Catalogue.open(tmp_path / "out").duplicates == list(report.duplicates)
    assert (
        "label conflict: 'owl/again.jpg' (class 'owl') is a near-duplicate of 'ant/0000.png' (class 'ant') and left out"
        in caplog.text
    )
    assert "dedupe=phash left out 4 near-duplicates, 3 of them of another class" in caplog.text
    text = describe(summarise(Catalogue.open(tmp_path / "out")))
    assert "left out as near-duplicates: 4" in text
    assert "owl/copy.png: of another class, near ant/0002.png, distance 0" in text


def test_name_keeps_other_pictures_of_one_name_and_other_names_of_one_picture(tmp_path):
    report = pack(write_source(tmp_path / "src"), tmp_path / "out", PackOptions(dedupe="name"))
    assert keys_of(tmp_path / "out") == NUMBERED | {"owl/again", "owl/small", "owl/copy"}
    assert [(d.path, d.kept) for d in report.duplicates] == [("owl/sub/0001.PNG", "ant/0001.png")]


@pytest.mark.parametrize("name", ["same", "photo 1.2"])
def test_a_looser_bound_holds_under_one_name(tmp_path, name):
    smaller = picture(0).crop((5, 5, 145, 145))
    for path in (f"ant/{name}", f"bee/{name.upper()}", "owl/other"):
        write(tmp_path / "src", f"{path}.png", picture(0) if path.startswith("ant") else smaller)
    assert (
        pack(tmp_path / "src", tmp_path / "a", PackOptions(dedupe="name")).duplicates[0].path
        == f"bee/{name.upper()}.png"
    )
    left_out = [
        d.path for d in pack(tmp_path / "src", tmp_path / "b", PackOptions(dedupe="phash")).duplicates
    ]
    assert left_out == ["owl/other.png"]  # equal to the image in bee, which stays


@pytest.mark.integration
def test_the_same_bytes_whatever_the_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_pieces, "CHUNK_SIZE", 2)
    source = write_source(tmp_path / "src")
    for processes in (1, 3):
        pack(source, tmp_path / str(processes), PackOptions(dedupe="phash", processes=processes))
    assert all_bytes(tmp_path / "1") == all_bytes(tmp_path / "3")


def test_images_of_one_colour_are_left_out_as_equal_files_alone(tmp_path):
    for number, colour in enumerate(("white", "white", "black", "red")):
        write(tmp_path / "src", f"a/{number}.png", Image.new("RGB", (30, 30), colour))
    write(tmp_path / "src", "a/4.png", Image.new("RGB", (31, 30), "white"))
    report = pack(tmp_path / "src", tmp_path / "out", PackOptions(dedupe="phash"))
    assert [(d.path, d.kept) for d in report.duplicates] == [("a/1.png", "a/0.png")]


def make_image(bits, contents, thumb):
    """A checked image whose hash has these bits set."""
    flags = np.zeros(64, dtype=np.uint8)
    flags[list(bits)] = 1
    return CheckedImage(8, 8, 10, contents, "png", fingerprint=np.packbits(flags).tobytes() + thumb)


def leave_out_by_loops(paths, images, bound):
    """path → path kept: in the order of paths, what is near the first one that stays."""
    flags = [np.unpackbits(np.frombuffer(image.fingerprint[:8], np.uint8)).tolist() for image in images]
    stay, left_out = [], {}
    for row in sorted(range(len(paths)), key=paths.__getitem__):
        near = [
            other
            for other in stay
            if sum(a != b for a, b in zip(flags[row], flags[other], strict=True)) <= bound
        ]
        if near:
            left_out[paths[row]] = paths[near[0]]
        else:
            stay.append(row)
    return left_out


@pytest.mark.parametrize("seed", range(4))
def test_what_is_near_an_image_left_out_stays_unless_it_is_near_one_that_stays(seed):
    draw = np.random.default_rng(seed)
    thumb = draw.integers(0, 256, 768, dtype=np.uint8).tobytes()
    # A chain: each hash differs from the one before by 4 bits. Every third image comes twice.
    images = [make_image(range(4 * (n % 12)), 100 + n % 12, thumb) for n in range(16)]
    paths = [f"p{number:02d}" for number in draw.permutation(16)]
    samples = [Candidate(file="", path=path, key=path, label="x") for path in paths]
    stay, kept_images, found = drop_duplicates(samples, images, "phash")
    expected = leave_out_by_loops(paths, images, bound=6)
    assert {d.path: d.kept for d in found} == expected
    assert [d.path for d in found] == sorted(expected)
    assert [sample.path for sample in stay] == [path for path in paths if path not in expected]
    assert kept_images == [images[paths.index(sample.path)] for sample in stay]
    assert 0 < len(found) < 15


def test_append_compares_with_the_images_that_are_there(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for number in range(4):
        write(first, f"ant/{number:04d}.png", picture(number))
    write(first, "ant/again.png", picture(3))  # packed without dedupe, so it stays
    pack(first, tmp_path / "out", PackOptions())
    write(second, "new/0000.jpg", picture(0), quality=70)
    write(second, "new/0001.png", picture(8))
    write(second, "new/0007.png", picture(9))
    write(second, "new/late.jpg", picture(9), quality=50)
    named = append(second, tmp_path / "out", PackOptions(dedupe="name"))
    assert [(d.path, d.kept, d.kept_label) for d in named.duplicates] == [("new/0000.jpg", "ant/0000", "ant")]
    third = tmp_path / "third"
    write(third, "more/x.jpg", picture(3), quality=70)
    write(third, "more/y.jpg", picture(9), quality=80)
    write(third, "more/z.png", picture(11))
    report = append(third, tmp_path / "out", PackOptions(dedupe="phash"))
    near = {d.path: d.kept for d in report.duplicates}
    assert near.keys() == {"more/x.jpg", "more/y.jpg"}
    assert near["more/x.jpg"] in ("ant/0003", "ant/again")
    assert near["more/y.jpg"] in ("new/0007", "new/late")
    assert report.num_samples == 1
    catalogue = Catalogue.open(tmp_path / "out")
    assert catalogue.num_samples == 5 + 3 + 1
    assert catalogue.duplicates == [*named.duplicates, *report.duplicates]
    resplit(tmp_path / "out", ResplitOptions(split="stratified", seed=2))
    assert Catalogue.open(tmp_path / "out").duplicates == catalogue.duplicates


def test_an_append_of_nothing_new_is_refused_and_changes_nothing(tmp_path):
    write(tmp_path / "first", "ant/a.png", picture(0))
    write(tmp_path / "second", "ant/b.jpg", picture(0), quality=80)
    pack(tmp_path / "first", tmp_path / "out", PackOptions())
    before = all_bytes(tmp_path / "out")
    with pytest.raises(
        RequestError, match=r"dedupe=phash leaves none of the 1 images.*'ant/b.jpg' of 'ant/a'"
    ):
        append(tmp_path / "second", tmp_path / "out", PackOptions(dedupe="phash"))
    assert {name: data for name, data in all_bytes(tmp_path / "out").items() if ".lock" not in name} == before


def test_a_catalogue_written_before_dedupe_has_no_duplicates(tmp_path):
    write(tmp_path / "src", "ant/a.png", picture(0))
    pack(tmp_path / "src", tmp_path / "out", PackOptions())
    file = tmp_path / "out" / "catalogue" / "000001.arrow"
    table = pa.ipc.open_file(file).read_all()
    # Nor had it a checksum.
    metadata = {n: v for n, v in table.schema.metadata.items() if n not in (b"duplicates", b"checksum")}
    assert len(metadata) == len(table.schema.metadata) - 2
    metadata[b"fingerprint"] = fingerprint_of(table.replace_schema_metadata(metadata)).encode()
    with (
        pa.OSFile(str(file), "wb") as out,
        pa.ipc.new_file(out, table.schema.with_metadata(metadata)) as writer,
    ):
        writer.write_table(table.replace_schema_metadata(metadata))
    assert Catalogue.open(tmp_path / "out").duplicates == []


@pytest.fixture
def leaking(tmp_path):
    """A data set with near-duplicates across splits, across classes, and within both."""
    rows = []
    for name, image, label, split, options in (
        ("a.png", picture(0), "ant", "train", {}),
        ("b.jpg", picture(0), "ant", "test", {"quality": 70}),
        ("c.png", picture(1), "ant", "train", {}),
        ("d.jpg", picture(1), "owl", "train", {"quality": 70}),
        ("e.png", picture(2), "owl", "val", {}),
        ("f.png", picture(2), "owl", "val", {}),
        ("g.png", picture(3), "owl", "test", {}),
    ):
        write(tmp_path / "src", name, image, **options)
        rows.append(f"{name},{label},{split}")
    (tmp_path / "t.csv").write_text("\n".join(["file,class,side", *rows]))
    columns = TableColumns(table=str(tmp_path / "t.csv"), split="side")
    pack(tmp_path / "src", tmp_path / "out", PackOptions(columns=columns))
    return tmp_path / "out"


def test_near_duplicates_are_listed_leaks_first(leaking):
    found = find_near_duplicates(Catalogue.open(leaking))
    assert (found.num_compared, found.num_unreadable) == (7, 0)
    assert (found.num_pairs, found.num_across_splits, found.num_across_classes) == (3, 1, 1)
    listed = [
        (p.first, p.first_split, p.first_label, p.second, p.second_split, p.second_label) for p in found.pairs
    ]
    assert listed == [
        ("a", "train", "ant", "b", "test", "ant"),
        ("c", "train", "ant", "d", "train", "owl"),
        ("e", "val", "owl", "f", "val", "owl"),
    ]
    assert found.pairs[2].distance == 0
    leak, conflict = found.flags
    assert leak.startswith(
        "1 pairs of near-duplicates are in different splits, such as 'a' (train, class 'ant') and 'b'"
    )
    assert conflict.startswith("1 pairs of near-duplicates are in different classes, such as 'c'")
    text = describe_near_duplicates(found)
    assert text.startswith(
        "compared    7 images: 3 pairs of near-duplicates, 1 across splits, 1 across classes\n"
    )
    assert "  a (train, ant)  b (test, ant)  distance" in text


def test_all_pairs_count_although_few_are_listed(leaking, monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_LISTED", 1)
    monkeypatch.setattr(duplicates, "_NUM_SHOWN", 1)
    found = find_near_duplicates(Catalogue.open(leaking))
    assert (found.num_pairs, found.num_across_splits, found.num_across_classes) == (3, 1, 1)
    assert [pair.first for pair in found.pairs] == ["a"]
    assert describe_near_duplicates(found).endswith("… 2 more; the JSON result lists up to 1")


def test_images_that_cannot_be_read_are_counted(leaking):
    catalogue = Catalogue.open(leaking)
    where = catalogue.locate([0])
    with open(leaking / catalogue.shards[int(where.shard[0])].name, "r+b") as shard:
        shard.seek(int(where.offset[0]))
        shard.write(b"no image")
    found = find_near_duplicates(catalogue)
    assert (found.num_compared, found.num_unreadable, found.num_across_splits) == (6, 1, 0)
    assert found.flags[-1].startswith("1 images could not be compared")


def test_a_clean_data_set_has_no_flags(tmp_path):
    for number in range(4):
        write(tmp_path / "src", f"ant/{number}.png", picture(number))
    pack(tmp_path / "src", tmp_path / "out", PackOptions())
    found = find_near_duplicates(Catalogue.open(tmp_path / "out"))
    assert (found.num_pairs, found.pairs, found.flags) == (0, [], [])
