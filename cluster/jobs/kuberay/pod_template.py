"""Site-specific additions to all pods of a job: one YAML file, applied by strategic merge and checked.

    all: {spec: {nodeSelector: {pool: gpu}, tolerations: [{key: reserved, operator: Exists}]}}
    worker: {spec: {containers: [{name: main, env: [{name: NCCL_DEBUG, value: INFO}]}]}}

`head`, `worker` and `submitter` override `all`; a file with `metadata` and `spec` at the top is `all`. The container
that runs Ray, or submits, is called `main`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.jobs.kuberay.kustomize import Manifest
from cluster.jobs.kuberay.pod_security import find_faults
from index.base.errors import RequestError
from index.base.settings import parse_yaml

MAIN = "main"
"""name, in the file, of the main container of a pod"""

_PARTS = ("all", "head", "worker", "submitter")
_KEYS = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort", "protocol"),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "resourceClaims": ("name",),
}
"""lists whose items are merged by these keys, as Kubernetes does; other lists are replaced"""
_ADDED = ("tolerations",)
"""lists that are extended: a site's tolerations do not replace the toleration for GPU nodes"""
_OWN_LABELS = "fsl-dist/"
_OWN_FIELDS = {
    "restartPolicy": "retries",
    "serviceAccountName": "service_account",
    "automountServiceAccountToken": "",
}


def read_template(path: str) -> dict[str, Manifest]:
    """A file's parts, each a pod template's metadata and spec. Raises RequestError for an invalid file."""
    try:
        tree = parse_yaml(Path(path).read_text("utf-8"), path)
    except OSError as error:
        raise RequestError(f"pod_template={path} cannot be read: {error.strerror}") from None
    parts = {"all": tree} if set(tree) & {"metadata", "spec"} else tree
    if unknown := sorted(set(parts) - set(_PARTS)):
        raise RequestError(
            f"pod_template={path}: {', '.join(unknown)} is none of {', '.join(_PARTS)}, nor metadata and spec"
        )
    for part, template in parts.items():
        keys = set(template) if isinstance(template, dict) else {str(template)}
        if wrong := sorted(keys - {"metadata", "spec"}):
            raise RequestError(
                f"pod_template={path}: {part}.{wrong[0]} is none of a pod template's metadata and spec"
            )
        _check_ownership(path, part, template)
    return parts


def apply_template(path: str, part: str, template: Manifest) -> None:
    """Apply the file to a pod template, in place. Raises RequestError if the pod would break the restricted rules.

    Args:
        path: the file.
        part: head, worker or submitter.
        template: a pod template of a job.
    """
    parts = read_template(path)
    main = template["spec"]["containers"][0]["name"]
    for name in ("all", part):
        patch = json.loads(json.dumps(parts.get(name, {})))
        for container in (patch.get("spec") or {}).get("containers") or []:
            if container.get("name") == MAIN:
                container["name"] = main
        merged = merge(template, patch)
        template.clear()
        template.update(merged)
    names = [container["name"] for container in template["spec"]["containers"]]
    if names[0] != main:  # Ray runs in the first container
        template["spec"]["containers"].insert(0, template["spec"]["containers"].pop(names.index(main)))
    if faults := list(find_faults(template["spec"])):
        raise RequestError(
            f'pod_template={path}: the {part} pod would break Pod Security "restricted": {"; ".join(faults)} (give each '
            "added container a securityContext like those of k8s/base)"
        )


def merge(tree: Any, patch: Any, key: str = "") -> Any:
    """Apply `patch` to `tree` by strategic merge: mappings by key (null deletes), lists by merge key or replaced.

    An item or mapping with `$patch: delete` is deleted, one with `$patch: replace` replaces.
    """
    if isinstance(patch, dict):
        if patch.get("$patch") == "replace" or not isinstance(tree, dict):
            return {name: merge(None, value, name) for name, value in _plain(patch) if value is not None}
        merged = dict(tree)
        for name, value in _plain(patch):
            if value is None or (isinstance(value, dict) and value.get("$patch") == "delete"):
                merged.pop(name, None)
            else:
                merged[name] = merge(tree.get(name), value, name)
        return merged
    if isinstance(patch, list):
        return _merge_lists(tree if isinstance(tree, list) else [], patch, key)
    return patch


def _merge_lists(items: list[Any], patch: list[Any], key: str) -> list[Any]:
    if key in _ADDED:
        return [*items, *(one for one in patch if one not in items)]
    if key not in _KEYS or not all(isinstance(one, dict) for one in [*items, *patch]):
        return patch
    if any(one.get("$patch") == "replace" for one in patch):
        return [merge(None, one, key) for one in patch if set(one) != {"$patch"}]
    merged = list(items)
    for one in patch:
        at = next((n for n, old in enumerate(merged) if _identity(old, key) == _identity(one, key)), None)
        if one.get("$patch") == "delete":
            if at is not None:
                del merged[at]
        elif at is None:
            merged.append(merge(None, one, key))
        else:
            merged[at] = merge(merged[at], one, key)
    return merged


def _identity(one: Manifest, key: str) -> tuple[Any, ...]:
    defaults = {"protocol": "TCP"}
    return tuple(one.get(name, defaults.get(name)) for name in _KEYS[key])


def _plain(patch: Manifest) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in patch.items() if name != "$patch")


def _check_ownership(path: str, part: str, template: Manifest) -> None:
    """Refuse what `submit` itself sets: jobs and network policies find their pods by these labels."""
    for kind in ("labels", "annotations"):
        for name in ((template.get("metadata") or {}).get(kind) or {}) if template else {}:
            if name.startswith((_OWN_LABELS, "ray.io/")):
                raise RequestError(
                    f"pod_template={path}: {part}.metadata.{kind}.{name} is set by submit and cannot be changed"
                )
    for name, option in _OWN_FIELDS.items():
        if name in (template.get("spec") or {}):
            way_out = f" (use {option}=…)" if option else " and cannot be changed"
            raise RequestError(f"pod_template={path}: {part}.spec.{name} is set by submit{way_out}")
    for container in (template.get("spec") or {}).get("containers") or []:
        if not isinstance(container, dict) or not container.get("name"):
            raise RequestError(f"pod_template={path}: {part}.spec.containers has an item without a name")
        if container["name"] == MAIN and "image" in container:
            raise RequestError(
                f"pod_template={path}: {part}: the image of {MAIN} is set by submit (use image=…)"
            )
