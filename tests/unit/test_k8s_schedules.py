"""Nights: when a schedule is due, what ran, what was missed, what ran into the next; and deadlines on a clock of our own."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.jobs.deadlines import (
    LATENESS_S,
    DeadlineError,
    check_deadline,
    first_deadlines,
    read_moment,
    write_moment,
)
from cluster.jobs.kuberay.cron import moments_between
from cluster.jobs.kuberay.schedules import describe_runs
from index.base.errors import RequestError

pytestmark = pytest.mark.k8s

START = datetime(2026, 3, 1, tzinfo=UTC)


def due(schedule: str, days: int = 7, zone: str = "", start: datetime = START) -> list[str]:
    found = moments_between(schedule, zone, start, start + timedelta(days=days))
    return [moment.strftime("%d %H:%M") for moment in found]


@pytest.mark.parametrize(
    ("schedule", "days", "moments"),
    [
        ("30 2 * * *", 2, ["01 02:30", "02 02:30"]),
        ("*/30 5 2 * *", 3, ["02 05:00", "02 05:30"]),
        ("0 6 * * 1-2", 7, ["02 06:00", "03 06:00"]),
        ("0 6 * * mon,7", 7, ["01 06:00", "02 06:00"]),
        ("0 0 3 * sun", 7, ["03 00:00", "08 00:00"]),  # either field is enough
        ("0 1-5/2 4 mar *", 7, ["04 01:00", "04 03:00", "04 05:00"]),
        ("@daily", 2, ["02 00:00", "03 00:00"]),
        ("50/5 3 2 * *", 3, ["02 03:50", "02 03:55"]),
    ],
)
def test_a_schedule_s_moments(schedule: str, days: int, moments: list[str]) -> None:
    assert due(schedule, days) == moments


def test_a_time_zone_and_its_change_of_clocks() -> None:
    assert due("30 2 * * *", 1, "Asia/Tokyo") == ["01 17:30"]
    # On 29 March 2026 the clocks of Berlin go from 2 to 3.
    change = datetime(2026, 3, 28, tzinfo=UTC)
    assert due("30 2 * * *", 3, "Europe/Berlin", change) == ["28 01:30", "30 00:30"]


@pytest.mark.parametrize(
    "schedule", ["", "* * * *", "60 * * * *", "a * * * *", "5-1 * * * *", "*/0 * * * *", "0 0 0 * *"]
)
def test_what_is_no_schedule_is_refused(schedule: str) -> None:
    with pytest.raises(RequestError, match="schedule"):
        due(schedule)
    with pytest.raises(RequestError, match="time zone 'Nowhere/X' is unknown"):
        due("0 0 * * *", zone="Nowhere/X")


def night(day: int, *, hours: int | None, deployment: str = "Complete", job: str = "SUCCEEDED") -> dict:
    moment = START + timedelta(days=day, hours=2)
    status = {
        "jobDeploymentStatus": deployment,
        "jobStatus": job,
        "startTime": write_moment(moment.timestamp()),
    }
    if hours is not None:
        status["endTime"] = write_moment((moment + timedelta(hours=hours)).timestamp())
    return {
        "metadata": {
            "name": f"rebuild-{round(moment.timestamp() / 60)}",
            "annotations": {"ray.io/cronjob-scheduled-timestamp": write_moment(moment.timestamp())},
        },
        "spec": {"entrypoint": "fsl-dist job enter -- index build a b c"},
        "status": status,
    }


def test_missed_and_overlapping_nights_are_said() -> None:
    schedule = {
        "metadata": {"name": "rebuild", "creationTimestamp": write_moment(START.timestamp())},
        "spec": {"schedule": "0 2 * * *"},
    }
    runs = [
        night(0, hours=1),
        night(1, hours=25),
        night(2, hours=1),
        night(4, hours=None, deployment="Running", job="RUNNING"),
    ]
    now = START + timedelta(days=5, hours=3)
    found = describe_runs(schedule, runs, now.timestamp())
    first = round((START + timedelta(hours=2)).timestamp() / 60)
    assert [(run.name, run.state, run.message.partition(":")[0]) for run in found] == [
        (f"rebuild-{first + 5 * 1440}", "stopped", "missed"),
        (f"rebuild-{first + 4 * 1440}", "running", ""),
        (f"rebuild-{first + 3 * 1440}", "stopped", "missed"),
        (f"rebuild-{first + 2 * 1440}", "succeeded", f"started before rebuild-{first + 1440} ended"),
        (f"rebuild-{first + 1440}", "succeeded", ""),
        (f"rebuild-{first}", "succeeded", ""),
    ]
    never = describe_runs(schedule, [], (START + timedelta(days=1)).timestamp())
    assert [run.message.partition(":")[0] for run in never] == ["missed"]
    schedule["spec"]["suspend"] = True
    assert describe_runs(schedule, [], now.timestamp()) == []


def run_on_a_clock(
    deadline_s: int, retries: int, start_s: int, fates: list[tuple[str, int]], cluster_s: int
) -> int:
    """Seconds until KubeRay has ended a job for good, by its own rules: its clock begins anew at each try.

    fates: of each try, `unplaced` (its pods never come), `crash` after so many seconds, or `hang`; the command itself, which
    knows the deadline of all tries, ends for good when it has passed.
    """
    one_try_s, start_s = first_deadlines(deadline_s, retries, start_s)
    now = 0
    for number in range(retries + 1):
        fate, after_s = fates[number % len(fates)]
        if fate == "unplaced":
            now += min(start_s, one_try_s)  # PreRunningDeadlineExceeded, which is retried
            continue
        began, now = now, now + cluster_s
        try:
            check_deadline(deadline_s, now)
        except DeadlineError:
            return now
        ends = {"crash": now + after_s, "hang": began + one_try_s}[fate]
        if (
            ends >= deadline_s
        ):  # SIGTERM by the command's own clock, or the operator's deadline, which is not retried
            return min(max(deadline_s, now), began + one_try_s)
        now = ends
    return now


@given(
    deadline_s=st.integers(60, 10**6),
    retries=st.integers(0, 9),
    start_s=st.integers(1, 10**6),
    fates=st.lists(
        st.tuples(st.sampled_from(["unplaced", "crash", "hang"]), st.integers(0, 10**6)), min_size=1
    ),
    cluster_s=st.integers(0, 600),
)
def test_all_tries_together_keep_the_deadline(
    deadline_s: int, retries: int, start_s: int, fates: list[tuple[str, int]], cluster_s: int
) -> None:
    ended = run_on_a_clock(deadline_s, retries, start_s, fates, cluster_s)
    # A try that begins just before the deadline has its pods still to come.
    last_s = first_deadlines(deadline_s, retries, start_s)[1]
    assert ended <= deadline_s + max(cluster_s, last_s, LATENESS_S)
    if all(fate == "unplaced" for fate, _ in fates):
        assert ended <= deadline_s


def test_moments_are_read_as_they_are_written() -> None:
    assert read_moment(write_moment(1_700_000_000.9)) == 1_700_000_000
    for text in ("tomorrow", "2026-11-21T22:00:00"):
        with pytest.raises(RequestError, match="must be a date and time with its zone"):
            read_moment(text)
    check_deadline(None, 1e12)
    check_deadline(5.0, 4.9)
    with pytest.raises(DeadlineError, match="passed before it started"):
        check_deadline(5.0, 5.0)
