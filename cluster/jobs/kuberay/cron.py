"""The moments of a cron schedule as RayCronJob reads it: five fields, each a list, a range, a step or a name."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from index.base.errors import RequestError

_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


def moments_between(schedule: str, zone: str, first: datetime, last: datetime) -> Iterator[datetime]:
    """The moments of a schedule after `first`, up to `last`, in UTC, the oldest first.

    Args:
        schedule: five fields (minute, hour, day of month, month, day of week), or a nickname such as `@daily`.
        zone: name of the time zone; empty: UTC. An hour that daylight saving skips has no moments.
        first: with its time zone.
        last: with its time zone.

    Raises:
        RequestError: the schedule or the time zone is invalid.
    """
    fields = _NICKNAMES.get(schedule.strip(), schedule).split()
    if len(fields) != len(_RANGES):
        raise RequestError(f"schedule {schedule!r} must have five fields, such as '30 2 * * *'")
    minutes, hours, days, months, weekdays = (
        _read_field(field, *bounds, names)
        for field, bounds, names in zip(fields, _RANGES, ((), (), (), _MONTHS, _DAYS), strict=True)
    )
    weekdays = {day % 7 for day in weekdays}  # Sunday is 0 and 7
    by_month, by_week = not fields[2].startswith("*"), not fields[4].startswith("*")
    try:
        where = ZoneInfo(zone or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        raise RequestError(f"time zone {zone!r} is unknown on this machine") from None

    def is_on(day: date) -> bool:
        in_month, in_week = day.day in days, day.isoweekday() % 7 in weekdays
        # If both fields are given, one of them is enough.
        return day.month in months and (
            (in_month or in_week) if by_month and by_week else in_month and in_week
        )

    day = first.astimezone(where).date()
    while day <= last.astimezone(where).date():
        if is_on(day):
            for hour in sorted(hours):
                for minute in sorted(minutes):
                    local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=where)
                    moment = local.astimezone(UTC)
                    if first < moment <= last and moment.astimezone(where).hour == hour:
                        yield moment
        day += timedelta(days=1)


def _read_field(field: str, lowest: int, highest: int, names: tuple[str, ...]) -> set[int]:
    found: set[int] = set()
    for part in field.lower().split(","):
        span, has_step, step = part.partition("/")
        start, is_range, end = span.partition("-")
        try:
            low = lowest if start in ("*", "?") else _read_number(start, lowest, names)
            high = highest if start in ("*", "?") or (has_step and not is_range) else low
            high = _read_number(end, lowest, names) if is_range else high
            width = int(step) if has_step else 1
        except ValueError:
            low, high, width = 1, 0, 0
        if not lowest <= low <= high <= highest or width < 1:
            raise RequestError(f"schedule field {field!r} must be numbers from {lowest} to {highest}")
        found |= set(range(low, high + 1, width))
    return found


def _read_number(text: str, lowest: int, names: tuple[str, ...]) -> int:
    return names.index(text) + lowest if text in names else int(text)
