"""`fsl-dist index serve` as a client meets it, by Ray Serve for real; and one replica's routes without Ray."""

import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import prometheus
import promql
import pytest
import uvicorn
from click.testing import CliRunner
from free_ports import free_port
from sockets import listening_sockets

from cluster.commands.index import index_group
from cluster.service.settings import Limits, ServiceSettings
from fsl_dist.data.catalogue import Catalogue
from index import versions
from index.config import IndexConfig
from index.search import LocalIndex, open_index
from index.writing.build import build

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-c", "from cluster.cli import main; main()"]
PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "index_service.md"
DIM, TOKEN = 12, "a token of the tests 0123456789"
RAW = "application/octet-stream"
LIMITS = ("--max-k", "50", "--max-batch", "300", "--max-body-mb", "1", "--gate", "body_s=3")


class Client:
    """Asks one service; threads may share it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str | None
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        """Status, body, headers of an answer; a header None is not sent."""
        sent = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {k: v for k, v in sent.items() if v is not None})
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    def search(self, **body: Any) -> dict[str, Any]:
        status, answer, _ = self.ask("POST", "/search", json.dumps(body))
        assert status == 200, answer
        return json.loads(answer)

    def search_raw(
        self, queries: np.ndarray, k: int, options: str = "", *columns: np.ndarray
    ) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Version, ids, labels, distances."""
        body = queries.astype("<f4").tobytes() + b"".join(
            column.astype("<i8").tobytes() for column in columns
        )
        status, answer, headers = self.ask(
            "POST", f"/search?k={k}{options}", body, Content_Type=RAW, Accept=RAW
        )
        assert status == 200, answer
        assert headers["Index-Shape"] == f"{len(queries)},{k}"
        size, shape = len(queries) * k, (len(queries), k)
        assert len(answer) == size * 20
        ids, labels = np.frombuffer(answer, "<i8", 2 * size).reshape(2, *shape)
        return (
            int(headers["Index-Version"]),
            ids,
            labels,
            np.frombuffer(answer, "<f4", size, 16 * size).reshape(shape),
        )

    def refusal(self, method: str, path: str, body: Any = None, **headers: str | None) -> tuple[int, str]:
        """Status and the one line."""
        status, answer, _ = self.ask(method, path, body, **headers)
        return status, json.loads(answer)["error"]


def publish(out: Path, dataset: Path, seed: int) -> LocalIndex:
    """The data set's samples with random vectors as the next version."""
    catalogue = Catalogue.open(dataset)
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((catalogue.num_samples, DIM)).astype(np.float32)
    labels = np.arange(catalogue.num_samples) // 7
    source = {"catalogue": catalogue.fingerprint, "vectors": str(out)}
    return open_index(build(out, vectors, labels, config=IndexConfig(shards=2), source=source))


@pytest.fixture(scope="module")
def indexed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LocalIndex]:
    out = tmp_path_factory.mktemp("index")
    return out, publish(out, digits, 1)


@pytest.fixture(scope="module")
def service(
    indexed: tuple[Path, LocalIndex], digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Client, subprocess.Popen[str]]]:
    """Two replicas that share an actor of each part, and ask for a token."""
    port, errors = free_port(), tmp_path_factory.mktemp("log") / "stderr"
    options = ("--port", str(port), "--replicas", "2", "--actors", "1", "--dataset", str(digits))
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [
                *COMMAND,
                "index",
                "serve",
                str(indexed[0]),
                *options,
                *LIMITS,
                "--token-env",
                "A_TOKEN",
                "--json",
            ],
            env={**os.environ, "A_TOKEN": TOKEN},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said, errors.read_text()
        assert json.loads(said) == {
            "url": f"http://127.0.0.1:{port}",
            "index": str(indexed[0]),
            "version": 1,
        }
        yield Client(port), process
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, errors.read_text()
        assert process.stdout.read() == ""
        assert TOKEN not in errors.read_text()
        assert "Traceback" not in errors.read_text()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def alone(indexed: tuple[Path, LocalIndex], digits: Path) -> Iterator[Client]:
    """One replica's routes without Ray Serve before them, the index in the same process."""
    from cluster.service.replica import IndexService
    from cluster.service.routes import build_app

    settings = ServiceSettings(
        index=indexed[0],
        verify=False,
        checked=None,
        cache_gb=None,
        dataset=digits,
        limits=Limits(max_k=50, max_batch=300, max_body_mb=1),
        token_sha256=hashlib.sha256(TOKEN.encode()).hexdigest(),
        num_actors=0,
        num_replicas=1,
        num_cpus=1,
    )
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(build_app(IndexService(settings)), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield Client(port)
    server.should_exit = True
    thread.join()


@pytest.fixture(params=["alone", "service"])
def client(request: pytest.FixtureRequest) -> Client:
    """Either of them."""
    found = request.getfixturevalue(request.param)
    return found if isinstance(found, Client) else found[0]


def test_answers_are_those_of_the_index(
    client: Client, indexed: tuple[Path, LocalIndex], digits: Path
) -> None:
    local, catalogue = indexed[1], Catalogue.open(digits)
    rng = np.random.default_rng(3)
    queries = rng.standard_normal((20, DIM)).astype(np.float32)
    labels, ids = rng.integers(0, 25, 20), rng.integers(-1, 200, 20)
    spans = np.sort(rng.integers(0, 220, (20, 2)), axis=1)
    for name in (None, "same_class", "other_class"):
        expected = local.search(
            queries, 9, **({name: labels} if name else {}), query_ids=ids, exclude_ids=spans
        )
        known = expected.ids >= 0
        body = {"queries": queries.tolist(), "k": 9, "filter": name, "query_labels": labels.tolist()}
        found = client.search(**body, query_ids=ids.tolist(), exclude_ids=spans.tolist())
        assert found["version"] == 1
        assert np.array_equal(found["ids"], expected.ids)
        assert np.array_equal(found["labels"], local.labels_of(expected.ids))
        # Float32 numbers come back as they were; null means that there is none.
        distances = np.array(found["distances"], dtype=float)
        assert np.array_equal(distances[known].astype(np.float32), expected.distances[known])
        assert np.isnan(distances[~known]).all()
        assert (name == "same_class") == (not known.all())
        keys = catalogue.keys(expected.ids[known])
        assert np.array(found["keys"], dtype=object)[known].tolist() == keys
        options = f"&columns=query_labels,query_ids,exclude_ids{f'&filter={name}' if name else ''}"
        version, *raw = client.search_raw(queries, 9, options, labels, ids, spans)
        assert version == 1
        assert np.array_equal(raw[0], expected.ids)
        assert np.array_equal(raw[1], local.labels_of(expected.ids))
        assert np.array_equal(raw[2], expected.distances)


def test_what_does_not_fit_is_refused_in_one_line(client: Client, indexed: tuple[Path, LocalIndex]) -> None:
    def search(body: Any, **headers: str | None) -> tuple[int, str]:
        return client.refusal(
            "POST", "/search", body if isinstance(body, bytes) else json.dumps(body), **headers
        )

    query = [[0.5] * DIM]
    for status, words, body in (
        (400, "not JSON", b'{"queries": [[1, 2'),
        (400, "not JSON", b'{"queries": [[NaN]], "k": 1}'),
        (422, "k=51 is above max_k=50", {"queries": query, "k": 51}),
        (422, "301 queries are more than max_batch=300", {"queries": query * 301, "k": 1}),
        (422, "queries has dim=3; the index contains vectors of dim=12", {"queries": [[1, 2, 3]], "k": 1}),
        (
            422,
            "query 0 has label 99, which no vector of the index has",
            {"queries": query, "k": 1, "filter": "same_class", "query_labels": [99]},
        ),
        (422, "the index (kind=flat) has none", {"queries": query, "k": 1, "parameters": {"nprobe": 2}}),
        (422, "unknown key kk", {"queries": query, "k": 1, "kk": 1}),
        (413, "larger than max_body_mb=1", b" " * (1 << 20) + b"{}"),
    ):
        found, line = search(body)
        assert (found, words in line) == (status, True), (found, line)
        assert str(indexed[0]) not in line
    assert search(b"x", Content_Type="text/plain") == (
        415,
        "Content-Type text/plain is none of application/json, application/octet-stream",
    )
    status, line = client.refusal(
        "POST", "/search?k=1", np.full(DIM, np.nan, "<f4").tobytes(), Content_Type=RAW
    )
    assert (status, "NaN or infinite" in line) == (422, True)
    # Also a body of unknown length.
    pieces = (b" " * 65536 for _ in range(20))
    assert client.refusal("POST", "/search", pieces)[0] == 413
    assert client.refusal("GET", "/nowhere") == (404, "Not Found")


def test_the_token_is_asked_for(client: Client) -> None:
    body = json.dumps({"queries": [[0.5] * DIM], "k": 1})
    for wrong in (
        None,
        "",
        "Bearer",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer \xe9",
    ):
        status, answer, headers = client.ask("POST", "/search", body, Authorization=wrong)
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer"), wrong
        assert TOKEN.encode() not in answer
        assert client.ask("GET", "/", Authorization=wrong)[0] == 401
    # Ray Serve's own list of routes, which the process that listens answers.
    if client.ask("GET", "/-/healthz", Authorization=None)[0] == 200:
        assert client.ask("GET", "/-/routes", Authorization=None)[0] == 401
        assert client.ask("GET", "/-/routes")[0] == 200
    # What a probe and a scrape ask for needs none.
    for path in ("/health", "/openapi.json", "/docs"):
        assert client.ask("GET", path, Authorization=None)[0] == 200


def read_to_end(connection: socket.socket) -> bytes:
    """What the service sends before it closes the connection: headers and body may come apart."""
    pieces = []
    while piece := connection.recv(4096):
        pieces.append(piece)
    return b"".join(pieces)


def test_half_sent_bodies_hold_nobody_up(service: tuple[Client, object]) -> None:
    client = service[0]
    start = (
        f"POST /search HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
        'Content-Length: 1000\r\n\r\n{"queries": [['
    ).encode()
    with ExitStack() as stack:
        held = []
        for _ in range(450):
            connection = socket.create_connection(("127.0.0.1", client.port), timeout=60)
            held.append(stack.enter_context(connection))
            connection.sendall(start)
        began = time.monotonic()
        assert client.ask("GET", "/health", Authorization=None)[0] == 200
        assert client.search(queries=[[0.5] * DIM], k=1)["version"] >= 1
        assert time.monotonic() - began < 3
        # The service ends them; it was started with body_s=3.
        answers = [read_to_end(connection) for connection in held]
        assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)
        assert b"did not arrive within body_s=3 s" in answers[0]


def test_every_process_listens_on_loopback_alone(service: tuple[Client, subprocess.Popen[str]]) -> None:
    found = listening_sockets(service[1].pid)
    assert service[0].port in [socket.port for socket in found]
    assert len({socket.process for socket in found}) >= 5  # Ray's own are seen
    assert [socket for socket in found if not socket.address.is_loopback] == []


def test_it_says_what_it_is(client: Client, indexed: tuple[Path, LocalIndex]) -> None:
    assert json.loads(client.ask("GET", "/health")[1]) == {"status": "ready", "version": 1}
    status, answer, _ = client.ask("GET", "/")
    facts = json.loads(answer)
    assert (status, facts["version"], facts["num_vectors"], facts["dim"]) == (200, 1, 220, DIM)
    assert (facts["metric"], facts["max_k"], facts["max_batch"], facts["max_body_mb"]) == ("l2", 50, 300, 1)
    assert list(facts["source"]) == ["catalogue"]  # and no path
    described = json.loads(client.ask("GET", "/openapi.json")[1])
    body = described["paths"]["/search"]["post"]["requestBody"]["content"]
    assert set(body["application/json"]["schema"]["properties"]) >= {"queries", "k", "filter", "include_ids"}
    assert RAW in body
    assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


def test_metrics_count_all_replicas(service: tuple[Client, object]) -> None:
    client = service[0]

    def scrape() -> dict[str, float]:
        """Sums over replicas by name and status."""
        status, answer, headers = client.ask("GET", "/metrics", Authorization=None)
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain")
        lines = [line for line in answer.decode().splitlines() if line and not line.startswith("#")]
        sums: dict[str, float] = {}
        for line in lines:
            name, value = line.rsplit(" ", 1)
            name = re.sub(r'replica="[^"]+",?', "", name).replace(",}", "}").replace("{}", "")
            sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    before = scrape()
    assert before["fsl_dist_index_vectors"] == 2 * 220
    for _ in range(10):
        client.search(queries=[[0.5] * DIM] * 3, k=1)
    assert client.refusal("POST", "/search", "{}")[0] == 422
    after = scrape()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown('fsl_dist_index_requests_total{status="200"}') == 10
    assert grown('fsl_dist_index_requests_total{status="422"}') == 1
    assert grown("fsl_dist_index_queries_total") == 30
    assert grown("fsl_dist_index_request_seconds_count") == 11
    assert grown('fsl_dist_index_request_seconds_bucket{le="+Inf"}') == 11
    assert after["fsl_dist_index_request_seconds_sum"] > before["fsl_dist_index_request_seconds_sum"]


def test_every_query_is_about_what_the_service_exports(
    service: tuple[Client, object], tmp_path: Path
) -> None:
    client = service[0]
    asked = [query for query in promql.queries() if "fsl_dist_index" in query.text]
    client.search(queries=[[0.5] * DIM], k=1)
    assert client.refusal("POST", "/search", "{}", Authorization=None)[0] == 401

    def scrape() -> list[prometheus.Sample]:
        return prometheus.read_samples(client.ask("GET", "/metrics", Authorization=None)[1].decode())

    samples = scrape()
    # The status of failures that did not happen.
    faults = [fault for query in asked for fault in promql.unanswered(query, samples)]
    assert [fault for fault in faults if '"5.."' not in fault] == []
    names = {sample.name for sample in samples}
    assert {name for name in promql.documented() if name.startswith("fsl_dist_index")} <= names
    refused = {
        sample.labels["reason"]: sample.value for sample in samples if sample.name.endswith("refused_total")
    }
    assert refused["token"] >= 1
    recalls = [sample for sample in samples if sample.name == "fsl_dist_index_recall_at_10"]
    assert {sample.value for sample in recalls} == {1.0}, "a flat index compares with every vector"
    if not prometheus.is_installed():
        return
    with prometheus.scraping(client.port, tmp_path) as server:
        deadline = time.monotonic() + 20
        shown = [query for query in asked if not query.place.startswith("alert")]
        while missing := [
            query.place for query in shown if not server.ask(query.text.replace("$namespace", ".*"))
        ]:
            assert time.monotonic() < deadline, missing
            client.search(queries=[[0.5] * DIM], k=1)
            time.sleep(1)
        for query in asked:
            server.ask(query.text.replace("$namespace", ".*"))  # an alert's answer is empty where all is well


def test_the_examples_of_the_page_run(service: tuple[Client, object], tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(examples) == 2
    environment = {**os.environ, "INDEX_TOKEN": TOKEN}
    rng = np.random.default_rng(0)
    np.save(tmp_path / "Q.npy", rng.standard_normal((5, DIM)).astype(np.float32))
    for example in examples:
        program = example.replace("127.0.0.1:8000", f"127.0.0.1:{service[0].port}")
        assert program != example
        ran = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
        assert "version 1" in ran.stdout


def test_publications_and_rollbacks_are_followed_without_a_failed_request(
    client: Client, indexed: tuple[Path, LocalIndex], digits: Path, tmp_path: Path
) -> None:
    out = indexed[0]
    queries = np.random.default_rng(5).standard_normal((64, DIM)).astype(np.float32)
    # A replica may still be at a version that another test has published.
    expected = {
        version: open_index(out / versions.VERSIONS / versions.version_name(version)).search(queries, 5)
        for version in versions.list_versions(out)
    }
    answered: list[int] = []
    failed: list[BaseException] = []
    stop = threading.Event()

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not stop.is_set() and not failed:
            start = int(rng.integers(0, 60))
            rows = slice(start, start + 4)
            try:
                version, ids, _, distances = client.search_raw(queries[rows], 5)
                assert np.array_equal(ids, expected[version].ids[rows])
                assert np.array_equal(distances, expected[version].distances[rows])
            except BaseException as error:
                failed.append(error)
            else:
                answered.append(version)

    def wait_for(version: int) -> None:
        """Until 20 answers one after another were of this version."""
        deadline, start = time.monotonic() + 60, len(answered)
        while answered[start:][-20:] != [version] * 20 and not failed:
            assert time.monotonic() < deadline, f"version {version} is not served"
            time.sleep(0.02)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    try:
        for thread in threads:
            thread.start()
        wait_for(1)
        newest = max(versions.list_versions(out)) + 1
        # Its answers are known before anybody can get them.
        ahead = publish(tmp_path, digits, newest)
        expected[newest] = ahead.search(queries, 5)
        publish(out, digits, newest)
        wait_for(newest)
        went_back = CliRunner().invoke(index_group, ["rollback", str(out), "--to", "1"])
        assert went_back.exit_code == 0
        wait_for(1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert not np.array_equal(expected[1].ids, expected[newest].ids)
