"""Names of classes, groups, units and splits: folder names, table cells,
`.json` and `.cls` are read by the same rules."""

import re
import unicodedata
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal

import numpy as np

from fsl_dist.data.names.spellings import read_spelling, refuse_rounded

# Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt, 14.0), except for the two joiners: fillers,
# variation selectors, direction marks, tags. Tags after a black flag are visible: they make the flags of England,
# Scotland and Wales.
_INVISIBLE = re.compile(
    "(\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f)|"
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_BRAILLE_BLANK = "\u2800"
# Joiners change the display inside words of Persian and Indic scripts and inside emoji; elsewhere they are invisible.
_JOINERS = re.compile("(?<![\u0590-\U0010ffff])[\u200c\u200d]+|[\u200c\u200d]+(?![\u0590-\U0010ffff])")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_UNSIGNED_POWER = re.compile("-?[0-9]+[eE][0-9]+")
_MAX_LINES = 5
_WORDS_FOR_NONE = ("nan", "na", "n/a", "#n/a", "<na>", "nat", "none", "null", "-nan")


def printable(text: str) -> str:
    """`text` on one line of valid Unicode: control characters and bytes that are not UTF-8 as `\\x0a`, `\\xef`."""
    return _UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # the form in which os.fsdecode keeps a byte that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def strip_invisible(text: str) -> str:
    """`text` without invisible characters."""
    return _JOINERS.sub("", _INVISIBLE.sub(r"\1", text))


def read_text(text: str) -> str:
    """A name as it is written (a folder's): form NFC, no invisible characters, white space as single spaces, printable.

    Empty where nothing is left. Reading a name again does not change it.
    """
    if text.isascii() and text.isalnum():
        return text
    # Joiners last: white space, escapes and form NFC change which characters are next to them, and so their visibility.
    text = unicodedata.normalize("NFC", text).replace(_BRAILLE_BLANK, " ")
    text = strip_invisible(printable(" ".join(text.split())))
    return " ".join(unicodedata.normalize("NFC", text).split())


def read_value(value: object) -> str:
    """Return the name in a table cell, in a value of `.json` or in the text of `.cls`; empty if there is none.

    None and NaN are missing. Text is read by `read_text`. Text in a table without types may be a typed value in another
    table, so both get the same name: `1.0` and 1.0 are `1`, `True` and true are `true`, midnight is its date, a time
    with a zone is converted to UTC.

    Raises:
        ValueError: the value is not a name; the message continues after the value's location.
    """
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating | Decimal):
        return _read_number(value)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise ValueError("is bytes that are not UTF-8 text") from None
    if isinstance(value, str):
        return read_spelling(read_text(value))
    raise ValueError(f"is a {type(value).__name__}, neither text nor a number")


def _read_number(value: float | np.floating | Decimal) -> str:
    if value != value:
        return ""
    if value in (float("inf"), float("-inf")):
        raise ValueError("is infinite")
    if value != int(value):
        return read_spelling(format(value, "f") if isinstance(value, Decimal) else str(value))
    if not isinstance(value, Decimal):
        bits = np.finfo(type(value)).nmant + 1
        if abs(value) >= 2**bits:
            raise refuse_rounded(value, f"2^{bits}")
    return str(int(value))


def read_known(name: str) -> str:
    """The form in which existing and folder names are compared:
    `read_value`, or the name itself if that raises an error."""
    try:
        return read_value(name)
    except ValueError:
        return name


@dataclass(slots=True)
class Names:
    """Reads the values of one column, and collects warnings for the user."""

    column: str
    """what messages call it, such as `label_column=class`"""
    _names: dict[object, str] = field(default_factory=dict)
    """(type, value) → name"""
    _first: dict[str, str] = field(default_factory=dict)
    """name → the first value that was read as it, as text"""
    _merged: dict[str, list[str]] = field(default_factory=dict)
    """name → all of its spellings, if there are several"""

    def read(self, value: object) -> str:
        """The name of `value`, as `read_value` reads it."""
        key = (type(value), value) if isinstance(value, Hashable) else None
        if key is not None and key in self._names:
            return self._names[key]
        return self._remember(key, value, read_value(value))

    def read_folder(self, folder: str) -> str:
        """The name of a folder, as `read_text` reads it."""
        key = (str, folder)
        return self._names[key] if key in self._names else self._remember(key, folder, read_text(folder))

    def _remember(self, key: object, value: object, name: str) -> str:
        self._names[key] = name
        written = str(value)
        first = self._first.setdefault(name, written)
        if name and written != first:
            spellings = self._merged.setdefault(name, [first])
            if written not in spellings:
                spellings.append(written)
        return name

    def find_doubts(self) -> list[str]:
        """One line for each name that was written in several ways, and for names that may mean none."""
        lines = [
            f"{self.column}: {', '.join(map(repr, found))} are one name, '{name}'"
            for name, found in sorted(self._merged.items())[:_MAX_LINES]
        ]
        if len(self._merged) > _MAX_LINES:
            lines.append(
                f"{self.column}: {len(self._merged) - _MAX_LINES} more names are written in several ways"
            )
        escaped = [name for name, written in self._first.items() if _NOT_UTF8.search(written)]
        if escaped:
            names = ", ".join(f"'{name}'" for name in escaped[:_MAX_LINES])
            lines.append(
                f"{self.column}: {len(escaped)} names are not UTF-8 on disk, such as {names}; they keep these escapes"
            )
        controlled = [
            name for name, written in self._first.items() if _CONTROL.search("".join(written.split()))
        ]
        if controlled:
            names = ", ".join(f"'{name}'" for name in controlled[:_MAX_LINES])
            lines.append(
                f"{self.column}: {len(controlled)} names contain control characters, such as {names}; they keep "
                "these escapes"
            )
        powers = [name for name in self._first if _UNSIGNED_POWER.fullmatch(name)]
        if powers:
            names = ", ".join(f"'{name}'" for name in powers[:_MAX_LINES])
            lines.append(
                f"{self.column}: {names} {'is' if len(powers) == 1 else 'are'} read as text; to use a number, "
                "write all its digits"
            )
        return [*lines, *doubt_words(self.column, self._first)]


def doubt_words(place: str, names: Iterable[str]) -> list[str]:
    """One warning for those of `names`, found at `place`, that often mean a missing value."""
    words = [name for name in names if name.casefold() in _WORDS_FOR_NONE]
    if not words:
        return []
    return [
        f"{place}: {', '.join(map(repr, words))} is read as a name; if it means none, leave the value empty"
    ]
