"""What a router knows of an adapter's training: to route before there are outcomes, and to notice staleness.

An adapter gets stale, a knowledge base does not. When the evidence for a query is newer than the adapter, or is a
passage that it was trained on and that has changed since, the adapter is not asked closed-book.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from ragft_plugin.evaluation.outcome import reads_passages
from ragft_plugin.types import Passage

CHANGED_KEYS = (
    "updated_at",
    "updated",
    "modified_at",
    "modified",
    "changed_at",
    "changed",
    "last_modified",
    "last_updated",
    "last_modified_date",
    "date_modified",
    "mtime",
    "date",
)
"""Metadata that tells when a passage was changed: ISO 8601, or seconds since 1970. The first that is a time counts."""

LOOK_AT = 3  # the first passages are the evidence; what ranks below hardly bears on the answer


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """When and on what an adapter was trained, as its manifest says.

    Attributes:
        trained_at: the time up to which it knows the world, at the latest that of training: seconds since 1970 or
            an ISO 8601 string; None if unknown.
        passages: id -> content hash of the passages trained on (see ``content_hash``), or the hash's beginning.
        questions: a sample of the questions trained on, for the cold start.
        closeness: name of the fact (``Evidence.facts``) that tells how close a question is to those trained on, in
            [0, 1]; it stands in for ``questions`` where an adapter does not give them away.
    """

    trained_at: float | str | None = None
    passages: Mapping[str, str] = field(default_factory=dict)
    questions: Sequence[str] = ()
    closeness: str | None = None


def content_hash(text: str) -> str:
    """Hash of a passage's text, as manifests keep it.

    Example:
        >>> content_hash("a")[:8]
        'ca978112'
    """
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def seconds(value: Any) -> float | None:
    """A time as seconds since 1970, or None if it is not one.

    Example:
        >>> seconds("1970-01-02"), seconds(5), seconds("soon")
        (86400.0, 5.0, None)
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, date):
        value = value.isoformat()
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str):
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            return None
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return None


def staleness(record: AdapterRecord, passages: Sequence[Passage]) -> str | None:
    """Why an adapter is stale for this evidence, in words, or None."""
    trained = seconds(record.trained_at)
    for passage in passages[:LOOK_AT]:
        known = record.passages.get(passage.id)
        if known is not None:
            now = str(passage.metadata.get("content_hash") or content_hash(passage.text))
            if not known or not now.startswith(known):
                return f"passage {passage.id!r} has changed since it was trained on"
            continue
        if trained is None:
            continue
        changed = changed_at(passage)
        if changed is not None and changed > trained:
            return f"passage {passage.id!r} is newer than its training"
    return None


def changed_at(passage: Passage) -> float | None:
    """When a passage was last changed, seconds since 1970, by the first of ``CHANGED_KEYS`` that holds a time.

    Example:
        >>> changed_at(Passage("1", "text", metadata={"updated": "1970-01-02"}))
        86400.0
    """
    times = (seconds(passage.metadata.get(key)) for key in CHANGED_KEYS)
    return next((time for time in times if time is not None), None)


def stale_arms(
    adapters: Mapping[str, AdapterRecord], arms: Sequence[str], passages: Sequence[Passage]
) -> dict[int, str]:
    """Closed-book arms that must not answer from this evidence: index of the arm -> why.

    Args:
        adapters: arm -> what is known of its adapter.
        arms: all arms.
        passages: the evidence.

    Returns:
        Nothing if every arm would be ruled out: someone has to answer.
    """
    if not adapters or not passages:
        return {}
    found: dict[int, str] = {}
    for a, name in enumerate(arms):
        record = adapters.get(name)
        if record is not None and not reads_passages(name):
            why = staleness(record, passages)
            if why is not None:
                found[a] = why
    return found if len(found) < len(arms) else {}
