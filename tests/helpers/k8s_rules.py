"""The rules of a Ray job on Kubernetes that no schema and no server tells: each function is one rule, named by its name.

A rule takes what is applied together, an overlay or a rendered job, and yields a line for each breach. k8s_security has the
rest of them, and `broken_rules`, which applies all.
"""

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import click
import yaml

from cluster.cli import fsl_dist
from cluster.jobs.kuberay.kustomize import containers, pod_specs

Rule = Callable[[list[dict]], Iterator[str]]
RULES: dict[str, Rule] = {}
_MODES = {"K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"}
_ROOT = Path(__file__).parents[2]
_DNS_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"


def rule(check: Rule) -> Rule:
    RULES[check.__name__.replace("_", "-")] = check
    return check


def jobs(objects: list[dict]) -> Iterator[tuple[str, dict]]:
    """RayJobs' specs, those that a RayCronJob makes among them."""
    for one in objects:
        if one["kind"] == "RayJob":
            yield name_of(one), one["spec"]
        elif one["kind"] == "RayCronJob":
            yield name_of(one), one["spec"]["jobTemplate"]


def clusters(objects: list[dict]) -> Iterator[tuple[str, dict]]:
    """RayClusters' specs, in any manifest."""
    yield from ((name, spec["rayClusterSpec"]) for name, spec in jobs(objects))
    for one in objects:
        if one["kind"] == "RayService":
            yield name_of(one), one["spec"]["rayClusterConfig"]


def groups(objects: list[dict]) -> Iterator[tuple[str, str, dict]]:
    for name, cluster in clusters(objects):
        yield name, "head", cluster["headGroupSpec"]
        yield from ((name, "workers", group) for group in cluster.get("workerGroupSpecs", []))


def pods(objects: list[dict]) -> Iterator[tuple[str, dict]]:
    yield from ((name_of(one), pod) for one in objects for pod in pod_specs(one))


def name_of(one: dict) -> str:
    return f"{one.get('kind')} {one.get('metadata', {}).get('name')}"


def pinned_ray() -> str:
    return version("ray")


@rule
def submission_mode(objects: list[dict]) -> Iterator[str]:
    for name, job in jobs(objects):
        mode = job.get("submissionMode", "K8sJobMode")
        if mode not in _MODES:
            yield f"{name}: {mode} is none of {_MODES}"
        if mode == "SidecarMode":
            yield f"{name}: Pod Security refuses SidecarMode's container, and the job waits for ever"
        if mode == "K8sJobMode" and "submitterPodTemplate" not in job:
            yield f"{name}: KubeRay's own submitter has no securityContext"


@rule
def shutdown(objects: list[dict]) -> Iterator[str]:
    for name, job in jobs(objects):
        if not job.get("shutdownAfterJobFinishes"):
            yield f"{name}: shutdownAfterJobFinishes is not true, which ttlSecondsAfterFinished and Kueue need"
        if not job.get("ttlSecondsAfterFinished", 0) > 0:
            yield f"{name}: ttlSecondsAfterFinished is not set"


@rule
def deadlines(objects: list[dict]) -> Iterator[str]:
    for name, job in jobs(objects):
        for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
            if not job.get(key, 0) > 0:
                yield f"{name}: {key} is not set"


@rule
def backoff_limit(objects: list[dict]) -> Iterator[str]:
    for name, job in jobs(objects):
        if job.get("backoffLimit", -1) < 0:
            yield f"{name}: backoffLimit must be at least 0"


@rule
def name_length(objects: list[dict]) -> Iterator[str]:
    # A RayCronJob's jobs, and a RayService's clusters, get an ending.
    most = {"RayJob": 47, "RayCluster": 53, "RayCronJob": 36, "RayService": 47}
    for one in objects:
        text = one["metadata"]["name"]
        if one["kind"] in most and (len(text) > most[one["kind"]] or not re.fullmatch(_DNS_1035, text)):
            yield f"{name_of(one)}: at most {most[one['kind']]} characters, letters, digits and hyphens, a letter first"


@rule
def replicas(objects: list[dict]) -> Iterator[str]:
    for name, cluster in clusters(objects):
        scales = cluster.get("enableInTreeAutoscaling", False)
        if scales and cluster.get("autoscalerOptions", {}).get("version") != "v2":
            yield f"{name}: autoscaling is by autoscalerOptions.version v2"
        for group in cluster.get("workerGroupSpecs", []):
            least, now, most = group["minReplicas"], group.get("replicas", 0), group["maxReplicas"]
            if not least <= now <= most:
                yield f"{name}: minReplicas {least} ≤ replicas {now} ≤ maxReplicas {most} does not hold"
            elif not scales and least != most:
                yield f"{name}: without an autoscaler minReplicas is maxReplicas"


@rule
def pull_policy(objects: list[dict]) -> Iterator[str]:
    for one in objects:
        for container in containers(one):
            if container.get("imagePullPolicy") not in ("Always", "IfNotPresent", "Never"):
                yield f"{name_of(one)}: imagePullPolicy {container.get('imagePullPolicy')}"


@rule
def pinned_image(objects: list[dict]) -> Iterator[str]:
    for one in objects:
        for container in containers(one):
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            if tag in ("", "latest") and "@sha256:" not in container["image"]:
                yield f"{name_of(one)}: {container['image']} has no tag that stays"


@rule
def baked_image(objects: list[dict]) -> Iterator[str]:
    for name, job in jobs(objects):
        if re.search(r"\b(pip|uv|conda)\b", job.get("runtimeEnvYAML", "")):
            yield f"{name}: runtimeEnvYAML installs at run time"


@rule
def mounts(objects: list[dict]) -> Iterator[str]:
    for name, pod in pods(objects):
        there = {volume["name"] for volume in pod.get("volumes", [])}
        for one in objects:
            if name_of(one) == name:
                there |= {c["metadata"]["name"] for c in one["spec"].get("volumeClaimTemplates", [])}
        for container in pod["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in there:
                    yield f"{name}: {mount['name']} is mounted and no volume"
                if mount["mountPath"] == "/dev/shm":
                    yield f"{name}: /dev/shm is KubeRay's to mount"


@rule
def shared_storage(objects: list[dict]) -> Iterator[str]:
    claims = {
        one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "PersistentVolumeClaim"
    }
    for name, spec in claims.items():
        if "ReadWriteMany" not in spec["accessModes"]:
            yield f"PersistentVolumeClaim {name}: not all workers can write it"


@rule
def resources_twice(objects: list[dict]) -> Iterator[str]:
    for name, kind, group in groups(objects):
        params = group.get("rayStartParams", {})
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(params):
            yield f"{name}: {kind} has resources, and the same in rayStartParams"


@rule
def ray_version(objects: list[dict]) -> Iterator[str]:
    for name, cluster in clusters(objects):
        if cluster.get("rayVersion") != pinned_ray():
            yield f"{name}: rayVersion {cluster.get('rayVersion')}, the pinned Ray is {pinned_ray()}"


@rule
def token_auth(objects: list[dict]) -> Iterator[str]:
    for name, cluster in clusters(objects):
        if cluster.get("authOptions", {}).get("mode") != "token":
            yield f"{name}: authOptions.mode is not token"
        elif tuple(map(int, str(cluster.get("rayVersion", "0.0")).split(".")[:2])) < (2, 52):
            yield f"{name}: token authentication needs Ray 2.52"


@rule
def entrypoint(objects: list[dict]) -> Iterator[str]:
    for name, job in jobs(objects):
        words = shlex.split(job["entrypoint"].replace("$$", "$"))
        if words[:3] != ["fsl-dist", "job", "enter"] or "--" not in words:
            yield f"{name}: {job['entrypoint']} is no `fsl-dist job enter … -- COMMAND`"
            continue
        entry, command = words[3 : words.index("--")], words[words.index("--") + 1 :]
        given = dict(zip(entry[::2], entry[1::2], strict=False))
        if unknown := set(given) - {"--config", "--deadline", "--ray-version"}:
            yield f"{name}: job enter takes no {unknown}"
        if given.get("--ray-version") != job["rayClusterSpec"]["rayVersion"]:
            yield f"{name}: --ray-version {given.get('--ray-version')} is not rayVersion"
        if config := given.get("--config"):
            names = {
                v["configMap"]["name"]
                for pod in pod_specs(job)
                for v in pod.get("volumes", [])
                if "configMap" in v
            }
            there = {one["metadata"]["name"] for one in objects if one["kind"] == "ConfigMap"}
            if not names or not names <= there:
                yield f"{name}: --config is mounted from no ConfigMap that is there"
            command = [*command, "--config", config]
        if said := _unknown_command(command):
            yield f"{name}: {said}"


def _unknown_command(words: list[str]) -> str:
    """What click says of a command line; nothing runs."""
    command: click.Command = fsl_dist
    try:
        with click.Context(fsl_dist) as context:
            while isinstance(command, click.Group):
                _, found, words = command.resolve_command(context, words)
                assert found is not None
                command = found
            command.make_context(command.name, list(words), parent=context)
    except click.ClickException as error:
        return error.format_message()
    return ""


@rule
def serve_application(objects: list[dict]) -> Iterator[str]:
    for one in objects:
        if one["kind"] != "RayService":
            continue
        if one["spec"].get("upgradeStrategy", {}).get("type") != "NewCluster":
            yield f"{name_of(one)}: upgradeStrategy is not NewCluster"
        for application in yaml.safe_load(one["spec"]["serveConfigV2"])["applications"]:
            room, _, function = application["import_path"].partition(":")
            # Read, not imported: Ray Serve takes seconds.
            source = ast.parse((_ROOT / f"{room.replace('.', '/')}.py").read_text())
            if function not in [part.name for part in source.body if isinstance(part, ast.FunctionDef)]:
                yield f"{name_of(one)}: {application['import_path']} is not there"
            if not application["args"].get("token_env"):
                yield f"{name_of(one)}: others reach the service, and no token_env is given"
            if application["args"].get("ray_version") != one["spec"]["rayClusterConfig"]["rayVersion"]:
                yield f"{name_of(one)}: args.ray_version is not rayVersion"
