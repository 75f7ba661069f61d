"""A site's own additions to all pods: strategic merge by Kubernetes' rules, refused where a pod breaks restricted ones."""

from pathlib import Path

import pytest
import yaml
from k8s_security import broken_rules

from cluster.jobs.job import Job
from cluster.jobs.kuberay.kustomize import pod_specs
from cluster.jobs.kuberay.pod_security import find_faults
from cluster.jobs.kuberay.pod_template import merge
from cluster.jobs.kuberay.rendering import KubeOptions, render
from index.base.errors import RequestError

pytestmark = pytest.mark.k8s

JOB = Job(name="a", arguments=("train",), config="workers: {num: 2}\n")
SECURE = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def rendered(folder: Path, template: object, **options: object) -> list[dict]:
    path = folder / "pods.yaml"
    path.write_text(yaml.safe_dump(template))
    return render(JOB, KubeOptions(pod_template=str(path), **options))  # type: ignore[arg-type]


def ray_job(objects: list[dict]) -> dict:
    return next(one for one in objects if one["kind"] == "RayJob")["spec"]


def test_a_site_s_additions_reach_their_pods_and_break_no_rule(tmp_path: Path) -> None:
    objects = rendered(
        tmp_path,
        {
            "all": {
                "metadata": {"labels": {"team": "vision"}, "annotations": {"cost-centre": "7"}},
                "spec": {
                    "nodeSelector": {"pool": "a"},
                    "tolerations": [{"key": "reserved", "operator": "Exists"}],
                    "topologySpreadConstraints": [
                        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
                    ],
                },
            },
            "worker": {
                "spec": {
                    "nodeSelector": {"pool": "gpu"},
                    "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}}],
                    "containers": [
                        {
                            "name": "main",
                            "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
                            "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
                        },
                        {"name": "sidecar", "image": "log:1", "imagePullPolicy": "IfNotPresent", "securityContext": SECURE,
                         "resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "1Gi"}}},
                    ],
                }
            },
        },
        gpus_per_worker=1,
    )  # fmt: skip
    faults = broken_rules(objects)
    assert [fault for fault in faults if "/dev/shm" not in fault] == [], (
        "only a base file must not size /dev/shm"
    )
    spec = ray_job(objects)
    worker = spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]
    submitter = spec["submitterPodTemplate"]
    assert [one["spec"]["nodeSelector"]["pool"] for one in (head, worker, submitter)] == ["a", "gpu", "a"]
    assert {one["metadata"]["labels"]["team"] for one in (head, worker, submitter)} == {"vision"}
    assert worker["metadata"]["labels"]["fsl-dist/job"] == "a"
    assert [one["key"] for one in worker["spec"]["tolerations"]] == ["nvidia.com/gpu", "reserved"]
    main, sidecar = worker["spec"]["containers"]
    assert (main["name"], sidecar["name"]) == ("ray-worker", "sidecar")
    assert [one["name"] for one in main["env"]] == [
        "RAY_USAGE_STATS_ENABLED",
        "RAY_JOB_STOP_WAIT_TIME_S",
        "NCCL_DEBUG",
    ]
    assert {one["mountPath"] for one in main["volumeMounts"]} >= {"/mnt/fsl-dist", "/dev/shm"}


def test_a_bare_pod_template_is_for_all_pods(tmp_path: Path) -> None:
    spec = ray_job(rendered(tmp_path, {"spec": {"priorityClassName": "batch"}}))
    assert [pod["priorityClassName"] for pod in pod_specs(spec)] == ["batch"] * 3


@pytest.mark.parametrize(
    ("old", "patch", "merged"),
    [
        ({"a": 1, "b": 2}, {"b": None, "c": 3}, {"a": 1, "c": 3}),
        ({"a": {"x": 1}}, {"a": {"y": 2}}, {"a": {"x": 1, "y": 2}}),
        ({"a": {"x": 1}}, {"a": {"$patch": "replace", "y": 2}}, {"a": {"y": 2}}),
        ({"a": {"x": 1}}, {"a": {"$patch": "delete"}}, {}),
        ({"args": [1, 2]}, {"args": [3]}, {"args": [3]}),
        ({"env": [{"name": "x", "value": "1"}]}, {"env": [{"name": "y", "value": "2"}]},
         {"env": [{"name": "x", "value": "1"}, {"name": "y", "value": "2"}]}),
        ({"env": [{"name": "x", "value": "1"}]}, {"env": [{"name": "x", "value": "2"}]}, {"env": [{"name": "x", "value": "2"}]}),
        ({"env": [{"name": "x"}, {"name": "y"}]}, {"env": [{"name": "x", "$patch": "delete"}]}, {"env": [{"name": "y"}]}),
        ({"env": [{"name": "x"}]}, {"env": [{"$patch": "replace"}, {"name": "y"}]}, {"env": [{"name": "y"}]}),
        ({"ports": [{"containerPort": 80}]}, {"ports": [{"containerPort": 80, "protocol": "TCP", "name": "w"}]},
         {"ports": [{"containerPort": 80, "protocol": "TCP", "name": "w"}]}),
        ({"ports": [{"containerPort": 80}]}, {"ports": [{"containerPort": 80, "protocol": "UDP"}]},
         {"ports": [{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}]}),
    ],
)  # fmt: skip
def test_strategic_merge(old: dict, patch: dict, merged: dict) -> None:
    before = yaml.safe_dump(old)
    assert merge(old, patch) == merged
    assert yaml.safe_dump(old) == before, "what is merged over stays as it was"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"spec": {"hostNetwork": True}}, "the head pod would break Pod Security \"restricted\": hostNetwork=True"),
        ({"worker": {"spec": {"volumes": [{"name": "d", "hostPath": {"path": "/"}}]}}}, "worker pod .* volume d is a hostPath"),
        ({"spec": {"securityContext": {"runAsUser": 0}}}, "runAsUser=0"),
        ({"spec": {"securityContext": {"runAsNonRoot": False}}}, "runAsNonRoot=false"),
        ({"spec": {"containers": [{"name": "main", "securityContext": {"privileged": True}}]}}, "is privileged"),
        ({"spec": {"containers": [{"name": "side", "image": "x:1"}]}}, "container side has no allowPrivilegeEscalation=false"),
        ({"spec": {"containers": [{"name": "main", "ports": [{"containerPort": 1, "hostPort": 1}]}]}}, "takes port 1 of its node"),
        ({"spec": {"initContainers": [{"name": "i", "image": "x:1"}]}}, "container i does not drop"),
        ({"wrker": {"spec": {}}}, "wrker is none of all, head, worker, submitter"),
        ({"worker": {"nodeSelector": {}}}, "worker.nodeSelector is none of a pod template's metadata and spec"),
        ({"metadata": {"labels": {"fsl-dist/job": "b"}}}, "all.metadata.labels.fsl-dist/job is set by submit and cannot be changed"),
        ({"spec": {"serviceAccountName": "x"}}, r"all.spec.serviceAccountName is set by submit \(use service_account="),
        ({"spec": {"containers": [{"image": "x:1"}]}}, "an item without a name"),
        ({"spec": {"containers": [{"name": "main", "image": "x:1"}]}}, "the image of main is set by submit"),
    ],
)  # fmt: skip
def test_what_no_restricted_namespace_takes_is_refused_in_one_line(
    tmp_path: Path, template: dict, said: str
) -> None:
    with pytest.raises(RequestError, match=said) as refused:
        rendered(tmp_path, template)
    assert "\n" not in str(refused.value)
    assert "pod_template=" in str(refused.value)


def test_every_pod_of_every_job_passes_the_restricted_rules() -> None:
    for arguments in (("train",), ("sweep", "run")):
        for one in render(Job(name="a", arguments=arguments, config="trials: 1\n"), KubeOptions()):
            assert [fault for pod in pod_specs(one) for fault in find_faults(pod)] == []
