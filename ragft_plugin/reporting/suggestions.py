"""Suggestions: training rows for the topics that only retrieval answers today."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ragft_plugin.evaluation.outcomes import Outcomes, normalized_query, reads_passages
from ragft_plugin.reporting.comparison import RIGHT
from ragft_plugin.reporting.topics import Topic


def suggest_rows(outcomes: Outcomes, topics: Sequence[Topic]) -> list[dict[str, Any]]:
    """Rows for ``ragft train`` out of the questions of some topics.

    The answer is the accepted one of the log, or else what the best arm with retrieval answered, if that was right
    (reward at least 0.5). Questions without either are left out, and none comes twice.

    Args:
        outcomes: the log.
        topics: whose questions; see ``ragft_plugin.reporting.advice.worth_tuning``.

    Returns:
        ``{"question", "answer", "topic", "source"}``, where ``source`` is "gold" or the arm that answered.
    """
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for topic in topics:
        for i in topic.rows:
            outcome = outcomes.rows[i]
            key = normalized_query(outcome.query)
            if key in seen:
                continue
            answer, source = _answer(outcomes, i)
            if answer:
                seen.add(key)
                rows.append({"question": outcome.question, "answer": answer, "topic": topic.name, "source": source})
    return rows


def _answer(outcomes: Outcomes, i: int) -> tuple[str, str]:
    outcome = outcomes.rows[i]
    gold = outcome.gold
    if isinstance(gold, str) and gold.strip():
        return gold, "gold"
    if gold and not isinstance(gold, str):
        return str(next(iter(gold))), "gold"
    readers = sorted((a for a in outcome.reward if reads_passages(a)), key=lambda a: -outcome.reward[a])
    for arm in readers:
        said = outcome.draft(arm, final=True)
        if outcome.reward[arm] >= RIGHT and said is not None and said.text.strip():
            return said.text.strip(), arm
    return "", ""
