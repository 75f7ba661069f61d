"""A search over HTTP: bytes in, checked arrays, bytes out. Nothing here knows a server."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pydantic
import pydantic_core
from numpy.typing import NDArray

from cluster.service.settings import Limits
from index.base.errors import RequestError
from index.base.settings import settings, validate
from index.results import SearchResult
from index.search import ShardedIndex

JSON = "application/json"
RAW = "application/octet-stream"
# int64 numbers a query of each column that may follow the vectors of a raw body.
_WIDTHS = {"query_labels": 1, "query_ids": 1, "include_ids": 2, "exclude_ids": 2}


class BadBody(Exception):
    """The body cannot be read at all; the message is the one line to answer with."""


@settings("")
class SearchSettings:
    """A search, apart from its queries."""

    k: int
    """Neighbours a query."""

    filter: Literal["same_class", "other_class"] | None = None
    """Only vectors of the query's label, or of any other; needs query_labels."""

    query_labels: tuple[int, ...] | None = None
    """The label of each query."""

    query_ids: tuple[int, ...] | None = None
    """The id left out of each answer, -1 for none."""

    include_ids: tuple[tuple[int, int], ...] | None = None
    """Ids [from, to) that alone are searched, for each query."""

    exclude_ids: tuple[tuple[int, int], ...] | None = None
    """Ids [from, to) that are not."""

    parameters: dict[str, int] = field(default_factory=dict)
    """nprobe, ef_search, k_factor, this once."""

    exact: bool = False
    """Compare with every vector, whatever the kind."""


@dataclass(frozen=True, slots=True)
class Search:
    """One request, read."""

    queries: NDArray[np.float32]
    """float32 [n, dim]"""

    settings: SearchSettings
    """All the rest but the columns."""

    columns: Mapping[str, NDArray[np.int64]]
    """query_labels, query_ids: int64 [n]; include_ids, exclude_ids: int64 [n, 2]; those that were sent."""

    def run(self, index: ShardedIndex, limits: Limits) -> SearchResult:
        """Search, within the limits. Raises RequestError."""
        for value, most, rule in (
            (self.settings.k, limits.max_k, f"k={self.settings.k} is above max_k"),
            (len(self.queries), limits.max_batch, f"{len(self.queries)} queries are more than max_batch"),
        ):
            if value > most:
                raise RequestError(f"{rule}={most} of this service; ask in parts, or for less")
        columns = dict(self.columns)
        labels, asked = columns.pop("query_labels", None), self.settings.filter
        if asked is not None and labels is None:
            raise RequestError(f"filter={asked} needs query_labels, one label for each query")
        return index.search(
            self.queries,
            self.settings.k,
            same_class=labels if asked == "same_class" else None,
            other_class=labels if asked == "other_class" else None,
            **columns,
            parameters=self.settings.parameters,
            exact=self.settings.exact,
        )


def read_json(body: bytes) -> Search:
    """A JSON object: "queries" [[…], …] and the fields of SearchSettings. Raises BadBody, RequestError."""
    try:
        # A number of 500 digits would become infinite without a word; so would NaN be read, which JSON does not have.
        data = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BadBody(f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadBody('the body must be a JSON object, such as {"queries": [[0.1, 0.2]], "k": 10}')
    if "queries" not in data:
        raise RequestError("queries is required and not set: a list of vectors, lists of dim numbers each")
    queries = _read_vectors(data.pop("queries"))
    settings = validate(SearchSettings, data, "the request")
    columns = {name: getattr(settings, name) for name in _WIDTHS if getattr(settings, name) is not None}
    try:
        return Search(queries, settings, {name: np.array(c, np.int64) for name, c in columns.items()})
    except OverflowError:
        raise RequestError(f"a number of {', '.join(columns)} does not fit into 64 bits") from None


def read_raw(body: bytes, query: Iterable[tuple[str, str]], dim: int) -> Search:
    """float32 [n, dim], then an int64 array for each name in `columns`; all little-endian. Raises RequestError.

    query: names and values of the request's query string, which hold the other fields of SearchSettings.
    """
    data: dict[str, Any] = {}
    names: list[str] = []
    for key, text in query:
        if key == "columns":
            names = text.split(",")
        elif key in _WIDTHS:
            raise RequestError(f"{key} goes into a raw body, behind the vectors: columns={key}")
        elif key.startswith("parameters."):
            data.setdefault("parameters", {})[key.removeprefix("parameters.")] = _read_value(text)
        else:
            data[key] = _read_value(text)
    settings = validate(SearchSettings, data, "the query string")
    if unknown := [name for name in names if name not in _WIDTHS or names.count(name) > 1]:
        raise RequestError(
            f"columns={','.join(names)}: {unknown[0]} must be one of {', '.join(_WIDTHS)}, once"
        )
    row_bytes = 4 * dim + 8 * sum(_WIDTHS[name] for name in names)
    num_queries, rest = divmod(len(body), row_bytes)
    if rest:
        raise RequestError(
            f"the body has {len(body)} bytes, no multiple of the {row_bytes} that a query takes: float32 [{dim}]"
            + "".join(f", {name} int64 [{_WIDTHS[name]}]" for name in names)
        )
    queries = np.frombuffer(body, "<f4", num_queries * dim).reshape(num_queries, dim)
    columns, start = {}, queries.nbytes
    for name in names:
        width = _WIDTHS[name]
        column = np.frombuffer(body, "<i8", num_queries * width, start).astype(np.int64)
        columns[name] = column.reshape(num_queries, width) if width > 1 else column
        start += column.nbytes
    return Search(queries.astype(np.float32, copy=False), settings, columns)


def write_json(
    version: int, result: SearchResult, labels: NDArray[np.int64], keys: NDArray[np.object_] | None
) -> bytes:
    """The answer as JSON; where there is no neighbour, id and label are -1, distance and key null."""
    answer: dict[str, Any] = {"version": version, "ids": result.ids.tolist(), "labels": labels.tolist()}
    if keys is not None:
        answer["keys"] = keys.tolist()
    answer["distances"] = result.distances.tolist()
    return pydantic_core.to_json(answer, inf_nan_mode="null")


def write_raw(result: SearchResult, labels: NDArray[np.int64]) -> bytes:
    """ids int64 [n, k], labels int64 [n, k], distances float32 [n, k], one behind the other, little-endian."""
    arrays = (result.ids.astype("<i8"), labels.astype("<i8"), result.distances.astype("<f4"))
    return b"".join(array.tobytes() for array in arrays)


def describe_body() -> dict[str, Any]:
    """The two forms of a request's body in OpenAPI's words."""
    queries = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
    schema = pydantic.TypeAdapter(SearchSettings).json_schema()
    schema["properties"] = {"queries": queries, **schema["properties"]}
    schema |= {"required": ["queries", "k"], "additionalProperties": False}
    raw = {
        "type": "string",
        "format": "binary",
        "description": "float32 [n, dim], little-endian; k, filter, exact, parameters.NAME are query parameters, and so is "
        "columns, the names of int64 arrays behind the vectors: query_labels, query_ids [n], include_ids, exclude_ids [n, 2].",
    }
    return {"required": True, "content": {JSON: {"schema": schema}, RAW: {"schema": raw}}}


def describe_answers() -> dict[int | str, dict[str, Any]]:
    """The answers to a search in OpenAPI's words."""

    def rows(item: dict[str, Any]) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "array", "items": item}}

    columns = {
        "version": {"type": "integer"},
        "ids": rows({"type": "integer"}),
        "labels": rows({"type": "integer"}),
        "distances": rows({"type": ["number", "null"]}),
        "keys": rows({"type": ["string", "null"]}),
    }
    required = ["version", "ids", "labels", "distances"]
    found = {"type": "object", "properties": columns, "required": required, "additionalProperties": False}
    raw = {"type": "string", "format": "binary"}
    answer = {
        "description": "The nearest vectors",
        "content": {JSON: {"schema": found}, RAW: {"schema": raw}},
    }
    refusals = {
        400: "The body cannot be read, or ended before its end",
        401: "No token, or another one",
        408: "The body did not arrive in time",
        413: "The body is too large",
        415: "Neither JSON nor raw bytes",
        422: "What the line says",
        429: "Too many searches of this client are under way",
        431: "The headers are too large",
        503: "Too many searches are under way, or a part of the index does not answer",
        504: "No replica answered in time",
    }
    line = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    answers: dict[int | str, dict[str, Any]] = {200: answer}
    for status, text in refusals.items():
        answers[status] = {"description": text, "content": {JSON: {"schema": line}}}
    return answers


def _read_vectors(rows: object) -> NDArray[np.float32]:
    """float32 [n, dim] of lists of numbers; what is finite is the index's question."""
    try:
        vectors = np.array(rows)
    except ValueError:
        vectors = np.array(None)
    if vectors.ndim != 2 or vectors.dtype.kind not in "if":
        raise RequestError(
            "queries must be a list of vectors: lists of equally many numbers each, at least one"
        )
    with np.errstate(over="ignore"):
        return vectors.astype(np.float32)


def _read_value(text: str) -> object:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if re.fullmatch("-?[0-9]{1,18}", text) else text
