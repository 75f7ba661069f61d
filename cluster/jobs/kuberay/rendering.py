"""The Kubernetes objects of a job for KubeRay, rendered from the files of `k8s/`."""

import json
import re
import shlex
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field

from cluster.jobs.capacity import Machine
from cluster.jobs.deadlines import first_deadlines, write_moment
from cluster.jobs.job import Job
from cluster.jobs.kuberay.kustomize import Manifest, apply_component, pod_specs, read_objects, write_objects
from cluster.jobs.kuberay.pod_template import apply_template
from cluster.jobs.kuberay.states import DEADLINE
from index.base.errors import RequestError
from index.base.settings import settings

MANIFESTS = Path(__file__).parents[2] / "k8s"
"""the base, components and overlays for kustomize, and their README"""

JOB_LABEL = "fsl-dist/job"
"""on every object and pod of a job: its name"""
PART_LABEL = "fsl-dist/part"
"""on every pod of a job: `ray`, or `submitter`, whose log is the job's"""

CONFIG_FILE = "/etc/fsl-dist/config.yaml"
_LARGEST_CONFIG = 1_000_000
"""bytes; a ConfigMap holds 1 MiB"""
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_NAME = rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*"
_STORAGE = rf"{_NAME}|(s3|gs)://[^/\s]+(/\S*)?"
_STORAGE_IN_WORDS = "the name of a persistent volume claim, s3://BUCKET/… or gs://BUCKET/…"


def _image_of_manifests() -> str:
    image = yaml.safe_load((MANIFESTS / "base" / "kustomization.yaml").read_text("utf-8"))["images"][0]
    return f"{image['name']}:{image['newTag']}"


def _like(pattern: str, rule: str) -> AfterValidator:
    """Text that `pattern` matches in full; `rule` is the requirement in an error."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(rule)
        return text

    return AfterValidator(check)


def _pinned(image: str) -> str:
    name, _, tag = image.rpartition("/")[2].partition(":")
    if not name or re.search(r"\s", image) or ("@sha256:" not in image and tag in ("", "latest")):
        raise ValueError("NAME:TAG or NAME@sha256:…, and the tag not latest")
    return image


@settings("")
class KubeOptions:
    """The namespace and the resources of a job on Kubernetes."""

    image: Annotated[str, AfterValidator(_pinned)] = field(default_factory=_image_of_manifests)
    """container image of all pods, with a tag other than `latest`, or a digest"""
    namespace: Annotated[str, _like(_LABEL, "a DNS label")] = "fsl-dist"
    """an existing namespace; a DNS label"""
    workers: Annotated[int, Field(ge=1)] = 2
    """worker pods; for a sweep, the maximum"""
    cpus_per_worker: Annotated[int, Field(ge=1)] = 4
    """CPU cores of each worker"""
    gpus_per_worker: Annotated[int, Field(ge=0)] = 0
    """whole GPUs of each worker"""
    memory: Annotated[str, _like(r"[1-9]\d*[MGT]i", "a number with Mi, Gi or Ti: 16Gi")] = "16Gi"
    """memory of each worker, as request and limit: a number with Mi, Gi or Ti"""
    storage: Annotated[str, _like(_STORAGE, _STORAGE_IN_WORDS)] = "fsl-dist"
    """a persistent volume claim that all pods can write, mounted at /mnt/fsl-dist; or s3://… or gs://…: no volume, and
    the Secret fsl-dist-storage, if it exists, as environment variables"""
    queue: Annotated[str, _like(_NAME + "|", "the name of a LocalQueue")] = ""
    """LocalQueue of Kueue in which the job waits; empty: none"""
    priority: Annotated[str, _like(_NAME + "|", "the name of a class")] = ""
    """PriorityClass of the pods; with `queue`, WorkloadPriorityClass of the job; empty: the cluster's default"""
    retries: Annotated[int, Field(ge=0)] = 2
    """retries on a new cluster, in which the command resumes from its storage; a bad request is not retried"""
    deadline: Annotated[int, Field(ge=60)] = 86_400
    """seconds from submission to the end, including waiting and retries"""
    service_account: Annotated[str, _like(_NAME, "the name of a ServiceAccount")] = "fsl-dist"
    """ServiceAccount of all pods"""
    pull_secret: Annotated[str, _like(_NAME + "|", "a Secret's name")] = ""
    """Secret with the login for the image's registry; empty: none"""
    operator_namespace: Annotated[str, _like(_LABEL, "a DNS label")] = "kuberay-system"
    """namespace of KubeRay's operator, the only one that may reach the job's dashboard; `submit` finds another one
    itself if you may list the pods of all namespaces"""
    pod_template: str = ""
    """YAML file that is applied to all pods by strategic merge: node selectors, tolerations, volumes, labels; empty:
    none"""

    @property
    def is_bucket(self) -> bool:
        """Whether the storage is a bucket rather than a volume."""
        return "://" in self.storage


def render(job: Job, options: KubeOptions) -> list[Manifest]:
    """The objects of a job: ConfigMap (if it has a config), RayJob, NetworkPolicies. Raises RequestError."""
    if not job.arguments:
        raise RequestError("submit needs a command after --: submit --to kuberay -- train --config F")
    if (size := len(job.config.encode())) > _LARGEST_CONFIG:
        raise RequestError(
            f"--config has {size} bytes with all it refers to; a ConfigMap holds {_LARGEST_CONFIG} (put lists of files into "
            "the storage)"
        )
    template = "sweep" if job.arguments[0] == "sweep" else "train"
    folder = MANIFESTS
    objects = read_objects(folder / "base" / f"{template}.yaml")
    for component, is_used in (
        ("gpu", options.gpus_per_worker > 0),
        ("bucket", options.is_bucket),
        ("kueue", bool(options.queue)),
    ):
        if is_used:
            objects = apply_component(folder / "components" / component, objects)
    objects = [_rename(one, f"fsl-dist-{template}", job.name) for one in objects]
    if not job.config:
        objects = [one for one in objects if one["kind"] != "ConfigMap"]
    for one in objects:
        one["metadata"]["namespace"] = options.namespace
        if one["kind"] == "ConfigMap":
            one["data"] = {Path(CONFIG_FILE).name: job.config}
        elif one["kind"] == "RayJob":
            _fit_job(one, job, options)
        elif one["kind"] == "NetworkPolicy":
            _admit_operator(one, options.operator_namespace)
    return objects


def render_yaml(job: Job, options: KubeOptions, *, now_s: float | None = None) -> str:
    """The same as YAML documents for `kubectl apply -f -`; now_s: start of the deadline, seconds since 1970."""
    objects = render(job, options)
    for one in objects:
        if one["kind"] == "RayJob" and now_s is not None:
            set_deadline(one, now_s + options.deadline)
    return write_objects(objects)


def set_deadline(ray_job: Manifest, deadline_s: float) -> None:
    """Write a job's deadline, in seconds since 1970, into its annotations and its command line.

    KubeRay's own clock restarts at each try.
    """
    moment = write_moment(deadline_s)
    ray_job["metadata"].setdefault("annotations", {})[DEADLINE] = moment
    first, enter, rest = ray_job["spec"]["entrypoint"].partition("job enter")
    ray_job["spec"]["entrypoint"] = f"{first}{enter} --deadline {moment}{rest}"


def machines(job: Job, options: KubeOptions) -> list[Machine]:
    """The resources of the job's workers, each one machine."""
    workers = [Machine(cpus=options.cpus_per_worker, gpus=options.gpus_per_worker)] * options.workers
    if works_in_driver(job) and _has_actors(job):  # the command's process takes one CPU of the first
        workers[0] = Machine(cpus=options.cpus_per_worker - 1, gpus=options.gpus_per_worker)
    return workers


def command_line(job: Job, ray_version: str) -> list[str]:
    """The command line for Ray: it checks the image's Ray version, runs the command and prints the result."""
    config = ["--config", CONFIG_FILE] if job.config else []
    checks = ["--ray-version", ray_version, "--stop-retries"]
    return ["fsl-dist", "job", "enter", *config, *checks, "--", *job.arguments]


def _fit_job(ray_job: Manifest, job: Job, options: KubeOptions) -> None:
    spec = ray_job["spec"]
    cluster = spec["rayClusterSpec"]
    # Kubernetes reads it first, for which $$ is $, and then a shell.
    spec["entrypoint"] = shlex.join(command_line(job, cluster["rayVersion"])).replace("$", "$$")
    if works_in_driver(job):
        # The head has no CPUs for work and no GPU: a command that works in its own process runs on a worker.
        spec["entrypointNumCpus"] = 1 if _has_actors(job) else options.cpus_per_worker
        if options.gpus_per_worker:
            spec["entrypointNumGpus"] = 1
    spec["backoffLimit"] = options.retries
    # A job may wait in its queue until its deadline.
    start_s = options.deadline if options.queue else spec["preRunningDeadlineSeconds"]
    one_try_s, start_s = first_deadlines(options.deadline, options.retries, start_s)
    spec |= {"activeDeadlineSeconds": one_try_s, "preRunningDeadlineSeconds": start_s}
    if options.queue:
        labels = ray_job["metadata"]["labels"]
        labels["kueue.x-k8s.io/queue-name"] = options.queue
        if options.priority:
            labels["kueue.x-k8s.io/priority-class"] = options.priority
    workers = cluster["workerGroupSpecs"][0]
    is_fixed = workers["minReplicas"] == workers["maxReplicas"]
    workers |= {"replicas": options.workers, "maxReplicas": options.workers}
    workers["minReplicas"] = options.workers if is_fixed else 1
    share = workers["template"]["spec"]["containers"][0]["resources"]
    for amount in (share["requests"], share["limits"]):
        amount |= {"cpu": str(options.cpus_per_worker), "memory": options.memory}
        if options.gpus_per_worker:
            amount["nvidia.com/gpu"] = str(options.gpus_per_worker)
    for pod in pod_specs(spec):
        _fit_pod(pod, job, options)
    if options.pod_template:
        for part, template in (
            ("head", cluster["headGroupSpec"]["template"]),
            ("worker", workers["template"]),
            ("submitter", spec["submitterPodTemplate"]),
        ):
            apply_template(options.pod_template, part, template)


def _fit_pod(pod: Manifest, job: Job, options: KubeOptions) -> None:
    pod["serviceAccountName"] = options.service_account
    if options.priority and not options.queue:
        pod["priorityClassName"] = options.priority
    if options.pull_secret:
        pod["imagePullSecrets"] = [{"name": options.pull_secret}]
    for container in pod["containers"]:
        container["image"] = options.image
    for volume in pod.get("volumes", []):
        if claim := volume.get("persistentVolumeClaim"):
            claim["claimName"] = options.storage
    if not job.config and "volumes" in pod:
        pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "config"]
        for container in pod["containers"]:
            container["volumeMounts"] = [m for m in container["volumeMounts"] if m["name"] != "config"]


def works_in_driver(job: Job) -> bool:
    """Whether the command works in its own process rather than in Ray's workers."""
    word, *rest = job.arguments
    if word == "sweep":
        return False
    if word == "train":
        asked = _settings(job)
        if asked.get("mining.run") == "beside" or asked.get("workers.launch") == "ray":
            return False
        return asked.get("workers.launch") == "process" or int(asked.get("workers.num", 1)) <= 1
    if word == "index" and rest[:1] == ["build"]:
        options = shlex.join(rest)
        return not re.search(r"--workers[ =]([2-9]|\d{2,})", options)
    return True


def _has_actors(job: Job) -> bool:
    return any(argument.startswith("--index-actors") for argument in job.arguments)


def _settings(job: Job) -> dict[str, Any]:
    """The dotted settings of the config and the command line that decide where the driver runs."""
    found: dict[str, Any] = {}
    tree = yaml.safe_load(job.config) or {}
    for section, name in (("workers", "num"), ("workers", "launch"), ("mining", "run")):
        if isinstance(tree.get(section), dict) and name in tree[section]:
            found[f"{section}.{name}"] = tree[section][name]
    for argument in job.arguments[1:]:
        key, is_setting, value = argument.partition("=")
        if is_setting:
            found[key] = value
    return found


def _rename(part: Any, old: str, new: str) -> Any:
    """`part` with `new` for `old` in every text that is `old` or starts with `old-`."""
    if isinstance(part, dict):
        return {key: _rename(value, old, new) for key, value in part.items()}
    if isinstance(part, list):
        return [_rename(value, old, new) for value in part]
    if isinstance(part, str) and (part == old or part.startswith(f"{old}-")):
        return new + part.removeprefix(old)
    return part


def _admit_operator(policy: Manifest, namespace: str) -> None:
    text = json.dumps(policy["spec"])
    policy["spec"] = json.loads(text.replace('"kuberay-system"', json.dumps(namespace)))
