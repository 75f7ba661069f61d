"""Jobs before they are sent: their command line, their configuration, the code they travel with."""

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.cli import fsl_dist
from cluster.commands.durations import Duration
from cluster.jobs import entrypoint
from cluster.jobs.archive import check_wheel, write_archive
from cluster.jobs.command import Command, find_local_paths, name_job, read_command, resolve_command
from cluster.jobs.deadlines import DeadlineError
from cluster.jobs.entrypoint import CONFIG_VARIABLE, end_for_good, run_job
from cluster.jobs.job import RESULT_MARK, Job, JobStatus, read_error, read_final, read_result
from cluster.jobs.local import LocalPlace
from fsl_dist.config import load_config, parse_config
from index.base.errors import RequestError
from tune.sweep_file import SWEEP_FILE, find_stored, load_sweep, render_sweep

RUN = {"data": {"dataset": "data/x"}, "method": {"kind": "pcn"}, "training": {"epochs": 7}}


@pytest.mark.parametrize(
    ("line", "words", "arguments", "config"),
    [
        ("train --config run.yaml a.b=1", ["train"], "train a.b=1", "run.yaml"),
        ("train a.b=1 --config=run.yaml --resume", ["train"], "train a.b=1 --resume", "run.yaml"),
        ("sweep run trials=3 --config s.yaml", ["sweep", "run"], "sweep run trials=3", "s.yaml"),
        ("index build --vectors X.npy --labels Y.npy OUT", ["index", "build"], None, None),
        # Behind -- nothing is an option.
        ("predict RUN -- --config x", ["predict"], None, None),
    ],
)
def test_a_command_is_read(line: str, words: list[str], arguments: str | None, config: str | None) -> None:
    command = read_command(fsl_dist, line.split())
    assert list(command.words) == words
    assert " ".join(command.arguments) == (arguments or line)
    assert command.config == (Path(config) if config else None)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("trian", "'trian' is not a command that a job could run; one of add-class, adopt, "),
        ("submit -- train", "'submit' is not a command that a job could run"),
        ("job list", "'job' is not a command that a job could run"),
        ("index bild OUT", "'index bild' is not a command that a job could run; one of add, build, "),
        ("sweep", "there is no command that a job could run; one of report, resume, run follows sweep"),
        ("train --confg run.yaml", "fsl-dist train: No such option '--confg'. (Did you mean "),
        ("train --config", "fsl-dist train: Option '--config' requires an argument."),
    ],
)
def test_a_line_that_is_no_command_is_told(line: str, problem: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_command(fsl_dist, line.split())
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_job_goes_on_and_answers_in_json_where_its_verb_can() -> None:
    def line(text: str) -> str:
        return " ".join(read_command(fsl_dist, text.split()).with_options(flags=("--resume", "--json")))

    assert line("train a=1") == "train --resume --json a=1"
    assert line("train --resume --json a=1") == "train --resume --json a=1"
    assert line("index build OUT") == "index build --json OUT"
    assert line("sweep run --config s.yaml") == "sweep run --resume --json"


def write_run(folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(RUN))
    return path


def test_a_configuration_travels_whole_and_checked(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    command = read_command(fsl_dist, ["train", "--config", str(path), "training.epochs=9"])
    for is_elsewhere in (False, True):
        found, text = resolve_command(command, is_elsewhere=is_elsewhere)
        # Relative paths stay as they were written; the arguments go over the file there, as they would here.
        here = load_config(path, command.settings)
        assert parse_config(text, command.settings, "job") == parse_config(text, (), "job") == here
        assert ("workers.launch=ray" in found.arguments) == is_elsewhere
    for word in ("workers.num=2", "workers.launch=process"):
        found, _ = resolve_command(
            read_command(fsl_dist, ["train", "--config", str(path), word]), is_elsewhere=True
        )
        assert "workers.launch=ray" not in found.arguments
    for line, problem in (
        (["train", "--config", str(path), "training.epoch=9"], "did you mean training.epochs?"),
        (["train", "--config", str(tmp_path / "none.yaml")], "none.yaml is neither a YAML file nor"),
        (["index", "build", "OUT", "kidn=flat"], "did you mean kind?"),
        (["sweep", "run", "--config", str(path)], "base must name a run's YAML file"),
        (["sweep", "run"], "Missing option '--config'"),
    ):
        with pytest.raises(RequestError) as refused:
            resolve_command(read_command(fsl_dist, line), is_elsewhere=True)
        assert problem in str(refused.value)


def test_a_sweep_travels_with_its_base_inside(tmp_path: Path) -> None:
    base, path, alone = write_run(tmp_path), tmp_path / "sweep.yaml", tmp_path / "alone" / "sweep.yaml"
    sweep = {
        "dir": "sweeps/a",
        "base": str(base),
        "space": {"method.memory": {"uniform": [0, 0.9]}},
        "trials": 3,
    }
    path.write_text(yaml.safe_dump(sweep))
    _, text = resolve_command(
        read_command(fsl_dist, ["sweep", "run", "--config", str(path)]), is_elsewhere=True
    )
    alone.parent.mkdir()
    alone.write_text(text)
    before = load_sweep(path)
    base.unlink()
    assert load_sweep(alone) == before
    assert yaml.safe_load(text)["dir"] == "sweeps/a"


def test_a_sweep_goes_on_only_as_it_was_started(tmp_path: Path) -> None:
    path, folder = tmp_path / "sweep.yaml", tmp_path / "sweep"
    sweep = {"dir": str(folder), "base": RUN, "space": {"method.memory": {"uniform": [0, 0.9]}}, "trials": 3}
    path.write_text(yaml.safe_dump(sweep))
    folder.mkdir()
    started = load_sweep(path)
    # In the stored file, the data set's version is settled.
    (folder / SWEEP_FILE).write_text(render_sweep(load_sweep(path, ["data.version=2"])))
    assert find_stored(started) == load_sweep(path, ["data.version=2"])
    for words, key in (["trials=4"], "trials"), (["training.epochs=8"], "base.training"):
        with pytest.raises(RequestError, match=rf"^{key} differs from that of the sweep in dir="):
            find_stored(load_sweep(path, words))


def test_paths_that_stay_behind_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data/x", "ray", "runs/a"):
        (tmp_path / name).mkdir(parents=True)
    line = [
        "index",
        "build",
        "runs/a",
        "s3://bucket/x",
        "/data/shared",
        "out/new",
        "kind=flat",
        "x.y=ray",
        "z=data/x",
    ]
    assert find_local_paths(read_command(fsl_dist, line), "") == ["data/x", "runs/a"]
    # These keys are paths, there or not.
    base, sweep = yaml.safe_dump(RUN), yaml.safe_dump({"dir": "sweeps/a", "base": RUN})
    assert find_local_paths(read_command(fsl_dist, ["train", "run.dir=new"]), base) == ["data/x", "new"]
    assert find_local_paths(read_command(fsl_dist, ["train", "data.dataset=s3://bucket/x"]), base) == []
    assert find_local_paths(read_command(fsl_dist, ["sweep", "run", "dir=/shared"]), sweep) == ["data/x"]
    assert find_local_paths(read_command(fsl_dist, ["sweep", "run"]), sweep) == ["data/x", "sweeps/a"]


def commands_of(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command that a job can run."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from commands_of(command, (*words, name))
        elif (words or (name,))[0] not in ("submit", "job", "k8s"):
            yield (*words, name)


def test_every_command_makes_a_valid_name_with_all_random_bits() -> None:
    for words in (*commands_of(fsl_dist), ("a-command-with-a-long-name", "and-another")):
        name = name_job(Command(words=words, rest=(), config=None, options=frozenset()))
        assert re.fullmatch(r"[a-z0-9-]+[a-z]-\d{8}-\d{6}-[0-9a-f]{12}", name), name
        assert Job(name=name, arguments=words).name == name


def test_names() -> None:
    command = read_command(fsl_dist, ["sweep", "run", "--config", "x"])
    names = {name_job(command) for _ in range(20)}
    assert len(names) == 20
    for name in names:
        assert Job(name=name, arguments=command.arguments).name.startswith("sweep-run-2")
        assert len(name.rpartition("-")[2]) * 4 >= 48, "bits by which two submitters of one second differ"
    for name in ("A", "1a", "a_b", "a-", "", "a" * 48):
        with pytest.raises(RequestError, match="must be lower-case letters"):
            Job(name=name, arguments=("doctor",))


@given(
    before=st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"))),
    result=st.dictionaries(st.text(), st.integers()),
)
def test_the_result_is_found_in_any_log(before: list[str], result: dict) -> None:
    marked = RESULT_MARK + json.dumps(result) + "\n"
    assert read_result("".join(f"{line}\n" for line in before) + marked) == result
    assert read_result(marked + marked) == result


def test_a_log_without_a_result_has_none() -> None:
    for log in ("", "done\n", f"x {RESULT_MARK}{{}}\n", f'{RESULT_MARK}{{"cut', f"{RESULT_MARK}[1]\n"):
        assert read_result(log) is None
    assert read_error("a\nerror: first\nb\nerror: last: x\n") == "last: x"
    assert read_error("terror: x\n") == ""


def test_a_follower_exits_as_the_job_did() -> None:
    for state, code, wanted in (
        ("succeeded", 0, 0),
        ("failed", 2, 2),
        ("failed", None, 1),
        ("stopped", 143, 143),
        ("stopped", None, 143),
    ):
        status = JobStatus(name="a", state=state, exit_code=code)  # type: ignore[arg-type]
        assert status.follower_exit_code == wanted
        assert status.is_over
    assert not JobStatus(name="a", state="running").is_over


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("24h", 86400), ("2d", 172800)]
)
def test_durations(text: str, seconds: int) -> None:
    assert Duration()(text) == seconds


def test_another_ray_is_told_before_the_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, "never read")
    with pytest.raises(RequestError, match=r"Ray is 2\.\d+\.\d+ here, but the job expects 1\.2\.3: "):
        run_job(fsl_dist, ["doctor"], config=None, ray_version="1.2.3")


def test_a_command_that_is_late_is_ended_and_one_past_its_deadline_not_begun() -> None:
    program = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(60)"
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"deadline passed at .* UTC while it ran"):
        entrypoint._run([sys.executable, "-c", program], 1.0)
    assert time.monotonic() - started < 20, "it is asked to end, and does"
    with pytest.raises(DeadlineError, match="passed before it started"):
        run_job(fsl_dist, ["doctor"], config=None, ray_version="", deadline_s=5.0, clock=lambda: 5.0)


def test_a_failure_that_no_retry_mends_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    end_for_good(2)  # no job of Ray: nothing is stopped
    out = capsys.readouterr().out
    assert read_final(f"a\n{out}") == 2
    for log in ("", "x fsl-dist-final: 2\n", "fsl-dist-final: \n"):
        assert read_final(log) is None


def test_the_archive_is_the_code_that_runs_here(tmp_path: Path) -> None:
    sent, again = tmp_path / "a.zip", tmp_path / "b.zip"
    write_archive(sent)
    write_archive(again)
    assert sent.read_bytes() == again.read_bytes(), "the same code must be sent once"
    check_wheel(sent)
    with zipfile.ZipFile(sent) as archive:
        archive.extractall(tmp_path / "there")
    program = (
        "import importlib.metadata as m, cluster.cli, tune.tables.tables;"
        "print(cluster.cli.__file__, m.distribution('fsl-dist').locate_file(''), len(tune.tables.tables.list_tables()))"
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "there")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    module, distribution, num_tables = found.stdout.split()
    assert Path(module).is_relative_to(tmp_path / "there")
    assert Path(distribution).resolve() == tmp_path / "there"
    assert int(num_tables) > 5


def test_what_is_no_wheel_of_this_project_is_told(tmp_path: Path) -> None:
    other, text = tmp_path / "other.whl", tmp_path / "text.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("cluster/__init__.py", "")
    text.write_text("no zip")
    for path, problem in (
        (other, "tune, fsl_dist, index missing"),
        (text, "is not a wheel: File is not a zip file"),
        (tmp_path / "none.whl", "is not a file"),
    ):
        with pytest.raises(RequestError, match=problem):
            check_wheel(path)


def test_a_number_that_another_process_has_by_now_is_no_job(tmp_path: Path) -> None:
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "log").write_text("error: not this\n")
    (folder / "job.json").write_text(json.dumps({"command": "fsl-dist train", "submitted": 0.0}))
    place = LocalPlace(tmp_path)
    assert place.status("first").message == "it was never started: its submitter was killed"
    (folder / "process.json").write_text(json.dumps({"pid": os.getpid(), "started": "12"}))
    found = place.status("first")
    assert (found.state, found.exit_code) == ("failed", None)
    assert "ended without an exit code" in found.message
    place.stop("first")
    with pytest.raises(RequestError, match="there is no job second on this machine"):
        place.status("second")
    with pytest.raises(RequestError, match="a job first exists on this machine"):
        place.submit(Job(name="first", arguments=("doctor",)))
