"""Synthetic worlds whose truth is known."""

from __future__ import annotations

import numpy as np

from ragft_plugin.evaluation.outcomes import Outcomes
from ragft_plugin.types import Answer, Evidence, Passage

TOPICS = ["falcon", "harbor", "copper", "violet"]


def world(n: int, seed: int = 0, *, passages: bool = False, drafts: bool = False) -> Outcomes:
    """Questions about four topics: the adapter knows two of them, the passages hold the other two.

    Each arm is right with probability .9 where it knows and .15 where it does not, so the best single arm earns
    about .525 and the best choice .9.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        topic = int(rng.integers(4))
        word = TOPICS[topic]
        knows = {"adapter": topic < 2, "rag": topic >= 2}
        right = {arm: int(rng.random() < (0.9 if known else 0.15)) for arm, known in knows.items()}
        row = {
            "query_id": str(i),
            "query": f"What is the {word} number {rng.integers(10_000)} about?",
            "reward": right,
            "cost": {"adapter": 0.0, "rag": 1.0},
        }
        if passages:
            text = f"The {word} record says this." if knows["rag"] else "Nothing of the kind is written here."
            row["passages"] = [{"id": f"p{topic}", "text": text, "score": float(knows["rag"])}]
            row["stage_cost"] = {"passages": 1.0}
        if drafts:
            row["drafts"] = {"adapter": {"text": "It is so." if right["adapter"] else "I am not sure, unknown."}}
            row.setdefault("stage_cost", {})["draft"] = 0.0
        rows.append(row)
    return Outcomes.from_rows(rows, ("adapter", "rag"))


def noise(n: int, seed: int = 0) -> Outcomes:
    """Rewards that have nothing to do with the questions."""
    rng = np.random.default_rng(seed)
    return Outcomes.from_rows(
        {
            "query_id": str(i),
            "query": " ".join(f"word{w}" for w in rng.integers(0, 60, 6)) + f" {i}",
            "reward": {"adapter": int(rng.random() < 0.5), "rag": int(rng.random() < 0.55)},
        }
        for i in range(n)
    )


def evidence(query: str, *texts: str, draft: str | None = None, **metadata: object) -> Evidence:
    """Evidence with passages and perhaps the adapter's draft."""
    found = tuple(Passage(f"p{i}", text, 1.0 - 0.1 * i, metadata) for i, text in enumerate(texts)) if texts else None
    drafts = {} if draft is None else {"adapter": Answer(draft, "adapter")}
    return Evidence(query, passages=found, drafts=drafts)
