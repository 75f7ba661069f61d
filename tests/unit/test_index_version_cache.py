"""Copies of an index's versions at an object store: checked, fetched again, shared by processes, limited in size."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from faulty_proxy import FaultyProxy

from index.base.errors import RequestError, VersionError
from index.base.object_cache import place_of, working_folder
from index.base.object_store import Bucket
from index.config import IndexConfig
from index.search import LocalIndex, open_index
from index.version_cache import bring_version
from index.versions import find_version, read_manifest
from index.writing.build import build

NUM, DIM = 400, 16
_SIZE_GB = NUM * DIM * 4 / (1 << 30)  # of the vectors; labels add an eighth
VECTORS = np.random.default_rng(0).standard_normal((NUM, DIM)).astype(np.float32)
LABELS = np.repeat(np.arange(10), NUM // 10)


@pytest.fixture
def published(s3: str, elsewhere: Callable[[str], None]) -> str:
    """An index at the store; this machine has no copy of it."""
    build(working_folder(s3), VECTORS, LABELS, config=IndexConfig(shards=2, keep_versions=5))
    elsewhere("node")
    return s3


@pytest.fixture
def proxied(published: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FaultyProxy]]:
    """Put a proxy before the store; the tags of objects say nothing of their bytes, as those of encrypted ones."""
    proxies: list[FaultyProxy] = []

    def start(**faults: float) -> FaultyProxy:
        proxies.append(FaultyProxy(os.environ["AWS_ENDPOINT_URL"], **faults))  # type: ignore[arg-type]
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxies[-1].address)
        return proxies[-1]

    monkeypatch.setattr(Bucket, "_compare", lambda *_: None)
    yield start
    for proxy in proxies:
        proxy.close()


def bring(address: str, *, verify: bool = True, cache_gb: float | None = None) -> Path:
    folder = find_version(working_folder(address))
    bring_version(folder, read_manifest(folder), verify=verify, cache_gb=cache_gb)
    return folder


def search(folder: Path) -> np.ndarray:
    return open_index(folder, verify=False).search(VECTORS[:20], 3).ids


def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the objects that are fetched from now on."""
    names: list[str] = []
    fetch = Bucket.fetch

    def noted(self: Bucket, key: str, path: Path) -> object:
        names.append(key.rpartition("/")[2])
        return fetch(self, key, path)

    monkeypatch.setattr(Bucket, "fetch", noted)
    return names


def test_a_version_is_fetched_once_and_compared_again_at_each_start(
    published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = fetched(monkeypatch)
    folder = bring(published)
    assert (
        sorted(names) == ["ids.npy", "labels.npy", "shard-00000.npy", "shard-00001.npy"]
        or "ids.npy" not in names
    )
    first = search(folder)
    assert (first[:, 0] == np.arange(20)).all()
    names.clear()
    damaged = folder / "shard-00001.npy"
    times = damaged.stat()
    with damaged.open("r+b") as file:
        file.seek(300)
        file.write(b"\xff\xff")
    os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk changes bytes by itself
    os.truncate(folder / "labels.npy", 100)
    bring(published)
    assert sorted(names) == ["labels.npy", "shard-00001.npy"]
    assert np.array_equal(search(folder), first)
    names.clear()
    bring(published)
    assert names == []


def test_wrong_and_cut_bytes_on_the_way_are_fetched_again(
    published: str, proxied: Callable[..., FaultyProxy]
) -> None:
    proxy = proxied()
    folder = find_version(working_folder(published))
    manifest = read_manifest(folder)
    proxy.changed, proxy.cut, proxy.most = 1.0, 1.0, 2
    bring_version(folder, manifest, verify=True)
    assert proxy.num_changed >= 2
    assert proxy.num_cut >= 2
    assert (search(folder)[:, 0] == np.arange(20)).all()


def test_an_object_that_is_damaged_at_the_store_is_refused_in_one_line(
    published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = find_version(working_folder(published))
    place = place_of(folder / "shard-00000.npy")
    assert place is not None
    found = place.bucket.get(place.key)
    assert found is not None
    place.bucket.put(place.key, found[0][:-1] + b"\x11")
    names = fetched(monkeypatch)
    with pytest.raises(
        VersionError, match="it was fetched three times, never with the manifest's checksum"
    ) as told:
        bring(published)
    assert "\n" not in str(told.value)
    assert names.count("shard-00000.npy") == 3
    assert not (folder / "shard-00000.npy").exists()
    assert not list(folder.glob(".*"))


def test_processes_of_one_machine_fetch_a_version_once(
    published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = fetched(monkeypatch)
    errors: list[BaseException] = []

    def bring_here() -> None:
        try:
            bring(published)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=bring_here) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(names) == len(set(names)) > 0


def test_a_process_that_is_killed_while_it_fetches_leaves_nothing_behind(
    published: str, proxied: Callable[..., FaultyProxy]
) -> None:
    proxy = proxied()
    proxy.stops.set()
    program = (
        "import sys; from pathlib import Path\n"
        "from index.versions import find_version, read_manifest\n"
        "from index.version_cache import bring_version\n"
        "folder = find_version(Path(sys.argv[1]))\n"
        "bring_version(folder, read_manifest(folder), verify=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, published])
    try:
        assert proxy.has_stopped.wait(60)
        folder = working_folder(published) / "versions" / "000001"
        for _ in range(200):
            if halves := list(folder.glob(".shard-*.tmp")):
                break
            threading.Event().wait(0.05)
        assert halves
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        process.kill()
        process.wait()
    proxy.stops.clear()
    assert not (folder / "shard-00000.npy").exists()
    for half in folder.glob(".*.tmp"):
        os.utime(half, (0, 0))  # otherwise it might be a file that is just being created
    assert bring(published) == folder
    assert not list(folder.glob(".*"))
    assert (search(folder)[:, 0] == np.arange(20)).all()


def test_old_versions_make_room_and_open_ones_are_kept(
    published: str, elsewhere: Callable[[str], None]
) -> None:
    gb = 2.5 * _SIZE_GB  # two versions, not three
    first = bring(published, cache_gb=gb)
    opened: list[LocalIndex] = [open_index(first, verify=False)]

    def publish() -> None:
        elsewhere("builder")
        build(working_folder(published), VECTORS, LABELS, config=IndexConfig(shards=2, keep_versions=5))
        elsewhere("node")

    publish()
    second = bring(published, cache_gb=gb)
    assert first.exists()
    opened.append(open_index(second, verify=False))
    publish()
    with pytest.raises(RequestError, match=r"versions that are open here have .* GiB \(raise it") as told:
        bring(published, cache_gb=gb)
    assert "\n" not in str(told.value)
    assert (opened[0].search(VECTORS[:5], 1).ids[:, 0] == np.arange(5)).all()
    del opened[0]
    third = bring(published, cache_gb=gb)
    assert not first.exists()
    assert second.exists()
    assert (search(third)[:, 0] == np.arange(20)).all()
    with pytest.raises(RequestError, match="does not fit into cache_gb=1e-06: version 3 has"):
        bring(published, cache_gb=1e-6)


def test_a_version_larger_than_the_disk_is_refused_before_it_is_fetched(
    published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    names = fetched(monkeypatch)
    usage = shutil.disk_usage(Path.home())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(RequestError, match=r"does not fit on the disk of .* GiB are missing, and"):
        bring(published)
    assert names == []
