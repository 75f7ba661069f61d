"""The part of kustomize that `k8s/` uses, so that `fsl-dist submit` renders the same files without kustomize.

A `kustomization.yaml` may have resources, components, patches (JSON 6902, and `$patch: delete`), images, a
namespace, and files that become a ConfigMap; everything else is refused.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from index.base.errors import RequestError

Manifest = dict[str, Any]
"""one Kubernetes object"""

# Both are safe; the C version takes a tenth of the time.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FILE = "kustomization.yaml"
_KNOWN = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "components",
    "patches",
    "images",
    "configMapGenerator",
}
_CLUSTER_SCOPED = {"Namespace"}


def build(folder: Path) -> list[Manifest]:
    """The objects of a kustomization, in the order of its resources. Raises RequestError for an unsupported field."""
    return _apply(folder, [])


def apply_component(folder: Path, objects: list[Manifest]) -> list[Manifest]:
    """`objects` with a component's patches."""
    return _apply(folder, objects)


def read_objects(file: Path) -> list[Manifest]:
    """The objects of a YAML file; they share no parts, even with aliases."""
    documents = yaml.load_all(file.read_text("utf-8"), _Loader)
    return [json.loads(json.dumps(found)) for found in documents if found]


def write_objects(objects: list[Manifest]) -> str:
    """Objects as YAML, one document each, keys in their order."""
    # Copied through JSON: shared parts would be written as aliases.
    plain = json.loads(json.dumps(objects))
    return "---\n".join(yaml.dump(found, Dumper=_Dumper, sort_keys=False, width=120) for found in plain)


class _Dumper(yaml.SafeDumper):
    """Keeps texts of several lines readable, such as a config."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def containers(part: Any) -> Iterator[Manifest]:
    """Every container in an object, at any depth of its pod templates."""
    for found in pod_specs(part):
        yield from [*found.get("initContainers", []), *found["containers"]]


def pod_specs(part: Any) -> Iterator[Manifest]:
    """Every pod's spec in an object."""
    if isinstance(part, dict):
        if isinstance(part.get("containers"), list):
            yield part
        for value in part.values():
            yield from pod_specs(value)
    elif isinstance(part, list):
        for value in part:
            yield from pod_specs(value)


def _apply(folder: Path, objects: list[Manifest]) -> list[Manifest]:
    found = yaml.safe_load((folder / _FILE).read_text("utf-8"))
    if unknown := set(found) - _KNOWN:
        raise RequestError(
            f"{folder / _FILE}: {', '.join(sorted(unknown))} is none of {', '.join(sorted(_KNOWN))}"
        )
    for name in found.get("resources", []):
        path = folder / name
        objects = [*objects, *(build(path) if path.is_dir() else read_objects(path))]
    objects = [*objects, *(_config_map(one, folder) for one in found.get("configMapGenerator", []))]
    for name in found.get("components", []):
        objects = apply_component(folder / name, objects)
    for patch in found.get("patches", []):
        objects = _patch(objects, patch, folder)
    for image in found.get("images", []):
        for container in (container for one in objects for container in containers(one)):
            if re.fullmatch(re.escape(image["name"]) + r"(:[^/]*)?", container["image"]):
                container["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"
    if namespace := found.get("namespace"):
        for one in objects:
            if one["kind"] not in _CLUSTER_SCOPED:
                one["metadata"]["namespace"] = namespace
    return objects


def _config_map(generator: Manifest, folder: Path) -> Manifest:
    """A ConfigMap of files, under a name without kustomize's hash."""
    options = generator.get("options", {})
    if set(generator) != {"name", "files", "options"} or not options.get("disableNameSuffixHash"):
        raise RequestError(
            f"{folder / _FILE}: a configMapGenerator has a name, files, and options with disableNameSuffixHash: true"
        )
    metadata = {"name": generator["name"]}
    if labels := options.get("labels"):
        metadata["labels"] = labels
    data = {Path(name).name: (folder / name).read_text("utf-8") for name in generator["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _patch(objects: list[Manifest], patch: Manifest, folder: Path) -> list[Manifest]:
    text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text("utf-8")
    change = yaml.safe_load(text)
    if isinstance(change, dict):
        if change.get("$patch") != "delete":
            raise RequestError(
                f"{folder / _FILE}: a patch is a list of JSON 6902 operations or $patch: delete"
            )
        gone = (change["kind"], change["metadata"]["name"])
        return [one for one in objects if (one["kind"], one["metadata"]["name"]) != gone]
    target = patch["target"]
    for one in objects:
        name = target.get("name")
        if one["kind"] == target["kind"] and (name is None or re.fullmatch(name, one["metadata"]["name"])):
            for operation in change:
                patch_json(one, operation)
    return objects


def patch_json(tree: Manifest, operation: Manifest) -> None:
    """Apply one JSON 6902 operation (add, replace, remove, test). Raises RequestError for a missing path."""
    kind, path = operation["op"], operation["path"]
    *parents, last = [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")[1:]]
    # Copied through JSON: the value is inserted in several objects, which later steps change one by one.
    value = json.loads(json.dumps(operation.get("value")))
    try:
        part: Any = tree
        for step in parents:
            part = part[int(step)] if isinstance(part, list) else part[step]
        key: Any = int(last) if isinstance(part, list) and last != "-" else last
        if kind == "add" and isinstance(part, list):
            part.insert(len(part) if key == "-" else key, value)
        elif kind == "add":
            part[key] = value
        elif kind == "remove":
            del part[key]
        elif kind == "replace":
            part[key]  # must be there
            part[key] = value
        elif kind != "test" or part[key] != value:
            raise RequestError(f"{path}: {kind} {value!r} failed")
    except (KeyError, IndexError, TypeError, ValueError):
        name = tree.get("metadata", {}).get("name")
        raise RequestError(f"{path} does not exist in {tree.get('kind')} {name}") from None
