"""What the options of `submit --to kuberay` do to a rendered job, and which are refused."""

import shlex
import subprocess

import pytest

from cluster.jobs.job import Job
from cluster.jobs.kuberay.kustomize import containers, pod_specs
from cluster.jobs.kuberay.rendering import CONFIG_FILE, KubeOptions, command_line, render, works_in_driver
from index.base.errors import RequestError

pytestmark = pytest.mark.k8s

TWO = "workers: {num: 2}\n"


def ray_job(job: Job, **options: object) -> dict:
    return next(one for one in render(job, KubeOptions(**options)) if one["kind"] == "RayJob")  # type: ignore[arg-type]


def test_options_reach_the_job() -> None:
    job = ray_job(
        Job(name="a", arguments=("train",), config=TWO),
        image="fsl-dist@sha256:abc",
        workers=5,
        cpus_per_worker=7,
        gpus_per_worker=2,
        memory="48Gi",
        storage="shared",
        priority="high",
        retries=1,
        deadline=600,
        service_account="robot",
        pull_secret="registry",
    )
    spec = job["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"], spec["preRunningDeadlineSeconds"]) == (
        1,
        720,
        300,
    )
    group = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (5, 5, 5)
    share = {"cpu": "7", "memory": "48Gi", "nvidia.com/gpu": "2"}
    assert group["template"]["spec"]["containers"][0]["resources"] == {"requests": share, "limits": share}
    pods = list(pod_specs(job))
    assert len(pods) == 3
    assert {pod["serviceAccountName"] for pod in pods} == {"robot"}
    assert {pod["priorityClassName"] for pod in pods} == {"high"}
    assert [pod["imagePullSecrets"] for pod in pods] == [[{"name": "registry"}]] * 3
    assert {container["image"] for container in containers(job)} == {"fsl-dist@sha256:abc"}
    claims = [
        v["persistentVolumeClaim"] for pod in pods for v in pod.get("volumes", []) if v["name"] == "storage"
    ]
    assert claims == [{"claimName": "shared"}] * 2


def test_a_sweep_keeps_one_worker_and_may_have_all_unless_a_queue_holds_their_place() -> None:
    sweep = Job(name="a", arguments=("sweep", "run"), config="trials: 3\n")
    for options, least in (({"workers": 6}, 1), ({"workers": 6, "queue": "team"}, 6)):
        cluster = ray_job(sweep, **options)["spec"]["rayClusterSpec"]
        group = cluster["workerGroupSpecs"][0]
        assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (least, 6, 6)
        assert cluster.get("enableInTreeAutoscaling", False) == (least == 1)


def test_a_queue_gives_the_priority_and_no_hurry() -> None:
    job = ray_job(Job(name="a", arguments=("train",), config=TWO), queue="team", priority="high")
    labels = job["metadata"]["labels"]
    assert (labels["kueue.x-k8s.io/queue-name"], labels["kueue.x-k8s.io/priority-class"]) == ("team", "high")
    assert all("priorityClassName" not in pod for pod in pod_specs(job))
    # A third of a day for each of three tries, not the hour of a job that no queue holds.
    assert job["spec"]["preRunningDeadlineSeconds"] == 28_800


def test_the_operator_s_namespace_is_the_one_that_reaches_the_dashboard() -> None:
    job = Job(name="a", arguments=("train",), config=TWO)
    text = str(render(job, KubeOptions(operator_namespace="ray-operators")))
    assert "ray-operators" in text
    assert "kuberay-system" not in text


def test_a_job_without_config_mounts_none() -> None:
    objects = render(Job(name="a", arguments=("evaluate", "/mnt/fsl-dist/r")), KubeOptions())
    assert [one["kind"] for one in objects] == ["RayJob", "NetworkPolicy", "NetworkPolicy"]
    assert CONFIG_FILE not in str(objects)
    assert "configMap" not in str(objects)


@pytest.mark.parametrize(
    "argument",
    ["a b", "it's", "$HOME", "$(HOME)", "`id`", "a;b", "x=[1, 2]", 'say "x"', "é*?", "a\\b", "", "$$(X)"],
)
def test_arguments_arrive_as_they_are(argument: str) -> None:
    """The submitter's shell reads the entrypoint, then Ray's CLI quotes what it got for the shell on the head."""
    job = Job(name="a", arguments=("train", argument), config=TWO)
    entrypoint = ray_job(job)["spec"]["entrypoint"].replace("$$", "$")  # which Kubernetes does
    show = ["python3", "-c", "import sys, shlex; print(shlex.join(sys.argv[1:]))"]
    heard = subprocess.run(
        ["bash", "-c", f"{shlex.join(show)} {entrypoint}"], capture_output=True, text=True, check=True
    ).stdout
    on_the_head = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {heard.rstrip(chr(10))}"], capture_output=True, text=True, check=True
    ).stdout
    assert on_the_head.split("\0")[:-1] == command_line(job, "2.60.0")


@pytest.mark.parametrize(
    ("arguments", "config", "expected"),
    [
        (("train",), TWO, False),
        (("train",), "workers: {num: 1}\n", True),
        (("train",), "", True),
        (("train", "workers.num=4"), "", False),
        (("train", "workers.num=1"), TWO, True),
        (("train", "workers.launch=ray"), "", False),
        (("train",), "mining: {run: beside}\n", False),
        (("sweep", "run"), "", False),
        (("index", "build", "r", "d", "i"), "", True),
        (("index", "build", "r", "d", "i", "--workers", "2"), "", False),
        (("index", "build", "r", "d", "i", "--workers=12"), "", False),
        (("index", "build", "r", "d", "i", "--workers=1"), "", True),
        (("evaluate", "r"), "", True),
    ],
)
def test_what_works_in_its_own_process_runs_on_a_worker(
    arguments: tuple, config: str, expected: bool
) -> None:
    job = Job(name="a", arguments=arguments, config=config)
    assert works_in_driver(job) == expected
    spec = ray_job(job, cpus_per_worker=6, gpus_per_worker=1)["spec"]
    assert (spec.get("entrypointNumCpus"), spec.get("entrypointNumGpus")) == (
        (6, 1) if expected else (None, None)
    )


def test_actors_of_an_evaluation_have_room_beside_it() -> None:
    job = Job(name="a", arguments=("evaluate", "r", "--index", "i", "--index-actors", "3"))
    assert ray_job(job)["spec"]["entrypointNumCpus"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image": "fsl-dist"}, r'image="fsl-dist" must be NAME:TAG or NAME@sha256'),
        ({"image": "fsl-dist:latest"}, r'image="fsl-dist:latest" .* the tag not latest'),
        ({"image": "host:5000/fsl-dist"}, r'image="host:5000/fsl-dist"'),
        ({"namespace": "A_b"}, r'namespace="A_b" must be a DNS label'),
        ({"workers": 0}, r"workers=0 must be at least 1"),
        ({"cpus_per_worker": 0}, r"cpus_per_worker=0 must be at least 1"),
        ({"gpus_per_worker": -1}, r"gpus_per_worker=-1 must be at least 0"),
        ({"memory": "16 GB"}, r'memory="16 GB" must be a number with Mi, Gi or Ti'),
        (
            {"storage": "/mnt/disk"},
            r'storage="/mnt/disk" must be the name of a persistent volume claim, s3://',
        ),
        ({"storage": "s3://"}, r'storage="s3://"'),
        ({"queue": "a b"}, r'queue="a b"'),
        ({"priority": "High!"}, r'priority="High!"'),
        ({"retries": -1}, r"retries=-1 must be at least 0"),
        ({"deadline": 59}, r"deadline=59 must be at least 60"),
        ({"service_account": ""}, r'service_account="" must be the name of a ServiceAccount'),
        ({"pull_secret": "-"}, r'pull_secret="-"'),
        ({"operator_namespace": ""}, r'operator_namespace="" must be a DNS label'),
    ],
)
def test_impossible_options_are_refused_in_one_line(options: dict, said: str) -> None:
    with pytest.raises(RequestError, match=said) as told:
        KubeOptions(**options)
    assert "\n" not in str(told.value)


def test_a_config_that_no_configmap_holds_is_refused() -> None:
    with pytest.raises(RequestError, match=r"--config has 1000001 bytes .*a ConfigMap holds 1000000"):
        render(Job(name="a", arguments=("train",), config="#" * 1_000_001), KubeOptions())
    with pytest.raises(RequestError, match=r"submit needs a command after --"):
        render(Job(name="a", arguments=()), KubeOptions())
