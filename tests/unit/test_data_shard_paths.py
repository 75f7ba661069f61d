"""Which shards a folder or a pattern names: wildcards, braces as bash expands them, names that look like patterns."""

import os
import subprocess

import pytest

from fsl_dist.data.ingest.shards.shard_paths import find_shards
from fsl_dist.errors import DataError, RequestError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names):
    for name in names:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "wb"):
            pass


def names(pattern):
    return [str(path) for path in find_shards(str(pattern)).paths]


@pytest.mark.parametrize(
    "pattern",
    [
        "p-{000..002}.tar",
        "p-{2..0}.tar",
        "p-{0..10..5}.tar",
        "p-{8..011}.tar",
        "p-{10,000}.tar",
        "{p,q}-{0..1}.tar",
        "p-{a..c}.tar",
        "p-{c..a}.tar",
        "{d/x,e/y}-{0..1}.tar",
        "p-{-1..1}.tar",
        "p-{,0}1.tar",
        "{p{0..1},q}.tar",
        "{{p,q}-{0..1},r}.tar",
        "{a}-{b{c,d}.tar",
        "x{}y{1,2}.tar",
    ],
)
def test_braces_expand_as_in_bash(here, pattern):
    expected = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True
    ).stdout.split()
    touch(*expected)
    assert names(pattern) == expected


@pytest.mark.parametrize(
    "folder",
    [
        "export [2024]",
        "a*b",
        "what?",
        "{x,y}",
        "{000..002}",
        "[!a]",
        "[",
        "]",
        "**",
        "~",
        "$HOME",
        "%41",
        "ü b",
    ],
)
def test_a_path_that_exists_is_taken_as_it_is_written(here, folder):
    touch(f"{folder}/p-0.tar", f"{folder}/p-1.tar", f"{folder}/part [1].tar")
    # What the same text means as a pattern, to be skipped.
    touch(
        "export 2/p-0.tar",
        "aab/p-0.tar",
        "whatx/p-0.tar",
        "x/p-0.tar",
        "y/p-0.tar",
        "000/p-0.tar",
        "b/p-0.tar",
    )
    for root in (".", str(here)):
        path = os.path.normpath(os.path.join(root, folder))
        both = [f"{path}/p-0.tar", f"{path}/p-1.tar"]
        assert names(f"{path}/p-0.tar") == both[:1]
        assert names(f"{path}/part [1].tar") == [f"{path}/part [1].tar"]
        assert (
            names(f"{path}/p-{{0..1}}.tar") == names(f"{path}/p-*.tar") == names(f"{path}/p-[01].tar") == both
        )
        assert names(path) == [*both, f"{path}/part [1].tar"]


def test_wildcards_meet_files_and_what_is_written_goes_first(here):
    touch("s/p-1.tar", "s/p-[1].tar", "s/deep/p-2.tar", "s/x.tar/p-3.tar")
    assert names("s/p-[1].tar") == ["s/p-[1].tar"]
    assert names("s/p-[0-9].tar") == ["s/p-1.tar"]
    assert names("s/*.tar") == ["s/p-1.tar", "s/p-[1].tar"]  # x.tar is a folder
    assert names("s/**/p-?.tar") == ["s/deep/p-2.tar", "s/p-1.tar", "s/x.tar/p-3.tar"]
    assert names("?/deep/*") == ["s/deep/p-2.tar"]
    assert names("s/{deep,x.tar}") == ["s/deep/p-2.tar", "s/x.tar/p-3.tar"]  # folders that are named
    assert names("s/p-{1,1}.tar") == ["s/p-1.tar"]
    os.symlink("nowhere", "s/p-9.tar")
    found = find_shards("s/p-?.tar")
    assert list(map(str, found.paths)) == ["s/p-1.tar"]
    assert [(bad.path, bad.reason) for bad in found.bad] == [("s/p-9.tar", "is a link to a missing file")]


@pytest.mark.parametrize(
    ("pattern", "missing", "near"),
    [
        ("shards/part-{000..002}.tar", "shards/part-002.tar", "shards/part-001.tar"),
        ("shads/part-000.tar", "shads/part-000.tar", "shards"),
        ("shards/prat-*.tar", "shards/prat-*.tar", "shards/part-001.tar"),
        ("shards/part-00[5-9].tar", "shards/part-00[5-9].tar", "shards/part-001.tar"),
        ("zzz/*.tar", "zzz/*.tar", None),
        ("shards/part-{000..999999999999}.tar", "shards/part-000000000000.tar", "shards/part-000.tar"),
    ],
)
def test_a_pattern_that_names_nothing_says_what_is_there(here, pattern, missing, near):
    touch("shards/part-000.tar", "shards/part-001.tar")
    for root in ("", f"{here}/"):
        with pytest.raises(RequestError) as error:
            find_shards(root + pattern)
        text = str(error.value)
        assert text.startswith(f"shards '{root}{pattern}': '{root}{missing}' names no file")
        assert ("did you mean" in text) == (near is not None)
        assert near is None or f"(did you mean '{root}{near}'?)" in text


def test_a_folder_offers_its_shards_and_names_what_looks_like_one(here):
    taken = [
        "s/0.tar",
        "s/1.TAR",
        "s/deep/er/2.tar",
        "s/3.tar.gz",
        "s/4.tgz",
        "s/5.tar.zst",
        "s/6.tar.bz2",
        "s/7.tar.xz",
    ]
    refused = [
        "s/a.tar.part",
        "s/b.tar.crdownload",
        "s/c.tar.1",
        "s/d.tar?token=x",
        "s/e.tar.tmp",
        "s/f.tar~",
    ]
    passed = ["s/0_stats.json", "s/0.parquet", "s/0.tar.idx", "s/0.tar.md5", "s/0.tar.gz", "s/README"]
    touch(*taken, *refused, *passed, "s/.git/x.tar", "s/._0.tar")
    os.symlink("nowhere", "s/gone.tar")
    os.mkdir("elsewhere")
    os.symlink("../elsewhere", "s/linked")
    found = find_shards("s")
    assert sorted(map(str, found.paths)) == sorted(taken)
    assert {bad.path: bad.reason for bad in found.bad} == {
        **{
            os.path.basename(
                name
            ): "is skipped: its name does not end in .tar, as that of an unfinished download"
            for name in refused
        },
        "gone.tar": "is a link to a missing file",
        "linked": "is a link to a folder, which is not followed",
    }
    (note,) = found.notes
    assert note.startswith("'s': 6 files that are not named like shards were skipped (")


def test_a_folder_without_shards_is_refused(here):
    touch("s/readme.txt", "t/a.tar.part")
    os.symlink("nowhere", "broken.tar")
    with pytest.raises(RequestError, match=r"'broken.tar' is a link to a missing file; give"):
        find_shards("broken.tar")
    os.mkfifo("pipe.tar")  # as of `<(zcat a.tar.gz)`: no byte range of it can be read again
    with pytest.raises(RequestError, match=r"'pipe.tar' names no file"):
        find_shards("pipe.tar")
    with pytest.raises(RequestError, match=r"shards 's': the folder has no .tar files$"):
        find_shards("s")
    with pytest.raises(DataError, match=r"has no .tar files; a.tar.part is skipped"):
        find_shards("t")
