"""The Helm chart gives the objects of the kustomize overlays; its values are described, checked, and each has an effect."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import jsonschema
import pytest
import yaml
from chart import CHART, ROOT, default_values, is_renderable, render, render_text, schema, with_values
from k8s_security import broken_rules

from cluster.jobs.kuberay.kustomize import build, containers
from cluster.jobs.kuberay.rights import render_role
from cluster.service.app import ServiceArguments
from cluster.service.gate import VARIABLE
from cluster.service.settings import GateSettings
from index.base.settings import validate

pytestmark = pytest.mark.k8s

rendered = pytest.mark.skipif(
    not is_renderable(), reason="kubectl, which has Helm's template engine, is not installed"
)


IN_BUCKET = {
    "storage__bucket": True,
    "service__index": "s3://my-bucket/indexes/first",
    "rebuild__run": "s3://my-bucket/runs/first",
    "rebuild__dataset": "s3://my-bucket/data/omniglot",
    "rebuild__index": "s3://my-bucket/indexes/first",
}


def by_name(objects: list[dict]) -> dict[str, dict]:
    """Objects by kind and name; what is YAML inside one is read, since quotes may differ."""
    for one in objects:
        if isinstance(one.get("spec", {}).get("serveConfigV2"), str):
            one["spec"]["serveConfigV2"] = yaml.safe_load(one["spec"]["serveConfigV2"])
    return {f"{one['kind']} {one['metadata']['name']}": one for one in objects}


def of_overlay(name: str, *more: dict) -> dict[str, dict]:
    """What an overlay has of what the chart is for: no jobs, and no namespace, which Helm creates."""
    objects = [one for one in build(ROOT / "k8s" / "overlays" / name) if one["kind"] != "Namespace"]
    jobs = {one["metadata"]["name"] for one in objects if one["kind"] == "RayJob"}
    kept = [one for one in objects if one["metadata"].get("labels", {}).get("fsl-dist/job") not in jobs]
    return by_name([*kept, *more])


def test_templates_are_what_the_files_of_kustomize_give() -> None:
    check = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_chart.py"), "--check"], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr


@rendered
@pytest.mark.parametrize(
    ("overlay", "values"),
    [
        ("cpu", {"image__tag": "0.2.0-cpu"}),
        ("gpu", {"rebuild__gpu": True}),
        ("restricted", {"denyAll": True, **IN_BUCKET}),
    ],
)
def test_the_chart_gives_what_an_overlay_gives(overlay: str, values: dict[str, Any]) -> None:
    wanted = of_overlay(overlay, render_role("fsl-dist"))
    assert {name.split()[0] for name in wanted} >= {
        "RayService",
        "RayCronJob",
        "NetworkPolicy",
        "StatefulSet",
    }
    assert by_name(render(with_values(**values))) == wanted


@rendered
def test_the_monitors_are_those_of_kustomize() -> None:
    only = {"service__enabled": False, "rebuild__enabled": False, "rights": False}
    off = {"serviceAccount__create": False, "storage__create": False}
    values = with_values(monitors__enabled=True, **only, **off)
    assert by_name(render(values)) == by_name(build(ROOT / "k8s" / "monitoring"))
    assert render(with_values(**only, **off)) == []


CHANGES = {
    "image": {
        "image__repository": "hub.example/team/fsl",
        "image__tag": "1-x",
        "image__pullPolicy": "Always",
    },
    "pods": {
        "imagePullSecrets": ["one", "two"],
        "nodeSelector": {"pool": "gpu", "a.b/c": "yes"},
        "tolerations": [
            {"key": "reserved", "operator": "Exists"},
            {"key": "k", "value": "true", "effect": "NoExecute"},
        ],
        "priorityClassName": "high",
    },
    "account": {"serviceAccount__name": "robot", "serviceAccount__annotations": {"role": 'arn:"x": y'}},
    "storage": {"storage__claim": "shared", "storage__size": "2Ti", "storage__className": "nfs"},
    "bucket": {
        **{name: value for name, value in IN_BUCKET.items() if name != "storage__bucket"},
        "storage__bucket": True,
        "storage__secret": "keys",
        "storage__cacheGb": 7,
    },
    "service": {
        "service__index": "/mnt/fsl-dist/i",
        "service__replicas": 5,
        "service__cpus": 7,
        "service__memory": "31Gi",
        "service__tokenSecret": "t",
        "service__args": {"dataset": "/mnt/fsl-dist/d", "max_k": 500, "probe_queries": 0},
        "service__gate": {"body_s": 7.5, "searches": 99},
        "service__redis__image": "redis:9",
        "service__redis__secret": "r",
    },
    "rebuild": {
        "rebuild__schedule": "@daily",
        "rebuild__timeZone": "Europe/Berlin",
        "rebuild__run": "/mnt/fsl-dist/r",
        "rebuild__dataset": "/mnt/fsl-dist/d",
        "rebuild__index": "/mnt/fsl-dist/i",
        "rebuild__settings": [],
        "rebuild__workers": 3,
        "rebuild__cpus": 5,
        "rebuild__memory": "9Gi",
        "rebuild__gpu": True,
    },
    "namespaces": {"namespaces__operator": "ray", "namespaces__monitoring": "prom", "namespaces__dns": "dns"},
    "switches": {
        "denyAll": True,
        "rights": False,
        "monitors__enabled": True,
        "monitors__labels": {"release": "prometheus"},
        "service__enabled": False,
        "rebuild__enabled": False,
        "serviceAccount__create": False,
        "storage__create": False,
    },
}


@rendered
@pytest.mark.parametrize("case", CHANGES)
def test_each_value_has_an_effect(case: str) -> None:
    # The rules expect the default names of accounts, claims and namespaces.
    together = case in ("service", "rebuild", "pods", "image")
    base = {"monitors__enabled": True}
    if case == "bucket":  # its values have an effect where there is a bucket, and its paths go with it
        base |= {name: f"{value}-before" for name, value in IN_BUCKET.items() if name != "storage__bucket"}
        base["storage__bucket"] = True
    before = render_text(with_values(**base))
    for name, value in CHANGES[case].items():
        changed = render_text(with_values(**{**base, name: value}))
        assert (changed == before) == (base.get(name) == value), name
    assert yaml.safe_load_all(render_text(with_values(**CHANGES[case])))
    if together:
        assert broken_rules(known(render(with_values(**CHANGES[case])))) == []


@rendered
@pytest.mark.skipif(
    find_spec("helm_python") is None, reason="helm-python-sdk, which contains Helm, is not installed"
)
@pytest.mark.parametrize("case", ["default", *CHANGES])
def test_helm_renders_the_same(case: str) -> None:
    import helm_python  # type: ignore[import-not-found]

    values = with_values(**CHANGES.get(case, {}))
    with helm_python.Chart.load(str(CHART)) as loaded:
        texts = loaded.render(values, name="fsl-dist", namespace="fsl-dist").values()
    objects = [one for text in texts for one in yaml.safe_load_all(text) if one]
    assert by_name(objects) == by_name(render(values))
    assert helm_python.lint(str(CHART))["errors"] == []


def known(objects: list[dict]) -> list[dict]:
    """Without the Role of people, which the rules about pods' rights are not about."""
    return [one for one in objects if one["kind"] != "Role"]


@rendered
def test_the_service_takes_its_arguments_and_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INDEX_TOKEN", "a token of the tests 0123456789")
    objects = by_name(render(with_values(**CHANGES["service"])))
    spec = objects["RayService fsl-dist-index"]["spec"]
    (application,) = spec["serveConfigV2"]["applications"]
    args = validate(ServiceArguments, application["args"], "the chart", "args")
    assert (args.index, args.dataset, args.replicas) == ("/mnt/fsl-dist/i", "/mnt/fsl-dist/d", 5)
    assert (args.cpus, args.max_k, args.probe_queries) == (7, 500, 0)
    for container in containers(spec):
        text = next(one["value"] for one in container["env"] if one["name"] == VARIABLE)
        gate = validate(GateSettings, json.loads(text), VARIABLE)
        assert (gate.body_s, gate.searches, gate.token_env) == (7.5, 99, "INDEX_TOKEN")


@rendered
def test_another_namespace_is_that_of_every_object() -> None:
    objects = render(with_values(denyAll=True, monitors__enabled=True), namespace="research")
    assert {one["metadata"]["namespace"] for one in objects} == {"research"}
    assert broken_rules(known(objects)) == []


def test_every_value_is_tried_and_described() -> None:
    described = dict(leaves(schema(), default_values()))
    assert {name for changes in CHANGES.values() for name in changes} == set(described)
    assert all(part["description"].endswith(".") for part in described.values())


def leaves(part: dict, values: Any, name: str = "") -> Iterator[tuple[str, dict]]:
    """Each value's name and its description; the schema and values.yaml have the same."""
    if "required" not in part:  # a value that is a list, or a mapping with keys of choice
        yield name, part
        return
    assert set(part["properties"]) == set(values) == set(part["required"]), name
    assert part["additionalProperties"] is False
    for key, inner in part["properties"].items():
        yield from leaves(inner, values[key], f"{name}__{key}" if name else key)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("service__replicas", 0),
        ("service__args", {"index": "/x"}),
        ("service__gate", {"searches": "many"}),
        ("service__replicas", "2"),
        ("service__indx", "/x"),
        ("service__index", "indexes/first"),
        ("service__index", "s3://my-bucket/indexes/first"),  # without storage.bucket
        ("storage__bucket", True),  # paths of a volume, which would be lost with the pod
        ("service__memory", "16 GB"),
        ("rebuild__run", "/x; rm -r /"),
        ("rebuild__settings", ["kind=$(id)"]),
        ("rebuild__schedule", "every night"),
        ("image__pullPolicy", "Sometimes"),
        ("storage__bucket", "no"),
        ("tolerations", [{"keys": "x"}]),
        ("nodeSelector", {"a": 1}),
    ],
)
def test_wrong_values_are_refused(name: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        with_values(**{name: value})


def test_versions_are_the_project_s() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == default_values()["image"]["tag"] == version
