"""Searches over HTTP, read and written without a server: what is refused, in which words, and both layouts."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.service.requests import (
    BadBody,
    Search,
    SearchSettings,
    read_json,
    read_raw,
    write_json,
    write_raw,
)
from cluster.service.settings import Limits, digest_token, find_catalogue
from index.base.errors import RequestError, VersionError
from index.config import IndexConfig
from index.search import LocalIndex, SearchResult, open_index
from index.writing.build import build

NUM, DIM = 40, 3


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> LocalIndex:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((NUM, DIM)).astype(np.float32)
    return open_index(build(tmp_path_factory.mktemp("i"), vectors, np.arange(NUM) % 4, config=IndexConfig()))


def refusal(body: object) -> str:
    """What a body is refused with, 400 or 422."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises((BadBody, RequestError)) as caught:
        read_json(data)
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


QUERY = [[0.0, 1.0, 2.0]]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"queries": [[1', "BadBody: the body is not JSON"),
        (b'{"queries": [[NaN]], "k": 1}', "BadBody: the body is not JSON"),
        (b"\xff", "BadBody: the body is not JSON"),
        (b"[" * 100000, "BadBody: the body is not JSON"),
        ([1], "BadBody: the body must be a JSON object"),
        ({"k": 1}, "RequestError: queries is required"),
        ({"queries": QUERY}, "k is required and not set (the request)"),
        ({"queries": [[1, 2], [3]], "k": 1}, "queries must be a list of vectors"),
        ({"queries": [["1", "2"]], "k": 1}, "queries must be a list of vectors"),
        ({"queries": [[True, False]], "k": 1}, "queries must be a list of vectors"),
        ({"queries": [[None, 1]], "k": 1}, "queries must be a list of vectors"),
        ({"queries": [], "k": 1}, "queries must be a list of vectors"),
        ({"queries": [1.0], "k": 1}, "queries must be a list of vectors"),
        ({"queries": {"a": 1}, "k": 1}, "queries must be a list of vectors"),
        ({"queries": QUERY, "k": "5"}, 'k="5" must be a whole number'),
        ({"queries": QUERY, "k": True}, "k=true must be a whole number"),
        ({"queries": QUERY, "k": 1, "filter": "same"}, 'filter="same" must be'),
        ({"queries": QUERY, "k": 1, "querylabels": [1]}, "did you mean query_labels?"),
        ({"queries": QUERY, "k": 1, "query_ids": [1 << 70]}, "does not fit into 64 bits"),
        ({"queries": QUERY, "k": 1, "include_ids": [[1, 2, 3]]}, "include_ids[0]=[1, 2, 3]"),
        ({"queries": QUERY, "k": 1, "parameters": {"nprobe": 1.5}}, "parameters"),
    ],
)
def test_a_bad_body_is_one_line(body: object, words: str) -> None:
    assert words in refusal(body)


def test_json_becomes_arrays(opened: LocalIndex) -> None:
    body = {
        "queries": [[0, 1, 2], [0.5, 1e-3, -2]],
        "k": 4,
        "filter": "other_class",
        "query_labels": [1, 2],
        "query_ids": [5, -1],
        "include_ids": [[0, 30], [10, 40]],
        "exact": True,
    }
    search = read_json(json.dumps(body).encode())
    assert search.queries.dtype == np.float32
    found = search.run(opened, Limits())
    expected = opened.search(
        np.array(body["queries"], np.float32),
        4,
        other_class=np.array([1, 2]),
        query_ids=np.array([5, -1]),
        include_ids=np.array([[0, 30], [10, 40]]),
        exact=True,
    )
    assert np.array_equal(found.ids, expected.ids)


@given(
    num=st.integers(0, 5),
    names=st.permutations(["query_labels", "query_ids", "include_ids", "exclude_ids"]),
    count=st.integers(0, 4),
)
def test_raw_bytes_are_read_as_they_were_laid(num: int, names: list[str], count: int) -> None:
    rng = np.random.default_rng(num)
    queries = rng.standard_normal((num, DIM)).astype("<f4")
    widths = {"query_labels": (), "query_ids": (), "include_ids": (2,), "exclude_ids": (2,)}
    sent = {name: rng.integers(0, 99, (num, *widths[name])).astype("<i8") for name in names[:count]}
    query = [("k", "7"), ("exact", "true"), ("parameters.nprobe", "3")]
    query += [("columns", ",".join(sent))] if sent else []
    search = read_raw(queries.tobytes() + b"".join(c.tobytes() for c in sent.values()), query, DIM)
    assert np.array_equal(search.queries, queries)
    assert search.settings == SearchSettings(k=7, exact=True, parameters={"nprobe": 3})
    assert list(search.columns) == list(sent)
    assert all(np.array_equal(search.columns[name], sent[name]) for name in sent)


@pytest.mark.parametrize(
    ("size", "query", "words"),
    [
        (13, "k=1", "the body has 13 bytes, no multiple of the 12 that a query takes: float32 [3]"),
        (12, "k=1&columns=query_ids", "of the 20 that a query takes: float32 [3], query_ids int64 [1]"),
        (12, "k=1&columns=ids", "columns=ids: ids must be one of query_labels"),
        (12, "k=1&columns=query_ids,query_ids", "must be one of"),
        (12, "k=1&query_labels=3", "query_labels goes into a raw body, behind the vectors"),
        (12, "k=ten", 'k="ten" must be a whole number'),
        (12, f"k={'9' * 5000}", "must be a whole number"),
        (12, "", "k is required and not set (the query string)"),
        (12, "k=1&kk=2", "unknown key kk"),
    ],
)
def test_a_bad_raw_request_is_one_line(size: int, query: str, words: str) -> None:
    pairs = [tuple(part.split("=")) for part in query.split("&") if part]
    with pytest.raises(RequestError, match=r"^[^\n]*$") as caught:
        read_raw(bytes(size), pairs, DIM)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_limits_hold_and_the_index_says_the_rest(opened: LocalIndex) -> None:
    limits = Limits(max_k=10, max_batch=2)

    def refused(num: int, k: int, value: float = 0.0, dim: int = DIM) -> str:
        search = Search(np.full((num, dim), value, np.float32), SearchSettings(k=k), {})
        with pytest.raises(RequestError) as caught:
            search.run(opened, limits)
        return str(caught.value)

    assert refused(1, 11) == "k=11 is above max_k=10 of this service; ask in parts, or for less"
    assert refused(3, 1) == "3 queries are more than max_batch=2 of this service; ask in parts, or for less"
    assert "k=0 must be" in refused(1, 0)
    assert "queries row 0 contains a NaN or infinite number" in refused(1, 1, np.inf)
    assert "queries has dim=4" in refused(1, 1, dim=4)
    # 1e39 is a number in JSON and none in float32.
    search = read_json(b'{"queries": [[1e39, 0, 0]], "k": 1}')
    with pytest.raises(RequestError, match="NaN or infinite"):
        search.run(opened, limits)


@pytest.mark.parametrize("values", [{"max_k": 0}, {"max_k": 16385}, {"max_batch": 0}, {"max_body_mb": -1}])
def test_impossible_limits_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(RequestError, match=f"^{next(iter(values))}=.* must be"):
        Limits(**values)


def test_answers_hold_no_infinity() -> None:
    ids = np.array([[3, -1], [4, 5]])
    distances = np.array([[0.1, np.inf], [-2.5, 1e30]], np.float32)
    result, labels = SearchResult(ids, distances, 1), np.array([[7, -1], [7, 8]])
    keys = np.array([["a", None], ["b", "ü"]], dtype=object)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    answer = json.loads(write_json(9, result, labels, keys), parse_constant=refuse)
    assert answer == {
        "version": 9,
        "ids": ids.tolist(),
        "labels": labels.tolist(),
        "keys": [["a", None], ["b", "ü"]],
        "distances": [[float(np.float32(0.1)), None], [-2.5, float(np.float32(1e30))]],
    }
    assert "keys" not in json.loads(write_json(9, result, labels, None))
    raw = write_raw(result, labels)
    assert raw == ids.astype("<i8").tobytes() + labels.astype("<i8").tobytes() + distances.tobytes()


def test_a_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "", "short", " " * 40):
        if value is None:
            monkeypatch.delenv("A_TOKEN", raising=False)
        else:
            monkeypatch.setenv("A_TOKEN", value)
        with pytest.raises(RequestError, match="A_TOKEN must hold a token of at least 16 characters"):
            digest_token("A_TOKEN")
    monkeypatch.setenv("A_TOKEN", "0123456789abcdef")
    assert digest_token("A_TOKEN") == hashlib.sha256(b"0123456789abcdef").hexdigest()


def test_the_catalogue_of_an_index_is_found_by_fingerprint(digits: Path) -> None:
    from fsl_dist.data.catalogue import Catalogue

    catalogue = Catalogue.open(digits)
    assert find_catalogue(digits, catalogue.fingerprint).version == catalogue.version
    with pytest.raises(VersionError, match="made from catalogue 123, and no catalogue version of"):
        find_catalogue(digits, "123")
    with pytest.raises(VersionError, match="made from vectors of no data set"):
        find_catalogue(digits, "")
