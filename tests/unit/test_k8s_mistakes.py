"""The rules catch what they are for: one planted mistake each, reported under the rule's name and under no other."""

import copy
from functools import cache
from pathlib import Path

import pytest
from k8s_security import RULES, broken_rules

from cluster.jobs.kuberay.kustomize import build, patch_json

pytestmark = pytest.mark.k8s

ROOT = Path(__file__).parents[2]
TRAIN, SWEEP, NIGHTLY = "RayJob fsl-dist-train", "RayJob fsl-dist-sweep", "RayCronJob fsl-dist-index-rebuild"
SERVICE, POLICY = "RayService fsl-dist-index", "NetworkPolicy fsl-dist-train"
CLUSTER = "/spec/rayClusterSpec"
HEAD, WORKER = f"{CLUSTER}/headGroupSpec/template/spec", f"{CLUSTER}/workerGroupSpecs/0/template/spec"
SECURITY = "containers/0/securityContext"
# rule, overlay, object, JSON 6902 operation, path, value
MISTAKES = [
    ("unknown-kind", "gpu", TRAIN, "replace", "/apiVersion", "ray.io/v1alpha1"),
    ("unknown-kind", "gpu", TRAIN, "replace", "/kind", "RayJop"),
    ("unknown-kind", "gpu", "StatefulSet fsl-dist-redis", "replace", "/apiVersion", "apps/v1beta1"),
    ("core-schema", "gpu", POLICY, "add", "/spec/ingres", []),
    ("core-schema", "gpu", "PersistentVolumeClaim fsl-dist", "replace", "/spec/resources/requests", "500Gi"),
    ("kuberay-schema", "gpu", TRAIN, "add", "/spec/backOffLimit", 2),
    ("kuberay-schema", "gpu", TRAIN, "replace", f"{CLUSTER}/workerGroupSpecs/0/replicas", "2"),
    ("kuberay-schema", "gpu", TRAIN, "replace", f"{WORKER}/containers/0/resources/limits/memory", "16 GB"),
    ("kuberay-schema", "gpu", TRAIN, "remove", f"{CLUSTER}/workerGroupSpecs/0/groupName", None),
    (
        "kuberay-schema",
        "gpu",
        TRAIN,
        "add",
        f"{HEAD}/containers/0/ports/-",
        {"containerPort": 6379, "name": "again"},
    ),
    (
        "kuberay-schema",
        "gpu",
        TRAIN,
        "add",
        f"{HEAD}/containers/0/env/-",
        {"name": "RAY_USAGE_STATS_ENABLED"},
    ),
    ("kuberay-schema", "gpu", NIGHTLY, "remove", "/spec/schedule", None),
    ("submission-mode", "gpu", TRAIN, "replace", "/spec/submissionMode", "K8sJob"),
    ("submission-mode", "gpu", TRAIN, "replace", "/spec/submissionMode", "SidecarMode"),
    ("submission-mode", "gpu", NIGHTLY, "remove", "/spec/jobTemplate/submitterPodTemplate", None),
    ("shutdown", "gpu", TRAIN, "replace", "/spec/shutdownAfterJobFinishes", False),
    ("shutdown", "gpu", SWEEP, "remove", "/spec/ttlSecondsAfterFinished", None),
    ("deadlines", "gpu", TRAIN, "remove", "/spec/activeDeadlineSeconds", None),
    ("deadlines", "gpu", NIGHTLY, "remove", "/spec/jobTemplate/preRunningDeadlineSeconds", None),
    ("backoff-limit", "gpu", TRAIN, "replace", "/spec/backoffLimit", -1),
    ("name-length", "gpu", TRAIN, "replace", "/metadata/name", "a" * 48),
    ("name-length", "gpu", SERVICE, "replace", "/metadata/name", "1-index"),
    ("replicas", "gpu", TRAIN, "replace", f"{CLUSTER}/workerGroupSpecs/0/maxReplicas", 1),
    ("replicas", "gpu", TRAIN, "replace", f"{CLUSTER}/workerGroupSpecs/0/minReplicas", 1),
    ("replicas", "gpu", SWEEP, "replace", f"{CLUSTER}/autoscalerOptions/version", "v1"),
    ("pull-policy", "gpu", TRAIN, "replace", f"{WORKER}/containers/0/imagePullPolicy", "Sometimes"),
    ("pinned-image", "gpu", TRAIN, "replace", f"{WORKER}/containers/0/image", "fsl-dist:latest"),
    (
        "pinned-image",
        "gpu",
        "StatefulSet fsl-dist-redis",
        "replace",
        "/spec/template/spec/containers/0/image",
        "redis",
    ),
    ("baked-image", "gpu", TRAIN, "add", "/spec/runtimeEnvYAML", "pip: [fsl-dist]"),
    ("mounts", "gpu", TRAIN, "replace", f"{WORKER}/containers/0/volumeMounts/0/name", "stroage"),
    ("mounts", "gpu", TRAIN, "replace", f"{WORKER}/containers/0/volumeMounts/1/mountPath", "/dev/shm"),
    (
        "shared-storage",
        "gpu",
        "PersistentVolumeClaim fsl-dist",
        "replace",
        "/spec/accessModes",
        ["ReadWriteOnce"],
    ),
    ("resources-twice", "gpu", TRAIN, "add", f"{CLUSTER}/headGroupSpec/resources", {"CPU": "0"}),
    ("ray-version", "gpu", TRAIN, "replace", f"{CLUSTER}/rayVersion", "2.59.0"),
    ("token-auth", "gpu", TRAIN, "replace", f"{CLUSTER}/authOptions/mode", "disabled"),
    ("token-auth", "gpu", TRAIN, "replace", f"{CLUSTER}/rayVersion", "2.51.0"),
    ("entrypoint", "gpu", TRAIN, "replace", "/spec/entrypoint", "fsl-dist train --config f.yaml"),
    (
        "entrypoint",
        "gpu",
        NIGHTLY,
        "replace",
        "/spec/jobTemplate/entrypoint",
        "fsl-dist job enter --ray-version 2.60.0 -- index bild a",
    ),
    (
        "entrypoint",
        "gpu",
        NIGHTLY,
        "replace",
        "/spec/jobTemplate/entrypoint",
        "fsl-dist job enter --ray-version 2.60.0 -- index build --worker 2",
    ),
    (
        "entrypoint",
        "gpu",
        TRAIN,
        "replace",
        "/spec/entrypoint",
        "fsl-dist job enter --ray-version 2.59.0 -- train",
    ),
    ("entrypoint", "gpu", "ConfigMap fsl-dist-train", "replace", "/metadata/name", "another"),
    ("serve-application", "gpu", SERVICE, "replace", "/spec/upgradeStrategy/type", "None"),
    (
        "serve-application",
        "gpu",
        SERVICE,
        "replace",
        "/spec/serveConfigV2",
        "applications: [{import_path: 'cluster.cli:no', args: {}}]",
    ),
    (
        "pod-security",
        "gpu",
        TRAIN,
        "remove",
        "/spec/submitterPodTemplate/spec/containers/0/securityContext",
        None,
    ),
    ("pod-security", "gpu", TRAIN, "replace", f"{WORKER}/securityContext/runAsUser", 0),
    ("pod-security", "gpu", TRAIN, "remove", f"{WORKER}/securityContext/fsGroup", None),
    ("pod-security", "gpu", TRAIN, "replace", f"{HEAD}/{SECURITY}/allowPrivilegeEscalation", True),
    ("pod-security", "gpu", TRAIN, "replace", f"{HEAD}/{SECURITY}/capabilities", {"drop": ["NET_RAW"]}),
    ("pod-security", "gpu", TRAIN, "remove", f"{HEAD}/{SECURITY}/seccompProfile", None),
    ("pod-security", "gpu", TRAIN, "add", f"{WORKER}/hostNetwork", True),
    ("pod-security", "gpu", SWEEP, "remove", f"{CLUSTER}/autoscalerOptions/securityContext", None),
    ("idle-head", "gpu", TRAIN, "remove", f"{CLUSTER}/headGroupSpec/rayStartParams/num-cpus", None),
    ("idle-head", "gpu", TRAIN, "add", f"{HEAD}/containers/0/resources/limits/nvidia.com~1gpu", "1"),
    ("worker-resources", "gpu", TRAIN, "replace", f"{WORKER}/containers/0/resources/limits/memory", "32Gi"),
    (
        "worker-resources",
        "gpu",
        TRAIN,
        "remove",
        f"{WORKER}/containers/0/resources/requests/nvidia.com~1gpu",
        None,
    ),
    (
        "worker-resources",
        "gpu",
        NIGHTLY,
        "remove",
        f"/spec/jobTemplate{WORKER.removeprefix('/spec')}/tolerations",
        None,
    ),
    ("service-account", "gpu", TRAIN, "remove", f"{WORKER}/automountServiceAccountToken", None),
    ("service-account", "gpu", TRAIN, "remove", f"{WORKER}/serviceAccountName", None),
    ("service-account", "gpu", SWEEP, "replace", f"{HEAD}/automountServiceAccountToken", False),
    (
        "secrets",
        "gpu",
        TRAIN,
        "add",
        f"{WORKER}/containers/0/env/-",
        {"name": "AWS_SECRET_ACCESS_KEY", "value": "x"},
    ),
    (
        "secrets",
        "gpu",
        SERVICE,
        "replace",
        "/spec/rayClusterConfig/gcsFaultToleranceOptions/redisPassword",
        {"value": "x"},
    ),
    (
        "registry-host",
        "gpu",
        TRAIN,
        "replace",
        f"{WORKER}/containers/0/image",
        "registry.example.com/fsl-dist:0.2.0",
    ),
    ("fault-tolerance", "gpu", SERVICE, "remove", "/spec/rayClusterConfig/gcsFaultToleranceOptions", None),
    (
        "fault-tolerance",
        "gpu",
        TRAIN,
        "add",
        f"{CLUSTER}/gcsFaultToleranceOptions",
        {"redisAddress": "redis:6379"},
    ),
    ("queue", "kueue", TRAIN, "add", "/spec/suspend", True),
    ("queue", "kueue", SWEEP, "add", f"{CLUSTER}/enableInTreeAutoscaling", True),
    ("queue", "kueue", TRAIN, "replace", f"{CLUSTER}/workerGroupSpecs", 18),
    ("network-policy", "gpu", POLICY, "remove", "", None),
    (
        "network-policy",
        "gpu",
        POLICY,
        "replace",
        "/spec/podSelector/matchLabels/fsl-dist~1job",
        "fsl-dist-tarin",
    ),
    ("network-policy", "gpu", POLICY, "replace", "/spec/policyTypes", ["Ingress"]),
    ("network-policy", "gpu", POLICY, "remove", "/spec/egress/1", None),
    ("network-policy", "gpu", POLICY, "remove", "/spec/ingress/0/ports", None),
    (
        "network-policy",
        "gpu",
        POLICY,
        "replace",
        "/spec/ingress/0/from/0/podSelector/matchLabels",
        {"fsl-dist/part": "ray"},
    ),
    ("network-policy", "gpu", f"{POLICY}-dashboard", "add", "/spec/ingress/0/from/-", {"podSelector": {}}),
    ("network-policy", "gpu", f"{POLICY}-dashboard", "remove", "/spec/ingress/0/from", None),
    ("network-policy", "gpu", TRAIN, "add", f"{CLUSTER}/networkPolicy", {"mode": "DenyAll"}),
    (
        "network-policy",
        "gpu",
        TRAIN,
        "replace",
        "/spec/submitterPodTemplate/metadata/labels",
        {"fsl-dist/part": "submitter"},
    ),
]


@cache
def overlay(name: str) -> list[dict]:
    return build(ROOT / "k8s" / "overlays" / name)


@pytest.mark.parametrize(("rule", "name", "where", "operation", "path", "value"), MISTAKES)
def test_a_planted_mistake_is_caught(
    rule: str, name: str, where: str, operation: str, path: str, value: object
) -> None:
    objects = copy.deepcopy(overlay(name))
    found = next(one for one in objects if f"{one['kind']} {one['metadata']['name']}" == where)
    if not path:
        objects.remove(found)
    elif rule == "queue" and isinstance(value, int) and value > 1:
        groups = found["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        groups += [{**copy.deepcopy(groups[0]), "groupName": f"more-{number}"} for number in range(1, value)]
    else:
        patch_json(found, {"op": operation, "path": path, "value": value})
    assert broken_rules(overlay(name)) == []
    assert rule in {line.partition(":")[0] for line in broken_rules(objects)}


def test_each_rule_has_a_mistake() -> None:
    assert {mistake[0] for mistake in MISTAKES} == set(RULES) | {
        "core-schema",
        "kuberay-schema",
        "unknown-kind",
    }
