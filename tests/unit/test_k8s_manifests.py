"""Every overlay and every rendered job passes strict validation, KubeRay's schemas and the rules of helpers/k8s_rules."""

import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from k8s_security import broken_rules

from cluster.jobs.job import Job
from cluster.jobs.kuberay.kustomize import build, containers, read_objects
from cluster.jobs.kuberay.rendering import KubeOptions, render, render_yaml

pytestmark = pytest.mark.k8s

ROOT = Path(__file__).parents[2]
OVERLAYS = ("cpu", "gpu", "kueue", "restricted")
TRAIN = "run: {dir: /mnt/fsl-dist/runs/a}\nworkers: {num: 2}\n"
JOBS = {
    "train": Job(name="a-train", arguments=("train", "training.epochs=3"), config=TRAIN),
    "sweep": Job(name="a-sweep", arguments=("sweep", "run", "trials=4"), config="trials: 4\n"),
    "index": Job(
        name="an-index", arguments=("index", "build", "/mnt/fsl-dist/r", "/mnt/fsl-dist/d", "/mnt/fsl-dist/i")
    ),
    "evaluate": Job(name="an-evaluation", arguments=("evaluate", "/mnt/fsl-dist/r", "--protocol", "knn")),
}
# What `submit` is asked for where people use the overlay of that name.
OPTIONS = {
    "cpu": KubeOptions(image="fsl-dist:0.2.0-cpu"),
    "gpu": KubeOptions(gpus_per_worker=2, workers=3),
    "kueue": KubeOptions(gpus_per_worker=1, queue="team", priority="high"),
    "restricted": KubeOptions(storage="s3://bucket/prefix", priority="high", pull_secret="registry"),
}


@cache
def overlay(name: str) -> list[dict]:
    return build(ROOT / "k8s" / "overlays" / name)


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_breaks_no_rule(name: str) -> None:
    objects = overlay(name)
    assert broken_rules(objects) == []
    kinds = {one["kind"] for one in objects}
    assert kinds >= {"Namespace", "ServiceAccount", "RayJob", "RayCronJob", "RayService", "NetworkPolicy"}
    assert ("PersistentVolumeClaim" in kinds) == (name != "restricted"), "a bucket needs no volume"


@pytest.mark.parametrize("kind", JOBS)
@pytest.mark.parametrize("name", OVERLAYS)
def test_a_rendered_job_breaks_no_rule(name: str, kind: str) -> None:
    objects = list(yaml.safe_load_all(render_yaml(JOBS[kind], OPTIONS[name])))
    assert objects == render(JOBS[kind], OPTIONS[name])
    assert broken_rules(objects) == []
    assert {one["metadata"]["namespace"] for one in objects} == {"fsl-dist"}
    assert {one["metadata"]["labels"]["fsl-dist/job"] for one in objects} == {JOBS[kind].name}
    assert [one["kind"] for one in objects].count("NetworkPolicy") == 2


@pytest.mark.parametrize(
    ("overlay_name", "template", "kind"), [("gpu", "train", "train"), ("gpu", "sweep", "sweep")]
)
def test_a_job_is_rendered_from_what_kustomize_builds(overlay_name: str, template: str, kind: str) -> None:
    """One source: under the template's name, with its sizes, its config and its command, submit gives the overlay's objects."""
    name = f"fsl-dist-{template}"
    built = [
        one for one in overlay(overlay_name) if one["metadata"].get("labels", {}).get("fsl-dist/job") == name
    ]
    config = next(one for one in built if one["kind"] == "ConfigMap")["data"]["config.yaml"]
    job = Job(name=name, arguments=JOBS[kind].arguments[: 1 if kind == "train" else 2], config=config)
    options = KubeOptions(gpus_per_worker=1, workers=4 if template == "sweep" else 2)
    assert render(job, options) == built


def test_the_documented_configs_are_configs(tmp_path: Path) -> None:
    from fsl_dist.config import load_config
    from tune.sweep_file import load_sweep

    for one in overlay("cpu"):
        if one["kind"] == "ConfigMap":
            path = tmp_path / f"{one['metadata']['name']}.yaml"
            path.write_text(one["data"]["config.yaml"])
            config = (load_sweep if "sweep" in path.name else load_config)(path, ())
            assert "/mnt/fsl-dist/" in str(config)


def test_with_a_bucket_nothing_is_written_where_it_is_lost() -> None:
    """The same objects as on a volume, apart from what they mount, and every place in the bucket."""
    kept = "/mnt/fsl-dist/copies"  # of an index that is in the bucket
    on_disk, in_bucket = overlay("cpu"), overlay("restricted")
    for kind in ("ConfigMap", "RayCronJob", "RayService"):
        texts = {
            name: [text for one in objects if one["kind"] == kind for text in _texts(one)]
            for name, objects in (("disk", on_disk), ("bucket", in_bucket))
        }
        places = [text for text in texts["bucket"] if "/mnt/fsl-dist/" in text.replace(kept, "")]
        assert places == [], kind
        moved = [text.replace("/mnt/fsl-dist/", "s3://my-bucket/") for text in texts["disk"]]
        if kind != "RayService":  # its config names the copies, too
            assert {text for text in texts["bucket"] if "s3://" in text} == {
                text for text in moved if "s3://" in text
            }


def _texts(part: object) -> list[str]:
    if isinstance(part, dict):
        return [text for value in part.values() for text in _texts(value)]
    if isinstance(part, list):
        return [text for value in part for text in _texts(value)]
    return [part] if isinstance(part, str) else []


def test_versions_are_the_project_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.split(" ;")[0].split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
    )
    text = "".join(path.read_text() for path in (ROOT / "k8s" / "base").glob("*.yaml"))
    assert f"newTag: {project['version']}}}" in text
    assert text.count("rayVersion:") == text.count(f"rayVersion: {pins['ray']}\n") == 4
    used = {c["image"] for one in overlay("cpu") for c in containers(one)}
    tools = {
        c["image"] for path in (ROOT / "k8s" / "tools").glob("*") for c in containers(read_objects(path))
    }
    assert tools == {f"fsl-dist:{project['version']}"}
    assert used == {f"fsl-dist:{project['version']}-cpu", "redis:8.2.2"}


@pytest.mark.parametrize("path", sorted((ROOT / "k8s").glob("[rt]*/*.yaml")), ids=lambda path: path.stem)
def test_what_is_applied_by_hand_breaks_no_rule(path: Path) -> None:
    # The one Role, and people's, not a pod's.
    assert [
        fault for fault in broken_rules(read_objects(path)) if "Role fsl-dist-submitter" not in fault
    ] == []


@pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which has kustomize in it, is not installed"
)
@pytest.mark.parametrize("name", [*(f"overlays/{name}" for name in OVERLAYS), "monitoring", "queues"])
def test_kustomize_builds_the_same(name: str) -> None:
    folder = ROOT / "k8s" / name
    built = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
    assert built.stderr == "", "nothing deprecated"

    def by_name(objects: list[dict]) -> dict[str, dict]:
        return {f"{one['kind']} {one['metadata']['name']}": one for one in objects}

    assert by_name(list(yaml.safe_load_all(built.stdout))) == by_name(build(folder))


def test_what_is_not_understood_of_kustomize_is_refused(tmp_path: Path) -> None:
    from index.base.errors import RequestError

    (tmp_path / "kustomization.yaml").write_text("resources: []\nhelmCharts: []\n")
    with pytest.raises(RequestError, match="helmCharts is none of"):
        build(tmp_path)
