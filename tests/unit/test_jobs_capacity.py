"""What can never run is refused before it is sent, with both numbers."""

from pathlib import Path

import pytest
import yaml

from cluster.cli import fsl_dist
from cluster.jobs.capacity import Machine, Pieces, check_demand, find_demand
from cluster.jobs.command import read_command
from cluster.jobs.job import Job
from cluster.jobs.kuberay.outputs import check_outputs
from cluster.jobs.kuberay.rendering import KubeOptions, machines, render
from index.base.errors import RequestError

BASE = {"run": {"dir": "/mnt/fsl-dist/r"}, "data": {"dataset": "/mnt/fsl-dist/d"}, "method": {"kind": "pcn"}}
FOUR, GPUS = [Machine(cpus=4)] * 2, [Machine(cpus=4, gpus=1)] * 2


def demand(folder: Path, line: str, **tree: object) -> list[Pieces]:
    words = line.split()
    if tree:
        (folder / "c.yaml").write_text(yaml.safe_dump(tree))
        words += ["--config", str(folder / "c.yaml")]
    return find_demand(read_command(fsl_dist, words))


def sweep(**more: object) -> dict:
    space = {"method.memory": {"uniform": [0, 0.9]}}
    return {"dir": "/mnt/fsl-dist/s", "base": BASE, "space": space, "trials": 8, **more}


@pytest.mark.parametrize(
    ("line", "tree", "there", "said"),
    [
        (
            "train workers.num=3 workers.cpus=4",
            BASE,
            FOUR,
            "workers.num=3 with workers.cpus=4 asks for 3 times 4 CPUs, and X has 2 times 4 CPUs: 1 of them would wait",
        ),
        # Eight CPUs are there, and no machine has five.
        ("train workers.num=1 workers.launch=ray workers.cpus=5", BASE, FOUR, "asks for 1 times 5 CPUs"),
        (
            "train workers.num=3",
            BASE,
            GPUS,
            "asks for 3 times 1 CPUs and 1 GPUs, and X has 2 times 4 CPUs and 1 GPUs",
        ),
        ("index build r d i --workers 9", {}, FOUR, "--workers 9 asks for 9 times 1 CPUs"),
        ("index build r d i --workers=9", {}, FOUR, "--workers 9 asks for 9 times 1 CPUs"),
        ("evaluate r --index i --index-actors 9", {}, FOUR, "--index-actors 9 asks for 9 times"),
        (
            "index serve i --actors 3 --replicas 2 --cpus 2",
            {},
            FOUR,
            "--replicas 2 with --actors 3 and --cpus 2",
        ),
        ("index serve i --replicas 3 --cpus 4", {}, FOUR, "asks for 3 times 4 CPUs"),
        ("sweep run", sweep(concurrency=9), FOUR, "concurrency=9 trials of workers.cpus=1"),
        (
            "sweep run",
            sweep(concurrency=3, resources={"gpus": 1}),
            GPUS,
            "asks for 3 times 1 CPUs and 1 GPUs",
        ),
        ("sweep run", sweep(resources={"gpus": 2, "workers": 2}), FOUR, "a trial of workers.num=2"),
        ("train workers.num=1 workers.launch=ray", BASE, [], "X has nothing for work"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(
    tmp_path: Path, line: str, tree: dict, there: list[Machine], said: str
) -> None:
    with pytest.raises(RequestError) as refused:
        check_demand(demand(tmp_path, line, **tree), there, "X", "more of them")
    assert said in str(refused.value)
    assert str(refused.value).endswith("would wait forever (more of them)")


@pytest.mark.parametrize(
    ("line", "tree", "there"),
    [
        ("train workers.num=2 workers.cpus=4", BASE, FOUR),
        ("train workers.num=8", BASE, FOUR),
        ("train workers.num=2", BASE, GPUS),
        ("train workers.num=8 workers.gpu=never", BASE, GPUS),
        ("train", BASE, []),  # in the command's own process
        ("train --resume run.dir=/elsewhere", {}, []),
        ("index build r d i", {}, []),
        ("index build r d i --workers 8", {}, FOUR),
        ("sweep run", sweep(concurrency=8), FOUR),
        ("sweep run", sweep(concurrency=20, resources={"gpus": 0.1}), [Machine(cpus=10, gpus=1)] * 2),
        ("sweep run", sweep(), FOUR),
        ("evaluate r --index i --index-actors 8", {}, FOUR),
    ],
)
def test_what_fits_is_let_through(tmp_path: Path, line: str, tree: dict, there: list[Machine]) -> None:
    check_demand(demand(tmp_path, line, **tree), there, "X", "")


def test_the_workers_of_a_kubernetes_job_are_its_machines() -> None:
    job = Job(name="a", arguments=("evaluate", "r", "--index-actors", "3"))
    assert machines(job, KubeOptions(workers=2, cpus_per_worker=2, gpus_per_worker=1)) == [
        Machine(cpus=1, gpus=1),  # the command itself takes one CPU
        Machine(cpus=2, gpus=1),
    ]


@pytest.mark.parametrize(
    ("line", "storage", "said"),
    [
        ("train run.dir=/mnt/fsl-dist/r data.dataset=d", "s3://b/p", r"run\.dir=/mnt/fsl-dist/r would be lost .*storage=s3://b/p .*give run\.dir=s3://b/p/r"),
        ("train run.dir=runs/r data.dataset=d", "s3://b/p", r"run\.dir=runs/r would be lost"),
        ("train run.dir=runs/r data.dataset=d", "fsl-dist", r"run\.dir=runs/r would be lost with the job's pods; give a path below /mnt/fsl-dist, or"),
        ("train run.dir=/tmp/r data.dataset=d", "fsl-dist", r"run\.dir=/tmp/r would be lost"),
        ("train run.dir=/mnt/fsl-dist-2/r data.dataset=d", "fsl-dist", r"would be lost"),
        ("index build /mnt/fsl-dist/r s3://b/d indexes/i kind=flat", "fsl-dist", r"OUT=indexes/i would be lost"),
        ("train run.dir=/mnt/fsl-dist/r data.dataset=d", "fsl-dist", ""),
        ("train run.dir=s3://b/r data.dataset=d", "fsl-dist", ""),
        ("train run.dir=s3://b/r data.dataset=d", "s3://b/p", ""),
        ("index build s3://b/r s3://b/d s3://b/i kind=flat", "s3://b/p", ""),
        ("evaluate r", "s3://b/p", ""),
        ("embed /image/r /image/d --out x.npy", "fsl-dist", r"--out=x\.npy would be lost"),
        ("embed /image/r /image/d --out=/mnt/fsl-dist/x.npy", "fsl-dist", ""),
        ("fit /image/d --out /tmp/fit", "s3://b/p", r"--out=/tmp/fit would be lost .*give --out=s3://b/p/fit"),
        ("export s3://b/r net.onnx", "fsl-dist", r"OUT=net\.onnx would be lost"),
        ("pack /image/a /mnt/fsl-dist/d", "fsl-dist", ""),
        ("fit /image/photos", "fsl-dist", r"--out=photos-fit would be lost with the job's pods; give"),
        ("fit /image/photos", "s3://b/p", r"--out=photos-fit would be lost .*give --out=s3://b/p/photos-fit"),
        ("reproduce table4", "s3://b/p", r"--out=runs/reproduce would be lost .*give --out=s3://b/p/reproduce"),
        ("index add /mnt/fsl-dist/i --vectors v.npy", "s3://b/p", r"INDEX=/mnt/fsl-dist/i would be lost .*give INDEX=s3://b/p/i"),
        ("index merge s3://b/i", "s3://b/p", ""),
        ("resplit /mnt/fsl-dist/d", "s3://b/p", "DATASET=/mnt/fsl-dist/d would be lost"),
        ("add-class /tmp/run cat images", "fsl-dist", "RUN=/tmp/run would be lost"),
        ("sweep resume /mnt/fsl-dist/s", "s3://b/p", "FOLDER=/mnt/fsl-dist/s would be lost"),
        ("sweep resume /mnt/fsl-dist/s", "fsl-dist", ""),
    ],
)  # fmt: skip
def test_what_would_be_lost_with_the_pods_is_refused(line: str, storage: str, said: str) -> None:
    command, options = read_command(fsl_dist, line.split()), KubeOptions(storage=storage)
    objects = render(Job(name="a", arguments=command.arguments), options)
    if said:
        with pytest.raises(RequestError, match=said):
            check_outputs(command, objects, options)
    else:
        check_outputs(command, objects, options)
