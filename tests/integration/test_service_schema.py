"""Requests drawn from the index service's own OpenAPI description, those that fit it and those that do not; and hostile bodies."""

import hashlib
import http.client
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from cluster.service.gate import Gate
from cluster.service.replica import IndexService
from cluster.service.routes import build_app
from cluster.service.settings import GateSettings, Limits, ServiceSettings
from index.config import IndexConfig
from index.writing.build import build

DIM, TOKEN = 6, "a token of the tests 0123456789"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
QUERY = '{"queries": [[0, 0, 0, 0, 0, 0]], "k": 1'


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """One replica's routes behind the gate, in this process."""
    out = tmp_path_factory.mktemp("index")
    vectors = np.random.default_rng(0).standard_normal((300, DIM)).astype(np.float32)
    build(out, vectors, np.arange(300) % 5, config=IndexConfig())
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    service = IndexService(
        ServiceSettings(
            index=out, verify=False, checked=None, cache_gb=None, dataset=None, limits=Limits(max_k=20, max_batch=50), token_sha256=digest,
            num_actors=0, num_replicas=1, num_cpus=1,
        )
    )  # fmt: skip

    async def no_replicas() -> list[object]:
        return []

    service.all_metrics = no_replicas  # type: ignore[method-assign, assignment]  # Ray Serve gathers them
    app = Gate(build_app(service), GateSettings(token_sha256=digest))  # type: ignore[arg-type]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))  # type: ignore[arg-type]
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        until = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < until
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


def ask(port: int, body: bytes, **headers: str) -> tuple[int, bytes]:
    """Status and answer of a search."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sent = {**HEADERS, **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request("POST", "/search", body, sent)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_one_that_the_description_names(port: int, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.path for operation in operations} == {"/", "/search", "/health", "/metrics"}
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    statuses: set[int] = set()
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and operation.path != "/search":
            continue  # takes nothing that could be wrong

        @settings(
            max_examples=60 if operation.path == "/search" else 5, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            answer = case.call(headers={"Authorization": HEADERS["Authorization"]})
            statuses.add(answer.status_code)
            assert answer.status_code < 500
            case.validate_response(answer, checks=checks)

        check()
    assert statuses & {400, 415, 422}
    assert mode is GenerationMode.NEGATIVE or 200 in statuses


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("[" * 1_000_000, 400),
        ('{"a":' * 200_000 + "1" + "}" * 200_000, 400),
        (QUERY + ', "k": ' + "9" * 100_000 + "}", 400),
        (QUERY.replace("[0,", "[" + "9" * 200_000 + ",") + "}", 400),
        (QUERY.replace("[0,", "[1e99999,") + "}", 422),
        (QUERY + ', "' + "a" * 2_000_000 + '": 1}', 422),
        (QUERY + "".join(f', "x{n}": 1' for n in range(100_000)) + "}", 422),
        (QUERY + ', "parameters": {"nprobe": ' + "9" * 4000 + "}}", 422),
        ('{"k": 1, "queries": [' + ",".join(["[" + "0," * 5 + "0]"] * 200_000) + "]}", 422),
        ('{"k": 1, "queries": ' + "[" * 60 + "1" + "]" * 60 + "}", 422),
        ('{"k": 1, "queries": [[' + "0," * 3_000_000 + "0]]}", 422),
        ('{"k": 1, "queries": ["' + "\\u0000" * 100_000 + '"]}', 422),
    ],
)
def test_over_long_json_is_refused_in_a_short_line(port: int, body: str, status: int) -> None:
    start = time.monotonic()
    found, answer = ask(port, body.encode())
    assert found == status, answer[:300]
    line = json.loads(answer)["error"]
    assert len(line) < 1000, line[:300]
    assert "\n" not in line
    assert time.monotonic() - start < 10


def test_a_compressed_body_is_not_unpacked(port: int) -> None:
    bomb = zlib.compress(b" " * (256 << 20))
    assert len(bomb) < 1 << 20
    for encoding in ("gzip", "deflate", "br"):
        status, answer = ask(port, bomb, Content_Encoding=encoding)
        assert (status, "not JSON" in json.loads(answer)["error"]) == (400, True)


@settings(max_examples=150)
@given(body=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_get_a_refusal(port: int, body: bytes) -> None:
    assert ask(port, body)[0] in (400, 422)
    assert ask(port, body, Content_Type="application/octet-stream")[0] == 422
