"""One spelling of numbers, dates and times, which programs write as text in several ways."""

import re
from datetime import datetime, timedelta
from decimal import Decimal

_BOOLEANS = ("true", "True", "TRUE", "false", "False", "FALSE")
_WHOLE_NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)\.0+")
# Programs sign the exponent of a number, or write a point before it; `4e16` without either may be a code in
# hexadecimal digits. From six zeros after the point on, programs write an exponent.
_POWER = re.compile(
    r"-?(?:0|[1-9][0-9]*)(?:(?:\.[0-9]+)?[eE][+-][0-9]{1,3}|\.[0-9]+[eE][0-9]{1,3}|\.0{6}[0-9]+)"
)
_MAX_DOUBLE = 2**53
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[ Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:(\.[0-9]*?)0*)?"
    r"(?: ?(Z|z|UTC|GMT|[+-][01][0-9](?::?[0-5][0-9])?))?"
)
_CLOCK = re.compile(r"([0-9]{2}:[0-9]{2}:[0-9]{2})(\.[0-9]*?)0*")


def refuse_rounded(value: object, limit: str) -> ValueError:
    """The error for a whole number that its type, or the type of its text, cannot represent exactly."""
    return ValueError(
        f"is {value}, a number with a decimal point beyond {limit}, where whole numbers lose digits; "
        "store whole numbers or text"
    )


def read_spelling(text: str) -> str:
    """Normalise `text` that spells a typed value to the name that the typed value would get.

    Raises:
        ValueError: a number with an exponent beyond 2^53; the message continues after the value's location.
    """
    if number := _WHOLE_NUMBER.fullmatch(text):
        return number[2] if number[2] == "0" else number[1] + number[2]
    if _POWER.fullmatch(text):
        return _write_out(text)
    if time := _TIME.fullmatch(text):
        day, clock, fraction, zone = time[1], time[2], (time[3] or "").rstrip("."), time[4] or ""
        if zone:
            return _in_utc(text, f"{day} {clock}", fraction, zone)
        return day if (clock, fraction) == ("00:00:00", "") else f"{day} {clock}{fraction}"
    if time := _CLOCK.fullmatch(text):
        return time[1] + time[2].rstrip(".")
    return text.lower() if text in _BOOLEANS else text


def _write_out(text: str) -> str:
    """A number in all its digits, none of them a zero at the end of the fraction."""
    number = Decimal(text)
    if abs(number) >= _MAX_DOUBLE:
        raise refuse_rounded(text, "2^53")
    digits = format(number, "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits == "-0" else digits


def _in_utc(text: str, moment: str, fraction: str, zone: str) -> str:
    offset = timedelta()
    if zone[0] in "+-":
        offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:].lstrip(":") or 0))
        offset = -offset if zone[0] == "-" else offset
    try:
        utc = datetime.fromisoformat(moment) - offset
    except (ValueError, OverflowError):  # not a valid day or hour, or a year outside of 1 to 9999
        return text
    return f"{utc.isoformat(sep=' ')}{fraction}Z"
