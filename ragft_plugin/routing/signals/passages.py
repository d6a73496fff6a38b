"""Signals of the retrieved passages: does the knowledge base hold an answer to this question?"""

from __future__ import annotations

import math
import re

from ragft_plugin.routing.signals.reading import Reading
from ragft_plugin.routing.signals.registry import signal


@signal(stage="passages")
def score_shape(reading: Reading) -> dict[str, float]:
    """Best score, its lead over the second and over the rest; unknown where no scores were logged."""
    scores = [p.score for p in reading.evidence.passages or ()]
    if not any(scores):
        return {}
    top = scores[0]
    rest = scores[1:]
    return {
        "p_score": top,
        "p_gap": top - rest[0] if rest else 0.0,
        "p_lead": top - sum(rest) / len(rest) if rest else 0.0,
    }


@signal(stage="passages")
def coverage(reading: Reading) -> dict[str, float]:
    """Share of the question's words, by weight, that the passages contain."""
    found = reading.passage_sets
    if not found:
        return {"p_none": 1.0}
    weights = {w: reading.weight(w) for w in reading.word_set}
    total = sum(weights.values()) or 1.0
    each = [sum(v for w, v in weights.items() if w in s) / total for s in found]
    union = frozenset().union(*found)
    return {
        "p_none": 0.0,
        "p_cover_top": each[0],
        "p_cover_best": max(each),
        "p_cover_all": sum(v for w, v in weights.items() if w in union) / total,
    }


@signal(stage="passages")
def closeness(reading: Reading) -> dict[str, float]:
    """Cosine between question and passages, and how it falls off."""
    vectors = reading.passage_vectors
    if not vectors:
        return {}
    each = [reading.similarity(reading.query_vector, v) for v in vectors]
    return {
        "p_close_top": each[0],
        "p_close_best": max(each),
        "p_close_mean": sum(each) / len(each),
        "p_words": math.log1p(len(reading.passage_words[0])),
    }


@signal(stage="passages")
def retrievers_agree(reading: Reading) -> dict[str, float]:
    """Whether two retrievers put the same passage first.

    Read from the passages' metadata: either one entry per retriever (``retriever`` and ``rank``), or ranks side
    by side in one passage (``dense_rank`` and ``lexical_rank``, from 1).
    """
    passages = reading.evidence.passages or ()
    tops: dict[str, int] = {}
    for i, p in enumerate(passages):
        name = p.metadata.get("retriever")
        if name is not None and p.metadata.get("rank", 1) == 1:
            tops.setdefault(str(name), i)
    if len(tops) >= 2:
        a, b = list(tops.values())[:2]
        vectors = reading.passage_vectors
        near = reading.similarity(vectors[a], vectors[b]) if max(a, b) < len(vectors) else float("nan")
        same = passages[a].id == passages[b].id or passages[a].text == passages[b].text
        return {
            "p_agree": float(same),
            "p_agree_close": near,
        }
    if passages:
        ranks = [passages[0].metadata.get(key) for key in ("dense_rank", "lexical_rank")]
        if any(r is not None for r in ranks):
            return {
                "p_agree": float(ranks[0] == ranks[1] == 1),
                "p_rank_other": 1.0 / max([r for r in ranks if r is not None] + [1]) if None not in ranks else 0.0,
            }
    if len(passages) >= 2:
        return {"p_agree_close": reading.similarity(reading.passage_vectors[0], reading.passage_vectors[1])}
    return {}


# A capital or a digit inside a sentence marks what a question is about: a name, a number, a product code.
_NAME = re.compile(r"\b(?:[A-Z][\w-]*|[^\W\d]*+\d[\w-]*)")


@signal(stage="passages")
def names(reading: Reading) -> dict[str, float]:
    """Share of the names and numbers in the question that the passages contain; unknown if it has none.

    The first word of a sentence counts only where a passage contains it, since a capital there says nothing.
    Words that were never seen in training have no weight of their own; a name is known by its shape.
    """
    passages = reading.evidence.passages or ()
    asked = list(_NAME.finditer(reading.evidence.query))
    texts = [_names_in(passage.text, {match.group() for match in asked}) for passage in passages]
    union = frozenset().union(*texts)
    found: list[str] = []
    for match in asked:
        before = reading.evidence.query[: match.start()].rstrip()
        first = not before or before[-1] in ".!?:"
        if not first or match.group() in union:
            found.append(match.group())
    if not found:
        return {}
    return {
        "p_names_top": sum(name in texts[0] for name in found) / len(found) if texts else 0.0,
        "p_names_all": sum(name in union for name in found) / len(found),
    }


def _names_in(text: str, wanted: set[str]) -> frozenset[str]:
    """Those of the wanted names that a text has. To split a text is dear, so it is searched for them first."""
    return frozenset(_NAME.findall(text)) & wanted if any(name in text for name in wanted) else frozenset()
