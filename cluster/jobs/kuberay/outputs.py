"""Checks that the output of a command outlives its pods: on a persistent volume, or in a bucket."""

from cluster.jobs.command import Command
from cluster.jobs.kuberay.kustomize import Manifest
from cluster.jobs.kuberay.rendering import KubeOptions
from index.base.errors import RequestError
from index.base.object_cache import with_addresses

_PASSING = {"emptyDir", "configMap", "secret", "downwardAPI", "projected", "ephemeral"}
"""volumes that are deleted with their pod, or that no command writes"""
_LAST_IS_OUTPUT = (("index", "build"), ("pack",), ("export",), ("adopt",))
"""commands whose last path is their output"""
_CHANGES_FIRST = (
    *(("index", name) for name in ("add", "remove", "update", "merge", "rollback", "tune")),
    *(("resplit",), ("choose-head",), ("add-class",), ("remove-class",), ("sweep", "resume")),
)
"""commands that change the folder that is their first path"""
_FOLDERS = {"index": "INDEX", "resplit": "DATASET", "sweep": "FOLDER"}


def check_outputs(command: Command, objects: list[Manifest], options: KubeOptions) -> None:
    """Refuse a command whose output would be lost. Raises RequestError.

    Args:
        command: the command.
        objects: the rendered objects of the job.
        options: the options they were rendered with.
    """
    ray_job = next(one for one in objects if one["kind"] == "RayJob")
    kept = _kept_folders(ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"])
    for key, value in find_outputs(command):
        if (
            not value
            or "://" in value
            or any(value == folder or value.startswith(f"{folder}/") for folder in kept)
        ):
            continue
        if options.is_bucket:
            name = value.rstrip("/").rpartition("/")[2] or "first"
            raise RequestError(
                f"{key}={value} would be lost with the job's pods: with storage={options.storage} they have no persistent volume; "
                f"give {key}={options.storage.rstrip('/')}/{name}"
            )
        raise RequestError(
            f"{key}={value} would be lost with the job's pods; give a path below {', '.join(kept)}, or an address in a "
            "bucket"
        )


def find_outputs(command: Command) -> list[tuple[str, str]]:
    """The outputs of a command: the setting or argument of each, and its value."""
    if command.words == ("train",):
        from fsl_dist.config import load_config

        is_resumed = command.config is None and "--resume" in command.rest
        folder = [word.removeprefix("run.dir=") for word in command.settings if word.startswith("run.dir=")]
        if is_resumed:
            return [("run.dir", folder[-1])] if folder else []
        return [("run.dir", with_addresses(load_config(command.config, command.settings).run.dir))]
    if command.words == ("sweep", "run") and command.config is not None:
        from tune.sweep_file import load_sweep

        return [("dir", with_addresses(load_sweep(command.config, command.settings).dir))]
    given: dict[str, str] = {
        option: command.value(option) for option in ("--out", "--dir") if option in command.options
    }
    if "--out" in given and not given["--out"]:
        given["--out"] = _default_out(command)
    if command.words in _LAST_IS_OUTPUT and command.paths:
        given["OUT"] = command.paths[-1]
    if command.words in _CHANGES_FIRST and command.paths:
        given[_FOLDERS.get(command.words[0], "RUN")] = command.paths[0]
    return [(option, value) for option, value in given.items() if value]


def _default_out(command: Command) -> str:
    """Where a command writes that was given no --out; empty for one that needs it, or writes to its run."""
    if command.words == ("fit",) and command.paths:
        return f"{command.paths[0].rstrip('/').rpartition('/')[2]}-fit"
    return "runs/reproduce" if command.words == ("reproduce",) else ""


def _kept_folders(pod: Manifest) -> list[str]:
    kinds = {volume["name"]: set(volume) - {"name"} for volume in pod.get("volumes") or []}
    mounts = pod["containers"][0].get("volumeMounts") or []
    return [
        mount["mountPath"].rstrip("/")
        for mount in mounts
        if not mount.get("readOnly") and not kinds.get(mount["name"], _PASSING) & _PASSING
    ]
