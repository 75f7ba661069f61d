"""What a person sees of a run: the lines of a log, a terminal's one line, and what the metrics file says."""

import json
import logging
import sys
from pathlib import Path

import pytest

from cluster.commands.output import configure_logging
from fsl_dist.progress import line_printer, log_printer, progress_printer
from fsl_dist.training.runlog import METRICS_FILE, RunFollower, describe_progress


class Clock:
    """A clock that is set by hand."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_log_gets_the_first_line_one_a_minute_and_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    show = log_printer(clock)
    for second in range(0, 200, 10):
        clock.now_s = 1000.0 + second
        show(f"after {second} s")
    show("")
    assert capsys.readouterr().err.splitlines() == [f"after {s} s" for s in (0, 60, 120, 180, 190)]
    show("")  # nothing waits
    show("the next run")
    show("")
    assert capsys.readouterr().err.splitlines() == ["the next run"]


def test_where_stderr_is_no_terminal_progress_is_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert line_printer() is None
    show = progress_printer()
    show("one")
    show("two")
    assert capsys.readouterr().err == "one\n"
    show("")
    assert capsys.readouterr().err == "two\n"


def test_a_line_does_not_wrap_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    show = line_printer()
    assert show is not None
    show("x" * 100)
    show("")
    assert capsys.readouterr().err == f"\r\x1b[2K{'x' * 39}\r\x1b[2K"


def test_a_log_line_wipes_the_line_of_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    configure_logging(lambda text: text.replace("holdout", "--holdout"))
    logging.getLogger("fsl_dist").warning("no holdout")
    assert capsys.readouterr().err == "no --holdout\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logging.getLogger("fsl_dist").warning("no holdout")
    assert capsys.readouterr().err == "\r\x1b[2Kno --holdout\n"


STEP = {
    "epoch": 2, "train/loss": 0.5, "train/images_seen": 250.0, "time/images_per_s": 100.0,
    "time/data_wait_s": 0.002,
}  # fmt: skip


def add(path: Path, *lines: dict[str, float]) -> None:
    with path.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def test_a_follower_reads_what_was_added(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    follower = RunFollower(tmp_path, "knn/mcr@5")
    assert not follower.read()
    add(path, {"step": 0, "epoch": 0, "eval/knn/mcr@5": 0.5})
    assert not follower.read()  # no step yet
    assert follower.describe_validation() == "knn/mcr@5 0.5000 at the start"
    add(path, {"step": 1, **STEP}, {"step": 2, **STEP})
    with path.open("a") as file:
        file.write('{"step": 3, "train/loss"')  # a line that is being written
    assert follower.read()
    assert follower.step == {"step": 2, **STEP}
    assert not follower.read()
    with path.open("a") as file:
        file.write(": 0.25}\n")
    add(path, {"step": 3, "epoch": 2, "eval/knn/mcr@5": 0.75, "eval/knn/mcr@50": 0.1})
    assert follower.read()
    assert follower.step == {"step": 3, "train/loss": 0.25}
    assert follower.describe_validation() == "knn/mcr@5 0.7500 (start 0.5000)"
    # A resumed run replaces the file by a shorter one.
    path.with_suffix(".new").write_text(json.dumps({"step": 1, **STEP}) + "\n")
    path.with_suffix(".new").replace(path)
    assert follower.read()
    assert follower.step == {"step": 1, **STEP}


def test_a_line_of_progress_has_rate_loss_validation_and_time_left() -> None:
    text = describe_progress(
        {"step": 25, **STEP},
        num_epochs=10,
        num_steps=10,
        num_images=0,
        elapsed_s=20,
        done_steps=20,
        validation="knn/mcr@5 0.7500 (start 0.5000)",
    )
    assert text == (
        "epoch 3/10  step 5/10  loss 0.5000  100 img/s  knn/mcr@5 0.7500 (start 0.5000)  at most 1:15 left  data wait 2 ms"
    )
