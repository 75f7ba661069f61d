"""Lengths of time on the command line: 90s, 15m, 24h, 2d."""

import re
from typing import Any

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds of 90, 90s, 15m, 24h or 2d."""
        found = re.fullmatch(r"([1-9][0-9]*)([smhd]?)", str(value))
        if not found:
            self.fail(f"{value!r} must be a duration such as 90s, 15m, 24h or 2d", param, ctx)
        return int(found[1]) * _UNITS[found[2] or "s"]
