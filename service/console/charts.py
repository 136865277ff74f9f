"""Charts as SVG, drawn on the server, without scripts and styles. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import floor, isfinite, log10
from typing import NamedTuple

WIDTH, HEIGHT = 640, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 8, 10, 24
_N_TICKS = 4


class Series(NamedTuple):
    """Points of a line; `spread` is drawn above and below it. A point without a number interrupts the line."""

    x: Sequence[float]
    y: Sequence[float | None]
    spread: Sequence[float | None] = ()


class Mark(NamedTuple):
    """A vertical mark, such as an alert."""

    x: float
    kind: str
    title: str


def line_chart(title: str, line: Series, marks: Sequence[Mark] = ()) -> str:
    """A line over steps with marks, as an SVG element that says its first, latest and largest value to a screen reader."""
    heights = [y if y is not None and isfinite(y) else None for y in line.y]
    spreads = [s if s is not None and isfinite(s) else None for s in line.spread or [None] * len(line.y)]
    line = Series(line.x, heights, spreads)
    known = [(x, y) for x, y in zip(line.x, heights, strict=True) if y is not None]
    if not known:
        return ""
    edges = [y + sign * s for y, s in zip(line.y, spreads, strict=True) if y is not None for sign in (-1, 1) if s] or []
    x_scale = _Scale(min(x for x, _ in known), max(x for x, _ in known), _LEFT, WIDTH - _RIGHT)
    values = [y for _, y in known] + edges
    y_scale = _Scale(min(values), max(values), HEIGHT - _BOTTOM, _TOP)
    (x0, y0), (x1, y1) = known[0], known[-1]
    words = f"{title}: {_number(y0)} at step {_number(x0)}, {_number(y1)} at step {_number(x1)}"
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">',
        *_axes(x_scale, y_scale),
        *_band(line, spreads, x_scale, y_scale),
        *_path(line, x_scale, y_scale),
    ]
    for mark in marks:
        x = x_scale(min(max(mark.x, x_scale.low), x_scale.high))
        parts.append(
            f'<line class="mark {escape(mark.kind)}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}">'
            f"<title>{escape(mark.title)}</title></line>"
        )
    return "".join([*parts, "</svg>"])


def histogram(title: str, then: Sequence[float], now: Sequence[float], bins: int = 24) -> str:
    """Two distributions over the same bins, as shares: `then` filled, `now` as an outline."""
    values = [v for v in (*then, *now) if isfinite(v)]
    if not then or not now or not values:
        return ""
    low, high = min(values), max(values)
    width = (high - low) / bins if high - low > 1e-9 * max(abs(low), abs(high)) else 1.0
    shares = [_shares(side, low, width, bins) for side in (then, now)]
    x_scale = _Scale(low, high, _LEFT, WIDTH - _RIGHT)
    y_scale = _Scale(0.0, max(max(side) for side in shares), HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *_axes(x_scale, y_scale),
    ]
    for name, side in zip(("then", "now"), shares, strict=True):
        for i, share in enumerate(side):
            if share:
                x0, x1 = x_scale(low + i * width), x_scale(low + (i + 1) * width)
                y = y_scale(share)
                parts.append(
                    f'<rect class="{name}" x="{x0:.1f}" y="{y:.1f}" width="{max(1.0, x1 - x0):.1f}" '
                    f'height="{HEIGHT - _BOTTOM - y:.1f}"/>'
                )
    return "".join([*parts, "</svg>"])


def scatter(title: str, then: Sequence[tuple[float, float]], now: Sequence[tuple[float, float]]) -> str:
    """Two clouds of points: `then` and `now`."""
    points = [*then, *now]
    if not points:
        return ""
    x_scale = _Scale(min(x for x, _ in points), max(x for x, _ in points), _LEFT, WIDTH - _RIGHT)
    y_scale = _Scale(min(y for _, y in points), max(y for _, y in points), HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *_axes(x_scale, y_scale),
    ]
    for name, side in (("then", then), ("now", now)):
        parts += [f'<circle class="{name}" cx="{x_scale(x):.1f}" cy="{y_scale(y):.1f}" r="3"/>' for x, y in side]
    return "".join([*parts, "</svg>"])


class _Scale:
    """From values to places."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        margin = 0.0 if high - low > 1e-9 * max(abs(low), abs(high)) else max(0.5, 1e-3 * abs(high))
        self.low, self.high = low - margin, high + margin
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        return self._start + (value - self.low) / (self.high - self.low) * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Round numbers within the scale."""
        raw = (self.high - self.low) / _N_TICKS
        power = 10.0 ** floor(log10(raw))
        step = next(power * each for each in (1.0, 2.0, 5.0, 10.0) if power * each >= raw)
        first = -floor(-self.low / step)
        return [
            each for each in (step * (first + i) for i in range(2 * _N_TICKS + 2)) if each <= self.high + 1e-9 * step
        ]


def _axes(x_scale: _Scale, y_scale: _Scale) -> Iterator[str]:
    for value in y_scale.ticks():
        y = y_scale(value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>'
    for value in x_scale.ticks():
        yield f'<text class="tick" x="{x_scale(value):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{_number(value)}</text>'


def _path(line: Series, x_scale: _Scale, y_scale: _Scale) -> Iterator[str]:
    command, path = "M", []
    for x, y in zip(line.x, line.y, strict=True):
        if y is None:
            command = "M"
            continue
        path.append(f"{command}{x_scale(x):.1f} {y_scale(y):.1f}")
        command = "L"
    if len(path) == 1:
        path.append(path[0].replace("M", "L"))
    yield f'<path class="line" d="{" ".join(path)}"/>'


def _band(line: Series, spreads: Sequence[float | None], x_scale: _Scale, y_scale: _Scale) -> Iterator[str]:
    points = [(x, y, s) for x, y, s in zip(line.x, line.y, spreads, strict=True) if y is not None and s is not None]
    if len(points) < 2:
        return
    above = [f"{x_scale(x):.1f},{y_scale(y + s):.1f}" for x, y, s in points]
    below = [f"{x_scale(x):.1f},{y_scale(y - s):.1f}" for x, y, s in reversed(points)]
    yield f'<polygon class="band" points="{" ".join([*above, *below])}"/>'


def _shares(values: Sequence[float], low: float, width: float, bins: int) -> list[float]:
    counts = [0] * bins
    for value in values:
        if isfinite(value):
            counts[min(bins - 1, int((value - low) / width))] += 1
    return [count / len(values) for count in counts]


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 10_000 else f"{value:,.0f}"
