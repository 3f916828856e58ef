"""Efficiency against item cost, as an SVG written by hand: no plotting library."""

from collections.abc import Iterable, Sequence
from math import log10
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.harness import Result

SVG = Path(__file__).with_name("efficiency.svg")
WIDTH, HEIGHT = 860, 460
LEFT, RIGHT, TOP, BOTTOM = 60, 640, 40, 410
COLOURS = ("#d62728", "#555555", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf")
Points = list[tuple[float, float]]


def _series(results: Iterable[Result]) -> dict[str, Points]:
    """For each contender, its (microseconds an item, percent)."""
    series: dict[str, Points] = {}
    for result in results:
        cost = float(result.row.name.removeprefix("efficiency-").removesuffix("us"))
        for outcome in result.outcomes:
            if outcome.figure is not None and outcome.contender != result.row.reference:
                series.setdefault(outcome.contender, []).append((cost, outcome.figure))
    return {name: sorted(points) for name, points in series.items()}


def _name(cost: float) -> str:
    return f"{cost:g} us" if cost < 1e3 else f"{cost / 1e3:g} ms" if cost < 1e6 else f"{cost / 1e6:g} s"


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def draw(results: Sequence[Result]) -> str:
    title = "Efficiency of two processes by the cost of an item"
    return chart(title, "CPU time of one item, log scale", _series(results), bold="fstream")


def chart(title: str, below: str, series: dict[str, Points], bold: str = "") -> str:
    """Draw each of the *series*, (microseconds an item, percent), as a line: the *bold* one is thicker."""
    costs = sorted({cost for points in series.values() for cost, _ in points})
    low, high = log10(costs[0]), log10(costs[-1])
    span = high - low or 1

    def x(cost: float) -> float:
        return LEFT + (log10(cost) - low) / span * (RIGHT - LEFT)

    def y(percent: float) -> float:
        return BOTTOM - min(percent, 105) / 100 * (BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(
            (LEFT + RIGHT) / 2,
            20,
            title,
            more=' font-size="14"',
        ),
    ]
    for percent in range(0, 101, 20):
        height = y(percent)
        parts.append(f'<path d="M{LEFT} {height:.1f}H{RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 8, height + 4, f"{percent}%", "end"))
    for cost in costs:
        parts.append(f'<path d="M{x(cost):.1f} {TOP}V{BOTTOM}" stroke="#eee"/>')
        parts.append(_text(x(cost), BOTTOM + 18, _name(cost)))
    parts.append(_text((LEFT + RIGHT) / 2, BOTTOM + 38, below))
    for index, (name, points) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        width = 3 if name == bold else 1.5
        dash = ' stroke-dasharray="6 4"' if "best chunk" in name else ""
        line = " ".join(f"{x(cost):.1f},{y(percent):.1f}" for cost, percent in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>'
        )
        height = TOP + 14 + index * 20
        parts.append(
            f'<path d="M{RIGHT + 16} {height - 4}h22" stroke="{colour}" stroke-width="{width}"{dash}/>'
        )
        parts.append(_text(RIGHT + 44, height, name.replace(", two spans in flight", ""), "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"
