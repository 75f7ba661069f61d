"""The commands of `fsl-dist index`: files in, files out, one JSON object, one-line errors."""

import json
import socket
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest

from cluster.commands.index import index_group

call = partial(commands.call, index_group)
refusal = partial(commands.refusal, index_group)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    np.save(tmp_path / "X.npy", rng.standard_normal((50, 6)).astype(np.float32))
    np.save(tmp_path / "Y.npy", rng.integers(0, 4, 50).astype(np.uint8))
    np.save(tmp_path / "I.npy", np.arange(50))
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    return tmp_path


def test_build_search_status(arrays: Path) -> None:
    out = arrays / "index"
    built = call(
        "build", "--vectors", arrays / "X.npy", "--labels", arrays / "Y.npy", out, "shards=2", "--json"
    )
    assert built.exit_code == 0
    described = json.loads(built.stdout)
    assert (described["num_vectors"], described["dim"], described["shards"]) == (50, 6, 2)
    searched = call(
        *("search", out, "--queries", arrays / "X.npy", "--k", 20, "--filter", "same_class"),
        *("--query-labels", arrays / "Y.npy", "--query-ids", arrays / "I.npy", "--out", arrays / "R.npz"),
        "--json",
    )
    assert searched.exit_code == 0
    with np.load(arrays / "R.npz", allow_pickle=False) as answers:
        ids, distances = answers["ids"], answers["distances"]
    labels = np.load(arrays / "Y.npy")
    assert (ids.dtype, ids.shape, distances.dtype) == (np.int64, (50, 20), np.float32)
    assert json.loads(searched.stdout)["num_missing"] == (ids == -1).sum() > 0
    assert all((labels[row[row >= 0]] == label).all() for row, label in zip(ids, labels, strict=True))
    assert not (ids == np.arange(50)[:, None]).any()
    assert described["factory"] == "Flat"
    assert json.loads(call("status", out, "--verify", "--json").stdout) == described
    assert "version 1, 50 vectors of 6 numbers" in call("status", out).stdout


def test_bad_requests_are_one_line(arrays: Path) -> None:
    vectors = ("--vectors", arrays / "X.npy")
    out = arrays / "index"
    both = (*vectors, "--labels", arrays / "Y.npy", out)
    assert "--vectors and --labels belong together" in refusal("build", *vectors, out)
    assert "did you mean shards?" in refusal("build", *both, "shard=2")
    assert "metric=" in refusal("build", *both, "metric=manhattan")
    assert "needs --vectors X.npy --labels Y.npy OUT, or RUN DATASET OUT" in refusal("build", "a", "b")
    assert "X.npy has dtype float32; it must contain integers" in refusal(
        "build", *vectors, "--labels", arrays / "X.npy", out
    )
    assert "is not a .npy array" in refusal("build", "--vectors", arrays / "objects.npy", *both[2:])
    assert "is a file" in refusal("build", *both[:-1], arrays / "X.npy")
    assert "contains no published index" in refusal(
        "search", out, "--queries", arrays / "X.npy", "--k", 1, "--out", "R", exit_code=1
    )
    assert "--ids goes with --vectors" in refusal("build", "a", "b", "c", "--ids", arrays / "I.npy")
    assert "is not a .npy array" in refusal("build", *vectors, "--labels", "none.npy", out)
    np.savez(arrays / "several.npz", a=np.zeros(3))
    assert "contains several arrays" in refusal("build", "--vectors", arrays / "several.npz", *both[2:])
    assert not out.exists()


def test_search_takes_ranges_of_ids_and_parameters(arrays: Path) -> None:
    out = arrays / "index"
    both = ("--vectors", arrays / "X.npy", "--labels", arrays / "Y.npy", out)
    assert call("build", *both, "kind=ivf_flat", "nlist=5", "nprobe=1").exit_code == 0
    np.save(arrays / "ranges.npy", np.full((50, 2), [10, 30]))
    search = ("search", out, "--queries", arrays / "X.npy", "--k", 4, "--out", arrays / "R.npz")
    for option in ("--include-ids", "--exclude-ids"):
        assert call(*search, "nprobe=5", option, arrays / "ranges.npy").exit_code == 0
        with np.load(arrays / "R.npz", allow_pickle=False) as answers:
            inside = (answers["ids"] >= 10) & (answers["ids"] < 30)
        assert inside.all() if option == "--include-ids" else not inside.any()
    assert call(*search, "--exact").exit_code == 0
    assert "parameters has the unknown ef_search" in refusal(*search, "ef_search=5")


def test_rollback_and_what_a_version_is_damaged_by(arrays: Path) -> None:
    out = arrays / "index"
    both = ("build", "--vectors", arrays / "X.npy", "--labels", arrays / "Y.npy", out)
    assert json.loads(call(*both, "--json").stdout)["version"] == 1
    assert json.loads(call(*both, "--json").stdout)["versions"] == [1]  # the same is not built twice
    assert json.loads(call(*both, "shards=2", "--json").stdout)["versions"] == [1, 2]
    assert "version 1 is current, 50 vectors" in call("rollback", out).stdout
    assert json.loads(call("rollback", out, "--to", 2, "--json").stdout)["version"] == 2
    assert "has no version 7; it has 1, 2" in refusal("rollback", out, "--to", 7)
    for name in ("shard-00001.npy", "labels.npy"):
        path = out / "versions" / "000002" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        search = ("search", out, "--queries", arrays / "X.npy", "--k", 1, "--out", arrays / "R.npz")
        assert f"{name} is damaged: its checksum" in refusal(*search, exit_code=1)
        assert f"{name} is damaged: its checksum" in refusal("status", out, exit_code=1)
        assert call("status", out, "--no-verify").exit_code == 0
        path.write_bytes(content)


@pytest.mark.parametrize("verb", [(), ("build",), ("search",), ("status",), ("tune",), ("rollback",)])
def test_every_help_has_an_example(verb: tuple[str, ...]) -> None:
    result = call(*verb, "--help")
    assert result.exit_code == 0
    assert "Example:\n" in result.stdout


def test_serve_refuses_an_address_before_anything_starts(
    arrays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = arrays / "index"
    call("build", "--vectors", arrays / "X.npy", "--labels", arrays / "Y.npy", out)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("A_TOKEN", "short")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"host=127.0.0.1 port={port}: Address already in use" in refusal("serve", out, "--port", port)
    for host in ("0.0.0.0", "::"):
        assert "lets others reach the index, and there is no token" in refusal("serve", out, "--host", host)
    assert "host=256.1.1.1 is not an address of this machine" in refusal("serve", out, "--host", "256.1.1.1")
    assert "A_TOKEN must hold a token of at least 16" in refusal(
        "serve", out, "--port", port, "--token-env", "A_TOKEN"
    )
    assert "max_k=0 must be" in refusal("serve", out, "--max-k", 0)
    assert "is not a data set" in refusal("serve", out, "--port", port, "--dataset", arrays)
    assert "contains no published index" in refusal("serve", arrays, "--port", port, exit_code=1)
