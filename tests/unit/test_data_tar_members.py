"""Tar headers that nobody vouches for: the same members as tarfile finds, or a refusal by name."""

import bz2
import gzip
import io
import lzma
import os
import random
import tarfile

import pytest

from fsl_dist.data.ingest.shards.tar_members import Member, NextArchive, list_members
from fsl_dist.data.write_report import BadSample


def write_tar(path, members, kind=tarfile.PAX_FORMAT):
    """members: (name, content), or a TarInfo without content."""
    with tarfile.open(path, "w", format=kind) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def walk(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return list(list_members(descriptor, path.name))
    finally:
        os.close(descriptor)


def special(name, kind, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(tmp_path, kind):
    names = ["a.jpg", "deep/" * 20 + "b.png", "ü/猫.jpg", "empty.cls"]
    if kind != tarfile.USTAR_FORMAT:
        names.append("long" * 60 + ".jpg")
    path = write_tar(
        tmp_path / "t.tar", [(name, name.encode() * 40 * bool(i - 3)) for i, name in enumerate(names)], kind
    )
    with tarfile.open(path) as tar:
        expected = [Member(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    assert walk(path) == expected
    assert [m.name for m in expected] == names


def test_what_could_reach_elsewhere_is_refused_by_name(tmp_path):
    members = [
        ("ok.jpg", b"1"),
        ("../up.jpg", b"2"),
        ("a/../../up.jpg", b"2"),
        ("/etc/up.jpg", b"3"),
        special("link.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"),
        special("hard.jpg", tarfile.LNKTYPE, linkname="ok.jpg"),
        special("null.jpg", tarfile.CHRTYPE),
        special("disk.jpg", tarfile.BLKTYPE),
        special("pipe.jpg", tarfile.FIFOTYPE),
        special("odd.jpg", b"Z"),
        special("folder", tarfile.DIRTYPE),
        ("fine/..jpg", b"4"),
    ]
    found = walk(write_tar(tmp_path / "t.tar", members))
    assert [m.name for m in found if isinstance(m, Member)] == ["ok.jpg", "fine/..jpg"]
    assert {m.path: m.reason for m in found if isinstance(m, BadSample)} == {
        "t.tar:../up.jpg": "leaves its folder by '..'",
        "t.tar:a/../../up.jpg": "leaves its folder by '..'",
        "t.tar:/etc/up.jpg": "has an absolute name",
        "t.tar:link.jpg": "is a symbolic link",
        "t.tar:hard.jpg": "is a hard link",
        "t.tar:null.jpg": "is a device",
        "t.tar:disk.jpg": "is a device",
        "t.tar:pipe.jpg": "is a pipe",
        "t.tar:odd.jpg": "is of the unknown kind b'Z'",
    }


def test_sparse_members_are_refused_and_the_walk_goes_on(tmp_path):
    sparse = special("holes.jpg", tarfile.REGTYPE, size=4)
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9000"}
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(sparse, io.BytesIO(b"abcd"))
        after = tarfile.TarInfo("after.jpg")
        tar.addfile(after)
    refused, member = walk(tmp_path / "t.tar")
    assert (refused.path, refused.reason[:9]) == ("t.tar:holes.jpg", "is sparse")
    assert member.name == "after.jpg"

    # Old GNU sparse: the map continues in one more block before the content.
    header = bytearray(special("old.jpg", tarfile.GNUTYPE_SPARSE, size=512).tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    after = tarfile.TarInfo("after.jpg").tobuf()
    (tmp_path / "old.tar").write_bytes(bytes(header) + bytes(512) + b"x" * 512 + after + bytes(1024))
    refused, member = walk(tmp_path / "old.tar")
    assert (refused.path, member.name) == ("old.tar:old.jpg", "after.jpg")


def test_damage_ends_the_list_with_its_place(tmp_path):
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b"x" * 700), ("b.jpg", b"y" * 700)], tarfile.USTAR_FORMAT)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[1536 + 3] ^= 1  # in the second header
    path.write_bytes(flipped)
    member, damage = walk(path)
    assert member.name == "a.jpg"
    assert damage == BadSample(
        "t.tar", "is damaged at byte 1536 of 10240 (bad checksum); everything after it is left out"
    )


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_cut_is_named_wherever_it_is(tmp_path, kind):
    members = [("a.jpg", b"x" * 700), ("b/" * 60 + "b.cls", b"1"), ("ü" * 70 + ".jpg", b"z" * 512)]
    names = [name for name, _ in members[: 2 if kind == tarfile.USTAR_FORMAT else 3]]
    path = write_tar(tmp_path / "t.tar", members[: len(names)], kind)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        ends = [(member.name, member.offset_data + member.size) for member in tar.getmembers()]
    end_mark = -(-ends[-1][1] // 512) * 512
    for length in range(0, end_mark + 2048, 128):
        path.write_bytes(whole[:length])
        found = walk(path)
        sound = [member.name for member in found if isinstance(member, Member)]
        assert sound == [name for name, end in ends if end <= length], length
        bad = [member.reason for member in found if isinstance(member, BadSample)]
        if length >= end_mark + 1024:  # two blocks of zeros: whatever follows them is padding
            assert bad == []
        else:
            assert len(bad) == 1, length
            # Without the magic at byte 257 nothing tells that it was one.
            kind = "is empty" if length == 0 else "is not a tar file" if length < 262 else "is cut"
            assert bad[0].startswith(kind), length


ZEROS = bytes(1024)
NOT_TAR = {
    "nothing": (b"", "is empty: it has 0 bytes"),
    "end mark alone": (ZEROS, "is empty: a tar file without members (1024 zero bytes)"),
    "zeros of a download": (bytes(3 << 20), "is empty: a tar file without members (3145728 zero bytes)"),
    "gzip": (
        gzip.compress(ZEROS),
        "compressed with gzip: byte ranges cannot be read in it, so unpack it with `gunzip`",
    ),
    "bzip2": (bz2.compress(ZEROS), "compressed with bzip2"),
    "xz": (lzma.compress(ZEROS), "compressed with xz"),
    "lzma": (lzma.compress(ZEROS, lzma.FORMAT_ALONE), "compressed with lzma"),
    "zstd": (b"\x28\xb5\x2f\xfd" + os.urandom(600), "compressed with zstd"),
    "lz4": (b"\x04\x22\x4d\x18" + os.urandom(600), "compressed with lz4"),
    "zip": (b"PK\x03\x04" + bytes(600), "a zip archive"),
    "error page": (b"\n<!DOCTYPE html>\n<title>404 Not Found</title>", "an HTML page: the download failed"),
    "long error page": (b"<html>" + b"sorry " * 500, "an HTML page: the download failed"),
    "store's error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML page"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a git-lfs pointer"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + os.urandom(900), "is not a tar file"),
    "short text": (b"hello", "is not a tar file"),
}


@pytest.mark.parametrize("case", NOT_TAR)
def test_what_is_no_tar_file_is_named_for_what_it_is(tmp_path, case):
    content, reason = NOT_TAR[case]
    (tmp_path / "t.tar").write_bytes(content)
    (bad,) = walk(tmp_path / "t.tar")
    assert bad.path == "t.tar"
    assert reason in bad.reason


def test_joined_archives_are_read_whole_at_their_byte_ranges(tmp_path):
    """As `cat a.tar b.tar` makes them, whatever the padding of the first; what follows and is no archive is damage."""
    first = write_tar(tmp_path / "a.tar", [("a.jpg", b"x" * 700)]).read_bytes()
    second = write_tar(tmp_path / "b.tar", [("b.jpg", b"y" * 300)], tarfile.USTAR_FORMAT).read_bytes()
    joined = tmp_path / "t.tar"
    for padding in (first[:1536] + bytes(512), first[:1536] + ZEROS, first, first + bytes(1 << 19)):
        joined.write_bytes(padding + second + first)
        found = walk(joined)
        starts = [len(padding), len(padding) + len(second)]
        assert [m.offset for m in found if isinstance(m, NextArchive)] == starts
        assert not [m for m in found if isinstance(m, BadSample)]
        assert [(m.name, m.offset, m.size) for m in found if isinstance(m, Member)] == [
            ("a.jpg", 512, 700),
            ("b.jpg", starts[0] + 512, 300),
            ("a.jpg", starts[1] + 512, 700),
        ]
        joined.write_bytes(ZEROS + second)  # an empty archive before it is no loss
        assert [type(m) for m in walk(joined)] == [Member]
    for after, reason in (
        (
            b"junk" * 200,
            f"is damaged at byte {len(first)} of {len(first) + 800} (no archive follows its end mark)",
        ),
        (
            gzip.compress(second),
            f"contains a file compressed with gzip from byte {len(first)} on, which is left out",
        ),
        (second[:700], "is cut: 'b.jpg' reaches beyond its end"),
        (second[:1024], "without the end mark"),
    ):
        joined.write_bytes(first + after)
        found = walk(joined)
        assert found[0] == Member("a.jpg", 512, 700)
        assert reason in found[-1].reason


def test_a_download_whose_rest_is_zeros_is_named(tmp_path):
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b"x" * 700)])
    path.write_bytes(path.read_bytes() + bytes(1 << 20))
    member, bad = walk(path)
    assert member.name == "a.jpg"
    assert bad.reason.startswith("is damaged: all of its 1057280 bytes from byte 1536 on are zero")


def test_sizes_beyond_octal_digits_are_read(tmp_path):
    """Above 8 GiB a GNU header holds the size in base 256, a pax header in a record. The file is sparse."""
    size = 9 << 30
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        head = special("huge.jpg", tarfile.REGTYPE, size=size).tobuf(kind)
        tail = special("b.jpg", tarfile.REGTYPE).tobuf(tarfile.USTAR_FORMAT)
        with (tmp_path / "t.tar").open("wb") as file:
            file.write(head)
            file.seek(len(head) + size)
            file.write(tail + ZEROS)
        assert walk(tmp_path / "t.tar") == [
            Member("huge.jpg", len(head), size),
            Member("b.jpg", len(head) + size + 512, 0),
        ]
        os.truncate(tmp_path / "t.tar", 1 << 20)
        assert [m.reason for m in walk(tmp_path / "t.tar")] == [
            "is cut: 'huge.jpg' reaches beyond its end at byte 1048576"
        ]


def test_members_of_an_archive_older_than_ustar(tmp_path):
    """V7: no magic, folders are names that end in a slash, types are a zero byte."""
    blocks = b""
    for name, content in (("d/", b""), ("d/a.jpg", b"abc"), ("d/a.cls", b"1")):
        header = bytearray(special(name, tarfile.AREGTYPE, size=len(content)).tobuf(tarfile.USTAR_FORMAT))
        header[257:512] = bytes(255)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        blocks += bytes(header) + content.ljust(512 * bool(content), b"\0")
    (tmp_path / "t.tar").write_bytes(blocks + ZEROS)
    assert walk(tmp_path / "t.tar") == [Member("d/a.jpg", 1024, 3), Member("d/a.cls", 2048, 1)]


@pytest.mark.parametrize(
    "record", [b"9999999999999 path=x\n", b"x path=a\n", b"3 \n", b"12 path=abc\n\n", b"16 size=9999999\n"]
)
def test_wild_pax_records_are_damage(tmp_path, record):
    info = special("head", tarfile.XHDTYPE, size=len(record)).tobuf()
    after = tarfile.TarInfo("a.jpg").tobuf()
    path = tmp_path / "t.tar"
    path.write_bytes(info + record.ljust(512, b"\0") + after + bytes(1024))
    assert [type(m) for m in walk(path)] == [BadSample]


def test_names_that_are_no_text_are_refused_and_printable(tmp_path):
    info = bytearray(tarfile.TarInfo("a.jpg").tobuf())
    info[0] = 0xFF
    info[148:156] = b" " * 8
    info[148:156] = b"%06o\0 " % sum(info)
    (tmp_path / "t.tar").write_bytes(bytes(info) + bytes(1024))
    (refused,) = walk(tmp_path / "t.tar")
    assert refused == BadSample("t.tar:?.jpg", "has a name that is not UTF-8 text")


def test_no_header_makes_the_walk_fail_or_leave_the_file(tmp_path):
    names = ["é" * 70 + ".jpg", "b.jpg", "c" * 120 + ".jpg"]
    draw = random.Random(0)
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        whole = write_tar(tmp_path / "t.tar", [(name, b"x" * 600) for name in names], kind).read_bytes()
        for _ in range(150):
            changed = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                changed[draw.randrange(len(changed))] = draw.randrange(256)
            for start in range(0, len(changed), 512):  # right checksums, so that the changes are looked at
                header = changed[start : start + 512]
                if header[257:262] == b"ustar":
                    header[148:156] = b" " * 8
                    header[148:156] = b"%06o\0 " % sum(header)
                    changed[start : start + 512] = header
            (tmp_path / "t.tar").write_bytes(changed)
            for member in walk(tmp_path / "t.tar"):
                if isinstance(member, Member):
                    assert 0 <= member.offset <= member.offset + member.size <= len(changed)
