"""Tar headers that nobody vouches for: the same members as tarfile finds, or a refusal by name."""

import io
import os
import random
import tarfile

import pytest

from fsl_dist.data.ingest.tar_members import Member, list_members
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

    # Old GNU sparse: the map goes on in one more block before the content.
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
        "t.tar", "is damaged (byte 1536: bad checksum); what follows there is left out"
    )
    path.write_bytes(whole[:2500])
    assert "'b.jpg' reaches beyond the end of the file" in walk(path)[1].reason
    path.write_bytes(whole[:1800])
    assert "byte 1536: truncated header" in walk(path)[1].reason
    path.write_bytes(whole[:1536])  # no end mark, as some writers leave it
    assert len(walk(path)) == 1
    path.write_bytes(b"\x1f\x8b" + os.urandom(2000))
    assert "not a plain tar archive; a compressed one must be unpacked first" in walk(path)[0].reason
    path.write_bytes(b"")
    assert walk(path) == []


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
