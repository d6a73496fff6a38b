"""Advice: what the measurements say to do next. Nothing is advised that an interval does not support."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ragft_plugin.evaluation.intervals import paired_bootstrap
from ragft_plugin.evaluation.outcomes import Outcomes, reads_passages
from ragft_plugin.evaluation.report import Report
from ragft_plugin.reporting.comparison import adapter_of, newer_evidence
from ragft_plugin.reporting.topics import Topic
from ragft_plugin.routing.adapters import AdapterRecord

Kind = Literal["retrain", "tune", "drop", "collect", "keep"]
USELESS = 0.01  # an adapter is idle if the oracle surely loses less than this without it
LEAST_SHARE = 0.05  # of all questions, for a topic to be worth an adapter
LEAST_LEAD = 0.2  # by which retrieval must be ahead of every closed-book arm there
LITTLE = 0.02  # headroom below which no router can help much


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to do.

    Attributes:
        kind: "retrain" a stale adapter, "tune" on a topic, "drop" an idle adapter, "collect" more outcomes, or
            "keep" things as they are.
        subject: the adapter, the topic, or the router.
        text: what to do and why, with figures.
    """

    kind: Kind
    subject: str
    text: str


def advise(
    outcomes: Outcomes,
    report: Report,
    topics: Sequence[Topic],
    adapters: Mapping[str, AdapterRecord] | None = None,
) -> tuple[Advice, ...]:
    """Draw advice from a log and its report.

    Args:
        outcomes: the log, with every arm's reward.
        report: what the router earned on it.
        topics: of its questions, by words and by the log's own groups.
        adapters: name -> what is known of its training, to notice stale ones.
    """
    found = [
        *_stale(outcomes, adapters or {}),
        *_worth_tuning(outcomes, topics),
        *_idle(outcomes, report.cost_weight),
        *_router(report),
    ]
    return tuple(found) or (Advice("keep", "router", "Nothing stands out: keep arms and router as they are."),)


def worth_tuning(outcomes: Outcomes, topics: Sequence[Topic]) -> tuple[Topic, ...]:
    """Topics asked often that only retrieval answers, in the order given.

    Args:
        outcomes: the log the topics were found in.
        topics: by words (``find_topics``), by the log's own groups (``group_topics``), or both.
    """
    open_book = [a for a in outcomes.arms if reads_passages(a)]
    closed = [a for a in outcomes.arms if not reads_passages(a)]
    if not open_book or not closed:
        return ()
    return tuple(
        topic
        for topic in topics
        if topic.share >= LEAST_SHARE
        and max(topic.reward[a] for a in open_book) - max(topic.reward[a] for a in closed) >= LEAST_LEAD
    )


def _worth_tuning(outcomes: Outcomes, topics: Sequence[Topic]) -> list[Advice]:
    told = []
    for topic in worth_tuning(outcomes, topics):
        best = max((a for a in outcomes.arms if reads_passages(a)), key=lambda a: topic.reward[a])
        closed = max((a for a in outcomes.arms if not reads_passages(a)), key=lambda a: topic.reward[a])
        told.append(
            Advice(
                "tune",
                topic.name,
                f"{topic.share:.0%} of the questions are about this, and only retrieval answers them ({best} "
                f"{topic.reward[best]:.2f}, {closed} {topic.reward[closed]:.2f}). If these facts change rarely, an "
                "adapter would answer without retrieval: `ragft suggest` writes its training file.",
            )
        )
    return told


def _stale(outcomes: Outcomes, adapters: Mapping[str, AdapterRecord]) -> list[Advice]:
    told = []
    for name, record in adapters.items():
        arm = f"adapter:{name}"
        if arm not in outcomes.arms:
            continue
        newer = newer_evidence(outcomes, record)
        if not newer.any() or newer.all():
            continue
        reward = outcomes.reward[:, outcomes.arms.index(arm)]
        fresh, old = reward[newer], reward[~newer]
        # Two groups of questions: the standard error of a difference of independent means.
        error = float(np.sqrt(fresh.var() / len(fresh) + old.var() / len(old)))
        gap = float(old.mean() - fresh.mean())
        if gap - 1.96 * error <= 0:
            continue
        told.append(
            Advice(
                "retrain",
                name,
                f"For {newer.mean():.0%} of the questions the passages are newer than this adapter. It earns "
                f"{fresh.mean():.2f} there and {old.mean():.2f} elsewhere. Retrain it on the changed documents; until "
                "then the router keeps it off them.",
            )
        )
    return told


def _idle(outcomes: Outcomes, cost_weight: float) -> list[Advice]:
    net = outcomes.reward - cost_weight * outcomes.cost
    told = []
    for name in dict.fromkeys(a for a in map(adapter_of, outcomes.arms) if a is not None):
        kept = [j for j, arm in enumerate(outcomes.arms) if adapter_of(arm) != name]
        if not kept:
            continue
        loss = paired_bootstrap(net.max(axis=1), net[:, kept].max(axis=1), groups=outcomes.text_groups)
        if loss.high < USELESS:
            told.append(
                Advice(
                    "drop",
                    name,
                    f"Without this adapter even a perfect router would lose only {loss.value:.4f} (at most "
                    f"{loss.high:.4f}) per question. Drop it, or train it on what nothing else answers.",
                )
            )
    return told


def _router(report: Report) -> list[Advice]:
    told = []
    room = report.policy("oracle").net.value - report.policy(report.best_arm).net.value
    if room < LITTLE:
        told.append(
            Advice(
                "keep",
                "router",
                f"A perfect router would gain only {room:.3f} over always {report.best_arm}: there is little to route.",
            )
        )
    elif report.gain.low <= 0:
        told.append(
            Advice(
                "collect",
                "router",
                f"The gain over always {report.best_arm} is not certain ({report.gain.low:+.3f} to "
                f"{report.gain.high:+.3f}), while a perfect router would gain {room:.3f}. Collect more outcomes, or "
                "add a signal that tells the questions apart.",
            )
        )
    if report.calibration is not None and report.calibration.rejected():
        told.append(
            Advice(
                "collect",
                "router",
                f"Confidences are off by {report.calibration.ece:.3f} on average. Fit the router anew on recent "
                "outcomes.",
            )
        )
    return told
