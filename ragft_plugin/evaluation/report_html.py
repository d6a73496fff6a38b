"""The report as one HTML page: no scripts, nothing loaded, every text of the log escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from ragft_plugin.evaluation.charts import frontier_chart, reliability_chart
from ragft_plugin.evaluation.frontier import Point
from ragft_plugin.evaluation.intervals import Interval
from ragft_plugin.evaluation.report_text import printable

if TYPE_CHECKING:
    from ragft_plugin.evaluation.report import Report

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5d6678; --line: #d5dae3; --paper: #fff;
  --router: #1f6feb; --arms: #8a6d1f; --other: #7d4fb3 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --soft: #9aa4b8; --line: #384052;
  --paper: #14171e; --router: #6ea8ff; --arms: #d6b656; --other: #c39bf0 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2.2rem }
p, figcaption { color: var(--soft) }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600; color: var(--soft) } .text { text-align: left; overflow-wrap: anywhere }
tr.router td { font-weight: 600 }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem } figure { margin: 0; flex: 1 1 24rem }
svg { width: 100%; height: auto } svg text { font-size: 12px; fill: var(--ink) }
.frame { fill: none; stroke: var(--line) } .grid { stroke: var(--line); stroke-width: .5 }
polyline { fill: none; stroke-width: 2 } polyline.arms { stroke: var(--arms); stroke-dasharray: 5 4 }
polyline.router, line.router { stroke: var(--router); stroke-width: 2 }
circle.router { fill: var(--router) } circle.arms { fill: var(--arms) } circle.other { fill: var(--other) }
"""
# Even if a text slipped through unescaped, the browser would run and load nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render_html(report: Report) -> str:
    """The whole page."""
    body = [f"<h1>{text(report.title)}</h1>", *sections(report)]
    if report.mistakes:
        body.append(_mistakes(report))
    return page(report.title, body)


def sections(report: Report) -> list[str]:
    """Headline figures, policies, charts and groups, as HTML."""
    return [_summary(report), _policies(report), _charts(report), *([_groups(report)] if report.groups else [])]


def page(title: str, body: Sequence[str], style: str = "") -> str:
    """A page that loads nothing and runs nothing.

    Args:
        title: of the window, not yet escaped.
        body: parts in HTML.
        style: rules beside the common ones.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _summary(report: Report) -> str:
    gain, share = report.gain, report.headroom
    lines = [
        f"{report.n:,} queries, cost weight {report.cost_weight:g}; intervals are 95 %, over queries.",
        f"Gain over always {text(report.best_arm)}: <strong>{gain.value:+.4f}</strong> "
        f"({gain.low:+.4f} to {gain.high:+.4f}). Headroom captured: <strong>{share.value:.1%}</strong> "
        f"({share.low:.1%} to {share.high:.1%}).",
    ]
    if report.stage_share:
        lines.append("Decided after: " + ", ".join(f"{text(s)} {p:.1%}" for s, p in report.stage_share.items()) + ".")
    return "".join(f"<p>{line}</p>" for line in [*lines, *map(text, report.notes)])


def _policies(report: Report) -> str:
    rows = []
    for p in report.policies:
        name = f"always {p.name}" if p.kind == "fixed" else p.name
        rows.append((p.kind, [text(name), *_pair(p.reward), f"{p.cost.value:.4g}", *_pair(p.net)]))
    return "<h2>Policies</h2>" + table(["policy", "reward", "95 %", "cost", "net", "95 %"], rows, {0})


def _charts(report: Report) -> str:
    others = [
        Point(p.cost.value, p.reward.value, p.name)
        for p in report.policies
        if p.kind in ("oracle", "random") or (p.kind == "router" and not report.frontier)
    ]
    caption = "Dashed: what mixing the fixed arms reaches."
    if report.aiq is not None and report.margin is not None:
        caption += f" AIQ {report.aiq:.4f}; height above the dashed line at least {report.margin:+.4f}."
    figures = [f"{frontier_chart(report.frontier, report.fixed, others)}<figcaption>{caption}</figcaption>"]
    test = report.calibration
    if test is not None:
        verdict = "rejected" if test.rejected() else "not rejected"
        note = (
            f"ECE {test.ece:.4f} (noise alone {test.expected_ece:.4f}), p = {test.p_value:.3f}: "
            f"calibration is {verdict}. Brier score {test.brier:.4f}, of a constant {test.base_brier:.4f}."
        )
        figures.append(f"{reliability_chart(report.reliability)}<figcaption>{note}</figcaption>")
    return '<div class="charts">' + "".join(f"<figure>{f}</figure>" for f in figures) + "</div>"


def _groups(report: Report) -> str:
    rows = []
    for g in report.groups:
        means = [f"{x:.3f}" for x in (g.best_arm, g.router, g.oracle)]
        interval = f"{g.gain.low:+.3f} to {g.gain.high:+.3f}"
        rows.append(("", [text(g.group), f"{g.n:,}", *means, f"{g.gain.value:+.3f}", interval]))
    head = ["group", "queries", f"always {text(report.best_arm)}", "router", "oracle", "gain", "95 %"]
    return "<h2>Groups</h2>" + table(head, rows, {0})


def _mistakes(report: Report) -> str:
    rows = []
    for m in report.mistakes:
        sure = "" if m.confidence is None else f"{m.confidence:.2f}"
        rows.append(("", [f"{m.regret:.3f}", sure, text(m.chosen), text(m.best), text(m.query, 300)]))
    head = ["lost", "confidence", "chosen", "better", "query"]
    return f"<h2>The {len(rows)} worst mistakes</h2>" + table(head, rows, {2, 3, 4})


def table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], left: set[int]) -> str:
    """A table of cells that are already escaped.

    Args:
        head: names of the columns.
        rows: each with its CSS class.
        left: numbers of the columns that hold text.
    """

    def cells(tag: str, values: Sequence[str]) -> str:
        marks = ((' class="text"' if i in left else "") for i in range(len(values)))
        return "".join(f"<{tag}{mark}>{value}</{tag}>" for mark, value in zip(marks, values, strict=True))

    body = "".join(f'<tr class="{escape(kind)}">{cells("td", values)}</tr>' for kind, values in rows)
    return f'<div class="scroll"><table><thead><tr>{cells("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'


def _pair(interval: Interval) -> tuple[str, str]:
    return f"{interval.value:.4f}", f"{interval.low:.3f} to {interval.high:.3f}"


def text(value: str, width: int | None = None) -> str:
    """One line of text, escaped, cut to ``width``."""
    return escape(printable(value, width))
