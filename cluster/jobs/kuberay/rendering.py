"""A job as the objects that run it on Kubernetes with KubeRay, rendered from the files of `k8s/`."""

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
"""kustomize's base, components and overlays, and their README"""

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
    """Text that `pattern` matches from end to end; `rule` says in an error what it must be."""

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
    """Where on the cluster a job runs, and what it gets."""

    image: Annotated[str, AfterValidator(_pinned)] = field(default_factory=_image_of_manifests)
    """of all pods, with a tag or a digest; `latest` is none"""
    namespace: Annotated[str, _like(_LABEL, "a DNS label")] = "fsl-dist"
    """must exist; a DNS label"""
    workers: Annotated[int, Field(ge=1)] = 2
    """worker pods; of a sweep, the most at a time"""
    cpus_per_worker: Annotated[int, Field(ge=1)] = 4
    """CPU cores"""
    gpus_per_worker: Annotated[int, Field(ge=0)] = 0
    """whole GPUs"""
    memory: Annotated[str, _like(r"[1-9]\d*[MGT]i", "a number with Mi, Gi or Ti: 16Gi")] = "16Gi"
    """of a worker, requested and never exceeded: a number with Mi, Gi or Ti"""
    storage: Annotated[str, _like(_STORAGE, _STORAGE_IN_WORDS)] = "fsl-dist"
    """a persistent volume claim that all pods can write, mounted at /mnt/fsl-dist; or s3://… or gs://…: no volume, and the
    Secret fsl-dist-storage, where there is one, as environment variables"""
    queue: Annotated[str, _like(_NAME + "|", "the name of a LocalQueue")] = ""
    """LocalQueue of Kueue that the job waits in; empty: none"""
    priority: Annotated[str, _like(_NAME + "|", "the name of a class")] = ""
    """PriorityClass of the pods; with `queue`, WorkloadPriorityClass of the job; empty: the cluster's own"""
    retries: Annotated[int, Field(ge=0)] = 2
    """new clusters after the first that failed; the command resumes from its storage. A bad request is not tried again"""
    deadline: Annotated[int, Field(ge=60)] = 86_400
    """seconds from submission to the end, waiting and retries included"""
    service_account: Annotated[str, _like(_NAME, "the name of a ServiceAccount")] = "fsl-dist"
    """of all pods"""
    pull_secret: Annotated[str, _like(_NAME + "|", "a Secret's name")] = ""
    """Secret for the image's registry; empty: none"""
    operator_namespace: Annotated[str, _like(_LABEL, "a DNS label")] = "kuberay-system"
    """where KubeRay's operator runs: the one namespace that reaches the job's dashboard. `submit` finds another one where you
    may list the pods of all namespaces"""
    pod_template: str = ""
    """YAML file that is laid over all pods by strategic merge: node selectors, tolerations, spread, volumes, labels; empty:
    none"""

    @property
    def is_bucket(self) -> bool:
        """Whether storage is a bucket, not a volume."""
        return "://" in self.storage


def render(job: Job, options: KubeOptions) -> list[Manifest]:
    """The objects of a job: ConfigMap (where it has a config), RayJob, NetworkPolicies. Raises RequestError."""
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
    """The same as YAML documents, which `kubectl apply -f -` takes; now_s: the moment from which the deadline counts."""
    objects = render(job, options)
    for one in objects:
        if one["kind"] == "RayJob" and now_s is not None:
            set_deadline(one, now_s + options.deadline)
    return write_objects(objects)


def set_deadline(ray_job: Manifest, deadline_s: float) -> None:
    """Give a job the moment, in seconds since 1970, at which it ends at the latest: for those who look at it, and for itself.

    KubeRay's own clock begins anew at each try.
    """
    moment = write_moment(deadline_s)
    ray_job["metadata"].setdefault("annotations", {})[DEADLINE] = moment
    first, enter, rest = ray_job["spec"]["entrypoint"].partition("job enter")
    ray_job["spec"]["entrypoint"] = f"{first}{enter} --deadline {moment}{rest}"


def machines(job: Job, options: KubeOptions) -> list[Machine]:
    """What the job's workers have for work: one machine each."""
    workers = [Machine(cpus=options.cpus_per_worker, gpus=options.gpus_per_worker)] * options.workers
    if works_in_driver(job) and _has_actors(job):  # its own process takes one CPU of the first
        workers[0] = Machine(cpus=options.cpus_per_worker - 1, gpus=options.gpus_per_worker)
    return workers


def command_line(job: Job, ray_version: str) -> list[str]:
    """What Ray runs: the command, in an entry that checks the image's Ray first and prints the result last."""
    config = ["--config", CONFIG_FILE] if job.config else []
    checks = ["--ray-version", ray_version, "--stop-retries"]
    return ["fsl-dist", "job", "enter", *config, *checks, "--", *job.arguments]


def _fit_job(ray_job: Manifest, job: Job, options: KubeOptions) -> None:
    spec = ray_job["spec"]
    cluster = spec["rayClusterSpec"]
    # A shell reads it, and before that Kubernetes, for which $$ is $.
    spec["entrypoint"] = shlex.join(command_line(job, cluster["rayVersion"])).replace("$", "$$")
    if works_in_driver(job):
        # The head has no CPUs for work and no GPU: what works in its own process does so on a worker.
        spec["entrypointNumCpus"] = 1 if _has_actors(job) else options.cpus_per_worker
        if options.gpus_per_worker:
            spec["entrypointNumGpus"] = 1
    spec["backoffLimit"] = options.retries
    # Waiting for its turn is no reason to fail.
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
    """Whether the command does its work in its own process, not in Ray's workers."""
    verb, *rest = job.arguments
    if verb == "sweep":
        return False
    if verb == "train":
        asked = _settings(job)
        if asked.get("mining.run") == "beside" or asked.get("workers.launch") == "ray":
            return False
        return asked.get("workers.launch") == "process" or int(asked.get("workers.num", 1)) <= 1
    if verb == "index" and rest[:1] == ["build"]:
        options = shlex.join(rest)
        return not re.search(r"--workers[ =]([2-9]|\d{2,})", options)
    return True


def _has_actors(job: Job) -> bool:
    return any(argument.startswith("--index-actors") for argument in job.arguments)


def _settings(job: Job) -> dict[str, Any]:
    """Dotted keys of the config, and the command line's over them, as far as a driver's place hangs on them."""
    found: dict[str, Any] = {}
    tree = yaml.safe_load(job.config) or {}
    for room, name in (("workers", "num"), ("workers", "launch"), ("mining", "run")):
        if isinstance(tree.get(room), dict) and name in tree[room]:
            found[f"{room}.{name}"] = tree[room][name]
    for argument in job.arguments[1:]:
        key, is_setting, value = argument.partition("=")
        if is_setting:
            found[key] = value
    return found


def _rename(part: Any, old: str, new: str) -> Any:
    """`part` with every text that is `old`, or starts with `old-`, under the new name."""
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
