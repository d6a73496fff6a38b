"""Charts as inline SVG: cost against reward, and the reliability diagram. No scripts, all text escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import floor, log10

from ragft_plugin.evaluation.calibration import ReliabilityBin
from ragft_plugin.evaluation.frontier import Point, convex_hull
from ragft_plugin.evaluation.report_text import printable

WIDTH, HEIGHT = 560, 360
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 14, 46
Scale = Callable[[float], float]


def frontier_chart(router: Sequence[Point], fixed: Sequence[Point], others: Sequence[Point]) -> str:
    """Mean cost against mean reward.

    Args:
        router: the router at several cost weights, joined by a line.
        fixed: the fixed arms; the dashed line is what mixing them reaches.
        others: further points, such as oracle and random.
    """
    everything = [*router, *fixed, *others]
    x, y, frame = _frame(
        _range([p.cost for p in everything]), _range([p.reward for p in everything]), "mean cost", "mean reward"
    )
    parts = [frame]
    hull = convex_hull(fixed)
    level = [*hull, Point(max(p.cost for p in everything), hull[-1].reward)]
    parts.append(_line(level, x, y, "arms"))
    if router:
        parts.append(_line(sorted(router, key=lambda p: p.cost), x, y, "router"))
        parts += [_dot(p, x, y, "router", "") for p in router]
    parts += [_dot(p, x, y, "arms", p.name) for p in fixed]
    parts += [_dot(p, x, y, "other", p.name) for p in others]
    return _svg("Cost against reward", parts)


def reliability_chart(bins: Sequence[ReliabilityBin]) -> str:
    """Stated confidence against what was earned, with Wilson intervals; the diagonal is perfect calibration."""
    x, y, frame = _frame((0.0, 1.0), (0.0, 1.0), "stated confidence", "mean reward")
    parts = [frame, _line([Point(0.0, 0.0), Point(1.0, 1.0)], x, y, "arms")]
    for b in bins:
        at = f"{x(b.confidence):.1f}"
        parts.append(
            f'<line class="router" x1="{at}" x2="{at}" y1="{y(b.reward.low):.1f}" y2="{y(b.reward.high):.1f}"/>'
        )
        label = f"{b.count} queries, confidence {b.confidence:.3f}, reward {b.reward.value:.3f}"
        dot = f'<circle class="router" cx="{at}" cy="{y(b.reward.value):.1f}" r="4">'
        parts.append(f"{dot}<title>{escape(label)}</title></circle>")
    return _svg("Reliability diagram", parts)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about ``count`` of them.

    Example:
        >>> ticks(0.0, 1.0)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / count
    power = 10.0 ** floor(log10(raw))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * (1 - 1e-9))
    first = -floor(-low / step * (1 - 1e-12))
    found = []
    while first * step <= high + 1e-9 * step:
        found.append(round(first * step, 12))
        first += 1
    return found


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    return low - pad, high + pad


def _frame(across: tuple[float, float], up: tuple[float, float], x_name: str, y_name: str) -> tuple[Scale, Scale, str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(value: float) -> float:
        return LEFT + (value - across[0]) / (across[1] - across[0]) * (right - LEFT)

    def y(value: float) -> float:
        return bottom - (value - up[0]) / (up[1] - up[0]) * (bottom - TOP)

    parts = [f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{right - LEFT}" height="{bottom - TOP}"/>']
    for t in ticks(*across):
        parts.append(f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x(t):.1f}" y="{bottom + 16}" text-anchor="middle">{t:g}</text>')
    for t in ticks(*up):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>')
    middle = (TOP + bottom) / 2
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{x_name}</text>')
    parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{y_name}</text>')
    return x, y, "".join(parts)


def _line(points: Sequence[Point], x: Scale, y: Scale, kind: str) -> str:
    path = " ".join(f"{x(p.cost):.1f},{y(p.reward):.1f}" for p in points)
    return f'<polyline class="{kind}" points="{path}"/>'


def _dot(point: Point, x: Scale, y: Scale, kind: str, label: str) -> str:
    cx, cy = x(point.cost), y(point.reward)
    title = escape(f"{printable(point.name)}: cost {point.cost:.4g}, reward {point.reward:.4f}")
    dot = f'<circle class="{kind}" cx="{cx:.1f}" cy="{cy:.1f}" r="4"><title>{title}</title></circle>'
    # Labels stand to the left of dots near the right edge, so that they stay inside.
    left = cx > WIDTH - 130
    anchor, shift = ("end", -8) if left else ("start", 8)
    text = f'<text x="{cx + shift:.1f}" y="{cy - 6:.1f}" text-anchor="{anchor}">{escape(printable(label, 24))}</text>'
    return dot + (text if label else "")


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
