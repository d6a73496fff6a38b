"""The report as one page for a manager and an engineer: headline first, then why, then what to do.

It loads nothing, runs nothing, prints on paper, and follows the reader's light or dark setting. Every text of the log
is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence

from ragft_plugin.evaluation.report_html import page, sections, table, text
from ragft_plugin.reporting.router_report import Case, RouterReport
from ragft_plugin.reporting.topics import Topic

STYLE = """
.headline { font-size: 1.25rem; color: var(--ink); margin: .6rem 0 1rem }
.advice { list-style: none; padding: 0 } .advice li { border-left: 4px solid var(--router); padding: .2rem .9rem;
  margin: .7rem 0; color: var(--ink) }
.advice .retrain, .advice .drop { border-color: var(--arms) } .advice .tune { border-color: var(--other) }
.kind { font-weight: 600; margin-right: .4rem }
.topics { display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: 1rem 2rem }
.topic { border-top: 1px solid var(--line) } .topic h3 { font-size: 1rem; margin: .8rem 0 0 }
.topic p, .topic ul { margin: .2rem 0 } .topic ul { color: var(--soft); padding-left: 1.2rem } .topic dl { gap: 0 1rem }
.bar { display: inline-block; height: .7rem; background: var(--line); vertical-align: baseline; border-radius: 2px }
.bar.best { background: var(--router) }
details { border-top: 1px solid var(--line); padding: .5rem 0 } summary { cursor: pointer }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; margin: .6rem 0 }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
@media print { body { max-width: none; margin: 0 } h2 { break-after: avoid }
  figure, tr, details, .topic { break-inside: avoid } }
"""
VERBS = {"retrain": "Retrain", "tune": "Worth tuning", "drop": "Drop", "collect": "Collect", "keep": "Keep"}


def render_page(report: RouterReport) -> str:
    """The whole page."""
    figures = report.report
    body = [
        f"<h1>{text(figures.title)}</h1>",
        f'<p class="headline">{_headline(report)}</p>',
        _advice(report),
        *sections(figures),
    ]
    if report.topics:
        body.append(_topics(report))
    if report.comparison:
        body.append(_comparison(report))
    if report.cases:
        body.append(_cases(report))
    return page(figures.title, body, STYLE)


def _headline(report: RouterReport) -> str:
    figures = report.report
    gain, best = figures.gain, text(figures.best_arm)
    if gain.low > 0:
        return (
            f"Routing per question earns <strong>{figures.policy('router').reward.value:.3f}</strong> where always "
            f"{best} earns {figures.policy(figures.best_arm).reward.value:.3f}: {figures.headroom.value:.0%} of what a "
            "perfect router could add."
        )
    if gain.high < 0:
        return f"Routing earns less than always {best} here ({gain.value:+.3f}): do not deploy this router."
    return f"Routing shows no certain gain over always {best} on these questions ({gain.value:+.3f})."


def _advice(report: RouterReport) -> str:
    items = "".join(
        f'<li class="{item.kind}"><span class="kind">{VERBS[item.kind]}: {text(item.subject)}.</span>'
        f"{text(item.text)}</li>"
        for item in report.advice
    )
    return f'<h2>What to do</h2><ul class="advice">{items}</ul>'


def _topics(report: RouterReport) -> str:
    arms = [row.name for row in report.report.policies if row.kind == "fixed"]
    note = (
        "Questions that read alike, grouped by their words. Bars are each arm's mean reward there; in brackets how far "
    )
    note += f"the best arm is ahead of always {text(report.report.best_arm)}, with its 95 % interval."
    cards = "".join(_topic(topic, arms) for topic in report.topics)
    return f'<h2>Where each arm wins</h2><p>{note}</p><div class="topics">{cards}</div>'


def _topic(topic: Topic, arms: Sequence[str]) -> str:
    lead = topic.lead
    ahead = f" ({lead.value:+.2f}, {lead.low:+.2f} to {lead.high:+.2f})" if lead.value else ""
    bars = "".join(
        f'<dt>{text(arm)}</dt><dd><span class="bar{" best" if arm == topic.best_arm else ""}" '
        f'style="width:{8 * topic.reward[arm]:.2f}rem"></span> {topic.reward[arm]:.2f}</dd>'
        for arm in arms
    )
    examples = "".join(f"<li>{text(example, 160)}</li>" for example in topic.examples)
    return (
        f'<section class="topic"><h3>{text(topic.name)}</h3>'
        f"<p>{topic.share:.0%} of the questions (n = {topic.n:,}); best: {text(topic.best_arm)}{ahead}</p>"
        f"<dl>{bars}</dl><ul>{examples}</ul></section>"
    )


def _comparison(report: RouterReport) -> str:
    rows = [
        ("", [text(x) for x in (row.criterion, row.retrieval, row.adapter, row.measured)]) for row in report.comparison
    ]
    head = ["", "retrieval", "adapter", "how it was measured"]
    return "<h2>Retrieval and fine-tuning on these questions</h2>" + table(head, rows, {0, 1, 2, 3})


def _cases(report: RouterReport) -> str:
    cases = "".join(_case(case) for case in report.cases)
    return f"<h2>The {len(report.cases)} worst mistakes</h2>{cases}"


def _case(case: Case) -> str:
    sure = "" if case.confidence is None else f", confidence {case.confidence:.2f}"
    parts = [
        (f"{case.chosen} (taken{sure})", case.chosen_answer or "the log does not tell"),
        (f"{case.best} (better)", case.best_answer or "the log does not tell"),
    ]
    if case.gold:
        parts.append(("accepted", " | ".join(case.gold)))
    parts += [(f"passage {number}", passage) for number, passage in enumerate(case.passages, 1)]
    told = "".join(f"<dt>{text(name)}</dt><dd>{text(value, 600)}</dd>" for name, value in parts)
    return (
        f"<details><summary>{text(case.query, 300)} <em>(lost {case.lost:.3f})</em></summary><dl>{told}</dl></details>"
    )
