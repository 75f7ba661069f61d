"""Charts as SVG inside the page: they follow its colours in light and dark, and are drawn once wide and once narrow."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

_WIDE, _NARROW = (720, 330), (340, 290)
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 44
_MOST_TICKS = 6


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to 0 … 1, linear or logarithmic."""

    low: float
    high: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Position of a value between `low` (0) and `high` (1); values outside are clipped."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values from `low` to `high`."""
        if self.is_log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = [step * 10.0**power for power in powers for step in steps]
                found = [
                    value for value in found if self.low <= value * 1.0001 and value <= self.high * 1.0001
                ]
                if len(found) <= _MOST_TICKS:
                    break
            return found
        raw = (self.high - self.low) / (_MOST_TICKS - 1)
        step = next(
            size * 10.0 ** math.floor(math.log10(raw))
            for size in (1, 2, 2.5, 5, 10)
            if size * 10.0 ** math.floor(math.log10(raw)) >= raw * 0.999
        )
        first = math.ceil(self.low / step - 1e-9)
        return [step * number for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def around(values: Sequence[float], *, is_log: bool = False) -> Scale:
    """A scale that contains all `values` (above 0 for a logarithmic one) with margins at both ends."""
    low, high = min(values), max(values)
    if is_log:
        room = max((high / low) ** 0.05, 1.1)
        return Scale(low / room, high * room, is_log=True)
    room = max((high - low) * 0.05, 1e-9)
    return Scale(low - room, high + room)


@dataclass(slots=True)
class Plot:
    """A chart under construction, in pixels of its own width and height."""

    width: int
    height: int
    x: Scale
    y: Scale
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point, from the left and the top."""
        wide, high = self.width - _LEFT - _RIGHT, self.height - _TOP - _BOTTOM
        return _LEFT + wide * self.x.place(x), _TOP + high * (1 - self.y.place(y))

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """Straight lines from point to point."""
        places = " ".join("{:.1f},{:.1f}".format(*self.at(*point)) for point in points)
        self.parts.append(f'<polyline class="{kind}" points="{places}"/>')

    def span(self, x: float, low: float, high: float, kind: str) -> None:
        """A vertical line from `low` to `high`."""
        (left, bottom), (_, top) = self.at(x, low), self.at(x, high)
        self.parts.append(
            f'<line class="{kind}" x1="{left:.1f}" x2="{left:.1f}" y1="{bottom:.1f}" y2="{top:.1f}"/>'
        )

    def dot(self, x: float, y: float, kind: str, words: str, radius: float = 4) -> None:
        """A point, described when it is pointed at."""
        left, top = self.at(x, y)
        self.parts.append(
            f'<circle class="{kind}" cx="{left:.1f}" cy="{top:.1f}" '
            f'r="{radius:g}"><title>{escape(words)}</title></circle>'
        )

    def render(
        self,
        label: str,
        x_label: str,
        y_label: str,
        show_x: Callable[[float], str],
        show_y: Callable[[float], str],
    ) -> str:
        """The SVG with axes and their names; `label` describes it in words."""
        frame = []
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        for value in self.y.ticks():
            _, top = self.at(self.x.low, value)
            frame.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{top:.1f}" y2="{top:.1f}"/>')
            frame.append(
                f'<text x="{_LEFT - 6}" y="{top + 4:.1f}" text-anchor="end">{escape(show_y(value))}</text>'
            )
        for value in self.x.ticks():
            left, _ = self.at(value, self.y.low)
            frame.append(f'<line class="grid" x1="{left:.1f}" x2="{left:.1f}" y1="{_TOP}" y2="{bottom}"/>')
            frame.append(
                f'<text x="{left:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(show_x(value))}</text>'
            )
        middle = (_TOP + bottom) / 2
        frame.append(
            f'<text x="{(_LEFT + right) / 2:.0f}" y="{self.height - 8}" text-anchor="middle">{escape(x_label)}</text>'
        )
        frame.append(
            f'<text transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
        )
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(label)}">'
            f"{''.join(frame)}{''.join(self.parts)}</svg>"
        )


def chart(draw: Callable[[int, int], str], caption: str, legend: Sequence[tuple[str, str]] = ()) -> str:
    """A figure of the chart that `draw(width, height)` returns, in a wide and a narrow version; the page shows the
    one that fits.

    `caption` is HTML; `legend`: (CSS class, words) of each kind of mark.
    """
    keys = "".join(f'<span><i class="{kind}"></i>{escape(words)}</span>' for kind, words in legend)
    key = f'<p class="legend">{keys}</p>' if keys else ""
    return (
        f'<figure class="chart">{key}<div class="large">{draw(*_WIDE)}</div><div class="small">{draw(*_NARROW)}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
