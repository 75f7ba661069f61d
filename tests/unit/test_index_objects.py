"""Objects at s3://, against a real server on loopback: reads, conditional writes, and a server that is not there."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from index.base import files, object_store
from index.base.errors import RequestError, StorageError
from index.base.object_cache import place_of, working_folder
from index.base.object_store import Bucket, ConflictError


def bucket_at(place: str) -> tuple[Bucket, str]:
    found = place_of(working_folder(place))
    assert found is not None
    return found.bucket, found.key


def test_objects_are_written_read_listed_and_removed(s3: str, tmp_path: Path) -> None:
    bucket, key = bucket_at(s3)
    assert bucket.get(f"{key}/a") is None
    tag = bucket.put(f"{key}/a", b"0123456789")
    assert bucket.get(f"{key}/a") == (b"0123456789", tag)
    assert bucket.read_ranges(f"{key}/a", [2, 0], [5, 1]) == [b"234", b"0"]
    bucket.put(f"{key}/folder/c", b"")
    assert [(e.key, e.size_bytes) for e in bucket.entries(f"{key}/")] == [
        (f"{key}/a", 10),
        (f"{key}/folder/c", 0),
    ]
    assert bucket.names(f"{key}/") == ["a", "folder"]
    assert bucket.fetch(f"{key}/a", tmp_path / "a") == tag
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    bucket.delete([f"{key}/a", f"{key}/folder/c", f"{key}/never"])
    assert bucket.names(f"{key}/") == []


def test_of_many_writers_one_makes_an_object_and_one_replaces_it(s3: str) -> None:
    bucket, key = bucket_at(s3)

    def race(over: Any) -> list[bytes]:
        def write(number: int) -> bytes | None:
            try:
                bucket.put(key, b"%d" % number, over=over)
            except ConflictError:
                return None
            return b"%d" % number

        with ThreadPoolExecutor(8) as pool:
            return [data for data in pool.map(write, range(8)) if data is not None]

    won = race("nothing")
    found = bucket.get(key)
    assert found is not None
    assert won == [found[0]]
    changed = bucket.put(key, b"another", over=found[1])
    with pytest.raises(ConflictError):
        bucket.put(key, b"too late", over=found[1])
    assert bucket.get(key) == (b"another", changed)


def test_a_write_whose_answer_was_lost_is_no_conflict(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore
    from obstore.exceptions import GenericError

    bucket, key = bucket_at(s3)
    put, lost = obstore.put, []

    def lose_first(*arguments: Any, **settings: Any) -> Any:
        answer = put(*arguments, **settings)
        if not lost:
            lost.append(True)
            raise GenericError("Generic S3 error: connection closed before message completed")
        return answer

    monkeypatch.setattr(obstore, "put", lose_first)
    bucket.put(key, b"claimed", over="nothing")
    lost.clear()
    bucket.put(key + "-taken", b"other")
    with pytest.raises(ConflictError):
        bucket.put(key + "-taken", b"mine", over="nothing")


def fresh_bucket(place: str) -> tuple[Bucket, str]:
    """A bucket as a process that starts has it."""
    found = place_of(working_folder(place))
    assert found is not None
    return Bucket(found.endpoint, found.scheme, found.bucket_name), found.key


def test_an_unreachable_store_is_one_line_after_a_few_seconds(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_FIRST_S", 0.2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    bucket, key = fresh_bucket(s3)
    with pytest.raises(
        RequestError, match=r"does not answer \(.*\), retried for .* nothing was started"
    ) as error:
        bucket.get(key)
    assert "\n" not in str(error.value)


def test_a_bucket_that_is_not_there_is_refused_by_reads_and_writes(s3: str) -> None:
    for ask in (
        lambda bucket: bucket.get("a"),
        lambda bucket: bucket.names("a/"),
        lambda bucket: bucket.put("a", b"", over="nothing"),
    ):
        bucket, _ = fresh_bucket("s3://no-such-bucket/a")
        with pytest.raises(
            RequestError, match=r"s3://no-such-bucket at http.* does not exist; create the bucket first"
        ):
            ask(bucket)


def test_missing_rights_are_told_without_the_secret(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "denied")
    bucket, key = fresh_bucket(s3)
    with pytest.raises(RequestError, match=r"no rights at s3://.* \(status 403 Access Denied\)") as error:
        bucket.put(key, b"", over="nothing")
    assert "do-not-tell" not in str(error.value)
    assert "denied" not in str(error.value)


def test_a_store_without_conditional_writes_is_refused(
    tmp_path: Path, s3: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = type(s3_server)(tmp_path / "journal.plain")
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", plain.address)
        with pytest.raises(RequestError, match="has no conditional writes"):
            files.Owner.claim(working_folder(s3))
    finally:
        plain.kill()


def test_a_store_that_goes_away_is_waited_for_and_said_once(
    tmp_path: Path, s3: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = type(s3_server)(tmp_path / "journal")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    bucket, key = fresh_bucket(s3)
    bucket.put(key, b"kept")
    server.kill()
    starter = threading.Timer(1.0, server.start)
    starter.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: bucket.get(key), range(4)))
    finally:
        starter.join()
        server.kill()
    assert [data for data, _ in filter(None, found)] == [b"kept"] * 4
    told_lines = [
        record.getMessage() for record in caplog.records if record.name == "index.base.object_store"
    ]
    assert len(told_lines) == 2
    assert "does not answer" in told_lines[0]
    assert "answers again" in told_lines[1]
    monkeypatch.setattr(object_store, "_PATIENCE_S", 0.2)
    with pytest.raises(StorageError, match="the same command resumes"):
        bucket.get(key)
