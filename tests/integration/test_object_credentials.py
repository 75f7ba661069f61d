"""Credentials that end after seconds, against moto's S3 and STS: renewed by token file, instance and container, or not at all."""

import json
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import write_certificates
from commands import GREY_16_PX, PROGRAM

from index.base.errors import RequestError, StorageError
from index.base.object_store import Bucket

pytestmark = pytest.mark.integration

LIFETIME_S = 1.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def store(certificates: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from object_store import ObjectStore

    journal = tmp_path_factory.mktemp("s3") / "journal"
    server = ObjectStore(journal, lifetime_s=LIFETIME_S, certificate=certificates[1])
    yield server
    server.kill()


@contextmanager
def renewing(path: Path) -> Iterator[None]:
    """Keep a fresh token in a file during the block, replaced in one step as kubelet does."""
    is_over = threading.Event()

    def write() -> None:
        path.with_suffix(".new").write_text(f"token-{time.time()}")
        path.with_suffix(".new").replace(path)

    def renew() -> None:
        while not is_over.wait(LIFETIME_S / 4):
            write()

    write()
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def variables(kind: str, store: Any, token: Path, authority: Path) -> dict[str, str]:
    """The environment of a process with credentials of this kind."""
    common = {"AWS_ENDPOINT_URL": store.address, "AWS_REGION": "us-east-1"}
    if kind == "web identity":
        return common | {
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
            "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/training",
            "AWS_ENDPOINT_URL_STS": f"https://localhost:{store.tls_port}",
            "SSL_CERT_FILE": str(authority),
        }
    if kind == "container":
        return common | {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{store.address}/container-credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token),
        }
    if kind == "instance":
        return common | {"AWS_METADATA_ENDPOINT": store.address}
    with urllib.request.urlopen(f"{store.address}/latest/meta-data/iam/security-credentials/role") as found:
        keys = json.load(found)
    names = {"AWS_ACCESS_KEY_ID": "AccessKeyId", "AWS_SECRET_ACCESS_KEY": "SecretAccessKey"}
    return common | {name: keys[key] for name, key in (names | {"AWS_SESSION_TOKEN": "Token"}).items()}


@pytest.fixture
def bucket_with(
    store: Any, certificates: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Bucket]:
    """Open the bucket with credentials of a kind; its token file is tmp_path/token."""

    def open_bucket(kind: str) -> Bucket:
        for name in list(os.environ):
            if name.startswith("AWS_"):
                monkeypatch.delenv(name)
        for name, value in variables(kind, store, tmp_path / "token", certificates[0]).items():
            monkeypatch.setenv(name, value)
        return Bucket(store.address, "s3", store.bucket)

    return open_bucket


def used(store: Any) -> dict[str, int]:
    """How many different keys and tokens the server was shown."""
    with urllib.request.urlopen(f"{store.address}/_used") as found:
        counts: dict[str, int] = json.load(found)
        return counts


@pytest.mark.parametrize("kind", ["web identity", "container", "instance"])
def test_credentials_are_renewed_for_as_long_as_they_are_needed(
    kind: str, store: Any, bucket_with: Callable[[str], Bucket], tmp_path: Path
) -> None:
    before = used(store)
    with renewing(tmp_path / "token"):
        bucket, until = bucket_with(kind), time.monotonic() + 1.5 * LIFETIME_S
        while time.monotonic() < until:
            bucket.put("a", b"one")
            assert bucket.get("a") is not None
            time.sleep(0.05)
    assert used(store)["keys"] >= before["keys"] + 3
    assert kind == "instance" or used(store)["tokens"] >= before["tokens"] + 3


def test_what_is_not_renewed_is_told_in_one_line(
    store: Any, bucket_with: Callable[[str], Bucket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.base.object_store._FIRST_S", 0.3)  # the time for new ones
    bucket = bucket_with("secret")
    bucket.put("a", b"one")
    time.sleep(LIFETIME_S + 0.5)
    with pytest.raises(StorageError, match=r"have expired .*the same command resumes with new ones") as told:
        bucket.put("a", b"two")
    assert "\n" not in str(told.value)
    (tmp_path / "token").write_text("token-1")
    with pytest.raises(RequestError, match=r"have expired .*a token file that is renewed") as told:
        bucket_with("web identity").get("a")
    assert "\n" not in str(told.value)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_run_outlives_many_tokens(
    store: Any, certificates: tuple[Path, Path], digits: Path, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= variables("web identity", store, token, certificates[0])
    environment["FSL_DIST_CACHE"] = str(tmp_path / "cache")
    run = f"s3://{store.bucket}/runs/first"
    settings = [
        *GREY_16_PX,
        "data.decoder=torchvision",
        "data.flip=false",
        "backbone.name=conv4",
        "backbone.width=8",
        "method.kind=cross_entropy",
        "training.batch_size=12",
        "training.epochs=12",
        "training.patience=0",
        "training.checkpoint_steps=2",
        "run.trackers=[]",
    ]
    before = used(store)
    with renewing(token):
        done = subprocess.run(
            [PROGRAM, "train", *settings, f"data.dataset={digits}", f"run.dir={run}", "--json"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=150,
        )
    assert done.returncode == 0, done.stderr
    trained = json.loads(done.stdout)
    assert trained["epochs"] == 12
    assert trained["seconds"] > 3 * LIFETIME_S, "too short to outlive a key"
    after = used(store)
    assert after["keys"] >= before["keys"] + 5
    assert after["tokens"] >= before["tokens"] + 5
