"""The report as plain text. Queries come from strangers: what could steer a terminal is taken out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ragft_plugin.evaluation.frontier import convex_hull

if TYPE_CHECKING:
    from ragft_plugin.evaluation.report import Report


def render_text(report: Report, width: int = 100) -> str:
    """Sections of aligned columns, none wider than ``width`` unless a name is."""
    parts = [_summary(report), _policies(report)]
    if report.frontier:
        parts.append(_frontier(report))
    if report.calibration is not None:
        parts.append(_calibration(report))
    if report.groups:
        parts.append(_groups(report))
    if report.mistakes:
        parts.append(_mistakes(report, width))
    return "\n\n".join(parts) + "\n"


def printable(text: str, width: int | None = None) -> str:
    r"""One line of printable characters, cut to ``width``.

    Example:
        >>> printable("a\x1b[31m red\nline", 8)
        'a [31...'
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if width is None or len(line) <= width else line[: max(0, width - 3)] + "..."


def _summary(report: Report) -> str:
    low, high = report.gain.low, report.gain.high
    lines = [
        f"{printable(report.title)}: {report.n:,} queries, cost weight {report.cost_weight:g}, intervals 95 %",
        f"gain over {printable(report.best_arm)}: {report.gain.value:+.4f} [{low:+.4f}, {high:+.4f}]",
        f"headroom captured: {report.headroom.value:.1%} [{report.headroom.low:.1%}, {report.headroom.high:.1%}]",
    ]
    if report.stage_share:
        lines.append("decided after: " + ", ".join(f"{printable(s)} {p:.1%}" for s, p in report.stage_share.items()))
    return "\n".join([*lines, *(printable(note) for note in report.notes)])


def _policies(report: Report) -> str:
    rows = [("policy", "reward", "95 %", "cost", "net", "95 %")]
    for p in report.policies:
        name = f"always {p.name}" if p.kind == "fixed" else p.name
        rows.append(
            (
                printable(name),
                f"{p.reward.value:.4f}",
                f"{p.reward.low:.3f}..{p.reward.high:.3f}",
                f"{p.cost.value:.4g}",
                f"{p.net.value:.4f}",
                f"{p.net.low:.3f}..{p.net.high:.3f}",
            )
        )
    return columns(rows)


def _frontier(report: Report) -> str:
    rows = [("cost weight", "cost", "reward")]
    corners = convex_hull(report.frontier)
    # A dozen corners show the curve; the JSON has all points.
    step = max(1, -(-len(corners) // 12))
    for p in [*corners[:-1:step], corners[-1]]:
        rows.append(("" if p.cost_weight is None else f"{p.cost_weight:.4g}", f"{p.cost:.4g}", f"{p.reward:.4f}"))
    below = "" if report.margin is None else f", at least {report.margin:+.4f} from the line between the fixed arms"
    area = "" if report.aiq is None else f": AIQ {report.aiq:.4f}"
    return f"frontier{area}{below}\n" + columns(rows)


def _calibration(report: Report) -> str:
    test = report.calibration
    assert test is not None  # the caller has looked
    verdict = "rejected" if test.rejected() else "not rejected"
    head = (
        f"calibration: ECE {test.ece:.4f} (noise alone {test.expected_ece:.4f}), p = {test.p_value:.3f}, {verdict}; "
        f"Brier {test.brier:.4f} (a constant {test.base_brier:.4f})"
    )
    rows = [("confidence", "queries", "reward", "95 %")]
    for b in report.reliability:
        rows.append(
            (f"{b.confidence:.3f}", str(b.count), f"{b.reward.value:.3f}", f"{b.reward.low:.3f}..{b.reward.high:.3f}")
        )
    return head + "\n" + columns(rows)


def _groups(report: Report) -> str:
    rows = [["group", "queries", printable(report.best_arm), "router", "oracle", "gain", "95 %"]]
    for g in report.groups:
        gain = f"{g.gain.low:+.3f}..{g.gain.high:+.3f}"
        means = [f"{x:.3f}" for x in (g.best_arm, g.router, g.oracle)]
        rows.append([printable(g.group, 40), str(g.n), *means, f"{g.gain.value:+.3f}", gain])
    return columns(rows)


def _mistakes(report: Report, width: int) -> str:
    rows = [["lost", "sure", "chosen", "better", ""]]
    for m in report.mistakes:
        sure = "" if m.confidence is None else f"{m.confidence:.2f}"
        rows.append([f"{m.regret:.3f}", sure, printable(m.chosen), printable(m.best), ""])
    used = max(len(line) for line in columns(rows, left={2, 3, 4}).splitlines())
    texts = ["query", *(printable(m.query, max(20, width - used - 2)) for m in report.mistakes)]
    rows = [[*row[:4], text] for row, text in zip(rows, texts, strict=True)]
    return f"the {len(report.mistakes)} worst mistakes\n" + columns(rows, left={2, 3, 4})


def columns(rows: Sequence[Sequence[str]], left: frozenset[int] | set[int] = frozenset({0})) -> str:
    """Rows as aligned columns, the first row underlined; columns in ``left`` are flush left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)
