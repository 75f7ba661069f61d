"""Whether objects are what their API takes: core objects by kubernetes-validate, those of Ray,
Prometheus and Kueue by the schemas of their operators."""

import json
import lzma
from functools import cache
from pathlib import Path

import jsonschema.protocols
import jsonschema.validators
import kubernetes_validate

_DATA = Path(__file__).parents[1] / "data"
# Group → version, name of its faults, file.
_SCHEMAS = {
    "ray.io": ("v1", "kuberay-schema", _DATA / "kuberay-1.7.0-v1.json.xz"),
    "monitoring.coreos.com": ("v1", "prometheus-schema", _DATA / "prometheus-operator-0.93.0-v1.json.xz"),
    "kueue.x-k8s.io": ("v1beta2", "kueue-schema", _DATA / "kueue-0.19.2-v1beta2.json.xz"),
}
_KUBERNETES = "1.36"


def schema_faults(one: dict) -> list[str]:
    """What the API server would refuse in an object: `core-schema: …`, `kuberay-schema: …`, `unknown-kind: …`."""
    return list(_faults(json.dumps(one, sort_keys=True)))


@cache  # overlays share most of their objects, and a core schema takes 50 ms to read
def _faults(text: str) -> tuple[str, ...]:
    return tuple(_look(json.loads(text)))


def _look(one: dict) -> list[str]:
    api, kind = one.get("apiVersion", ""), one.get("kind", "")
    group, _, version = api.partition("/")
    if group in _SCHEMAS:
        if version != _SCHEMAS[group][0] or kind not in _validators(group):
            return [f"unknown-kind: {api} {kind}"]
        return [
            f"{_SCHEMAS[group][1]}: {'/'.join(map(str, error.absolute_path))}: {error.message}"
            for error in _validators(group)[kind].iter_errors(_without_null(one))
        ]
    try:
        kubernetes_validate.validate(one, _KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return [f"unknown-kind: {api} {kind}"]
    except kubernetes_validate.ValidationError as error:
        return [f"core-schema: {'/'.join(map(str, error.path))}: {error.message}"]
    return []


@cache
def _validators(group: str) -> dict[str, jsonschema.protocols.Validator]:
    schemas = json.loads(lzma.decompress(_SCHEMAS[group][2].read_bytes()))
    return {kind: _Validator(_to_json_schema(schema, is_root=True)) for kind, schema in schemas.items()}


def _to_json_schema(found: dict, *, is_root: bool = False) -> dict:
    """A structural schema as JSON Schema: what Kubernetes means without saying is said."""
    schema = {
        key: value for key, value in found.items() if not key.startswith("x-kubernetes-") and key != "format"
    }
    if found.get("x-kubernetes-int-or-string"):
        schema.pop("anyOf", None)
        schema["type"] = ["integer", "string"]
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = _to_json_schema(schema[key])
    if "properties" in schema:
        properties = schema["properties"] = {k: _to_json_schema(v) for k, v in schema["properties"].items()}
        schema["required"] = [
            name for name in schema.get("required", []) if "default" not in properties.get(name, {})
        ]
        if is_root:  # metadata is the API server's own
            properties["metadata"] = {"type": "object"}
    is_open = found.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in found
    if found.get("type") == "object" and not is_open:
        schema["additionalProperties"] = False
    if found.get("x-kubernetes-list-type") == "map":
        schema["uniqueBy"] = found["x-kubernetes-list-map-keys"]
        defaults = found["items"]["properties"]
        schema["uniqueByDefaults"] = {key: defaults[key].get("default") for key in schema["uniqueBy"]}
    return schema


def _unique_by(validator: object, keys: list[str], instance: object, schema: dict):
    if not isinstance(instance, list):
        return
    seen = set()
    for item in instance:
        key = tuple(item.get(name, schema["uniqueByDefaults"][name]) for name in keys)
        if key in seen:
            yield jsonschema.exceptions.ValidationError(f"{dict(zip(keys, key, strict=True))} is there twice")
        seen.add(key)


_Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"uniqueBy": _unique_by})


def _without_null(part: object) -> object:
    """Null is absent."""
    if isinstance(part, dict):
        return {key: _without_null(value) for key, value in part.items() if value is not None}
    if isinstance(part, list):
        return [_without_null(value) for value in part]
    return part
