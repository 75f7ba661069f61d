"""Keys of samples: different paths never share one, one path always has the same, and WebDataset reads them as they are."""

import os
import re
import tarfile
import unicodedata

import pytest
from dataset_files import encode_noise, write_images
from hypothesis import example, given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_iterator

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.ingest import listing, pack
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.resplit import ResplitOptions, resplit
from fsl_dist.data.names.keys import make_earlier_key, make_key
from fsl_dist.errors import RequestError

UNCHANGED = [
    "owl/0001",
    "owl-2/A_b-9",
    "bee/worker/000",
    "猫/写真",
    "कि/के",
    "กิ/กู",
    "தமிழ்/கி",
    "قِطّ/صُورة",
    "Ελλάδα/ή",
    "x/" + "é" * 44,
]
"""paths without extension that need no change; all but the marks had these keys under the earlier rule too"""

CHANGED = {
    "white space": [f"a/x{space}y" for space in (" ", "  ", "\t", "\n", "\r", "\xa0", "\u3000")],
    "signs": [f"a/x{sign}y" for sign in "#%*?\\\"'&$!;:,=+@~()[]{}<>|^`"],
    "dots": ["a/x.y", "a/x..y", "a/x.", "a/x..", "a/.x", "a/..x", "a.b/x", "a./x"],
    "emoji": ["😀/x", "😁/x", "😀😁/x", "😁😀/x", "👩‍👧/x", "👩👧/x", "❤️/x", "❤/x"],
    "look-alikes of a slash": ["a∕b/x", "a⁄b/x", "a／b/x", "a⧸b/x"],
    "invisible characters": ["a\u200b/x", "a\ufeff/x", "a\u200d/x", "a\u00ad/x", "a\x01/x", "a\x7f/x"],
    "forms of Unicode": [unicodedata.normalize("NFD", "é/x"), unicodedata.normalize("NFD", "가/x")],
    "bytes that are not UTF-8": [os.fsdecode(name) for name in (b"na\xefve/x", b"na\xeeve/x", b"\x83\x5c/x")],
    "too long": [f"{'n' * 90}/{number}/{'x' * 90}" for number in range(3)]
    + ["語" * 31 + "/x", "誤" * 31 + "/x"],
    "names of WebDataset": ["__meta__/x", "____/x", "__a b__/x", "😀😁🚗🚕/x", "__a____b__/x"],
    "drives of Windows": ["C:/x", "C:\\x", "a/C:x"],
}
"""kind → paths without extension that need a change, with many that would be equal after it"""

ALL_CHANGED = [path for paths in CHANGED.values() for path in paths]


@pytest.mark.parametrize("stem", UNCHANGED)
def test_a_path_that_needs_no_change_is_its_key(stem):
    assert make_key(f"{stem}.jpg") == stem
    assert re.search("[^\\w/-]", stem) or make_earlier_key(f"{stem}.jpg") == stem


def test_different_paths_have_different_keys():
    stems = [*UNCHANGED, *ALL_CHANGED, "a/x_y", "_/x", "__/x", "é/x", "a_b/x", "_meta__/x", "C_/x"]
    keys = [make_key(f"{stem}.jpg") for stem in stems]
    assert len(set(keys)) == len(set(stems)) == len(stems)
    folded = [make_key(f"a/{name}.jpg") for name in ("X", "x", "straße", "STRASSE", "İ", "i")]
    assert len(set(folded)) == 6
    hashed = [make_key(f"a/x.{ending}", with_hash=True) for ending in ("jpg", "png", "JPG", "jpeg")]
    assert len({*hashed, make_key("a/x.jpg")}) == 5


@pytest.mark.parametrize("kind", CHANGED)
def test_changed_keys_are_safe(kind):
    for stem in CHANGED[kind]:
        assert_safe(make_key(f"{stem}.jpg"))


def assert_safe(key):
    assert re.search(r"~[0-9a-f]{16}$", key)
    name = f"{key}.mask.png"
    assert len(name.encode()) <= 100
    assert base_plus_ext(name) == (key, "mask.png")
    assert not re.match(r"__[^/]*__($|/)", name)
    assert not key.startswith("/")
    assert all(
        character.isalnum() or character in "_-/~" or unicodedata.category(character)[0] == "M"
        for character in key
    )


PART = st.text(
    st.one_of(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), st.sampled_from("a_. ~-é\udcef")
    ),
    min_size=1,
    max_size=60,
).filter(lambda name: name not in (".", ".."))
PATH = st.lists(PART, min_size=2, max_size=4).map(lambda parts: "/".join(parts) + ".png")


@given(first=PATH, second=PATH)
@example(first="b/x.png", second="b::" + "0" * 16 + "::/" + "0" * 62 + "/x.png")
@example(first="a/b c.png", second="a/b_c.png")
@example(first="a/b~0.png", second="a/b.png")
def test_keys_of_any_two_paths(first, second):
    one, other = make_key(first), make_key(second)
    assert (one == other) == (first == second)
    for key, path in ((one, first), (other, second)):
        if key != path.removesuffix(".png"):
            assert_safe(key)


def pack_folder(source, out, **options):
    return pack.pack(source, out, PackOptions(processes=1, **options))


def write_stems(root, stems, ending="png"):
    """One image for each path, no two alike."""
    for number, stem in enumerate(stems):
        path = os.path.join(os.fsencode(root), os.fsencode(stem))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + b"." + ending.encode(), "wb") as file:
            file.write(encode_noise([number, *ending.encode()], "PNG"))
    return root


PACKED = [
    stem
    for stem in [*UNCHANGED, *ALL_CHANGED, "a/x_y", "a_b/x"]
    # names that the disk does not take, and hidden ones, which pack passes over
    if max(len(os.fsencode(part)) for part in stem.split("/")) < 250 and "/" in stem and "/." not in stem
]


def test_webdataset_reads_every_image_under_its_key(tmp_path):
    source = write_stems(tmp_path / "src", PACKED)
    report = pack_folder(source, tmp_path / "out")
    assert (report.num_samples, report.bad_samples) == (len(PACKED), ())
    shard = str(tmp_path / "out/shards/shard-000000.tar")
    with open(shard, "rb") as file:
        members = [{**member, "__url__": shard} for member in tar_file_iterator(file)]
    read = {sample["__key__"]: sample["png"] for sample in group_by_keys(members)}
    assert read == {
        make_key(f"{stem}.png"): encode_noise([number, *b"png"], "PNG") for number, stem in enumerate(PACKED)
    }
    assert sorted(read) == sorted(Catalogue.open(tmp_path / "out").keys(range(len(PACKED))))
    with tarfile.open(shard) as tar:
        assert all(len(name.encode()) <= 100 for name in tar.getnames())


def test_files_that_differ_in_the_extension_are_two_images(tmp_path):
    source = write_stems(tmp_path / "src", ["a/x", "a/y"])
    out = tmp_path / "out"
    pack_folder(source, out)  # x.png and y.png have no companions yet
    write_stems(source, ["a/x"], "jpg")
    write_stems(source, ["a/x"], "PNG")
    added = pack.append(source, out, PackOptions(processes=1))
    assert {bad.path: bad.reason for bad in added.bad_samples} == {
        path: f"duplicate key '{path[:-4]}', already in the data set" for path in ("a/x.png", "a/y.png")
    }
    keys = {make_key(f"a/x.{ending}", with_hash=True) for ending in ("jpg", "PNG")}
    assert set(Catalogue.open(out).keys(range(4))) == {"a/x", "a/y", *keys}
    with pytest.raises(RequestError, match="none of the 4 samples can be used"):
        pack.append(source, out, PackOptions(processes=1))
    fresh = pack_folder(source, tmp_path / "fresh")
    assert (fresh.num_samples, fresh.bad_samples) == (4, ())
    assert set(Catalogue.open(tmp_path / "fresh").keys(range(4))) > keys
    (source / "a/x.jpg").rename(tmp_path / "x.jpg")
    (source / "a/x.PNG").unlink()
    with pytest.raises(RequestError, match="none of the 2 samples"):  # x.png alone is still known by its hash
        pack.append(source, tmp_path / "fresh", PackOptions(processes=1))


@pytest.fixture
def packed_earlier(tmp_path, monkeypatch):
    """A data set with the keys of the earlier rule, and its source."""
    source = write_stems(
        tmp_path / "src", ["a/x y", "a/x_z", "कि/x", "é/x", unicodedata.normalize("NFD", "ö/x")]
    )
    out = tmp_path / "out"

    class Earlier(PackOptions):
        @property
        def record(self):
            return {
                name: value for name, value in PackOptions.record.fget(self).items() if name != "key_rule"
            }

    with monkeypatch.context() as patch:
        patch.setattr(listing, "make_key", lambda path, with_hash=False: make_earlier_key(path))
        pack.pack(source, out, Earlier(processes=1))
    assert set(Catalogue.open(out).keys(range(5))) == {"a/x_y", "a/x_z", "क_/x", "é/x", "ö/x"}
    return source, out


def test_an_append_knows_images_by_their_earlier_keys(packed_earlier, tmp_path):
    source, out = packed_earlier
    with pytest.raises(RequestError, match=r"none of the 5 samples .* already in the data set"):
        pack.append(source, out, PackOptions(processes=1))
    # Other images whose earlier keys would have been the same ones.
    more = write_stems(tmp_path / "more", ["b/x", "b/x", "a/x.y", "कु/x"])
    report = pack.append(more, out, PackOptions(processes=1))
    assert (report.num_samples, report.bad_samples) == (3, ())
    assert "key_rule" not in Catalogue.open(out).options
    with pytest.raises(RequestError, match="none of the 3 samples"):
        pack.append(more, out, PackOptions(processes=1))


def test_a_table_finds_samples_by_path_under_either_rule(packed_earlier, tmp_path):
    source, out = packed_earlier
    pack_folder(source, tmp_path / "now")
    (tmp_path / "t.csv").write_text(
        "file,class\na/x y.png,p\n./a\\x_z.png,p\nकि/x.png,q\n%C3%A9/x.png,q\nö/x.png,q\n"
    )
    options = ResplitOptions(table=str(tmp_path / "t.csv"), path_column="file", label_column="class")
    for dataset in (out, tmp_path / "now"):
        report = resplit(dataset, options)
        assert (report.num_samples, report.bad_samples) == (5, ())


def test_a_class_keeps_its_keys_whatever_comes_with_it(tmp_path):
    one = write_images(tmp_path / "one", {"a b": 3})
    two = write_images(tmp_path / "two", {"a b": 3, "a_b": 3, "a.b": 3})
    pack_folder(one, tmp_path / "out1")
    report = pack_folder(two, tmp_path / "out2", order="class")
    assert report.num_samples == 9
    assert set(Catalogue.open(tmp_path / "out1").keys(range(3))) < set(
        Catalogue.open(tmp_path / "out2").keys(range(9))
    )
