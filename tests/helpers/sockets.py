"""Which addresses the processes below a process listen on, from /proc."""

import ipaddress
import sys
from dataclasses import dataclass
from pathlib import Path

from sweep_processes import descendants

_LISTEN = "0A"


@dataclass(frozen=True)
class Listening:
    """A TCP socket that takes connections."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    process: int
    title: str


def listening_sockets(pid: int) -> list[Listening]:
    """The listening TCP sockets of process `pid` and all below it."""
    owners: dict[str, tuple[int, str]] = {}
    for process, title in [(pid, "the process itself"), *descendants(pid)]:
        for descriptor in Path(f"/proc/{process}/fd").glob("*"):
            try:
                target = str(descriptor.readlink())
            except OSError:
                continue  # closed meanwhile
            if target.startswith("socket:["):
                owners.setdefault(target[8:-1], (process, title))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == _LISTEN and inode in owners:
                address, port = local.split(":")
                found.append(Listening(_address_of(address), int(port, 16), *owners[inode]))
    return found


def _address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address of /proc/net/tcp: words of 32 bits, each in this machine's order of bytes."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    if len(packed) == 4:
        return ipaddress.IPv4Address(packed)
    address = ipaddress.IPv6Address(packed)
    return address.ipv4_mapped or address
