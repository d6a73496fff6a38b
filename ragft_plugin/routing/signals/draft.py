"""Signals of a draft: is the arm that wrote it sure, and do the passages bear it out?"""

from __future__ import annotations

import math
import re

from ragft_plugin.routing.signals.reading import Reading
from ragft_plugin.routing.signals.registry import signal

_HEDGE = re.compile(
    r"\b(?:not (?:sure|certain|clear)|un(?:sure|certain|clear|likely)|may|might|could|possibl[ey]|perhaps|"
    r"probably|likely|seems?|appears?|generally|typically|assum\w+|i think|i believe)\b",
    re.I,
)
_ABSTAIN = re.compile(
    r"\b(?:(?:do not|don't|does not|doesn't|cannot|can't|could not|couldn't|unable to) "
    r"(?:know|have|find|determine|answer|provide|contain|say|verify)|no (?:information|answer|evidence|record)|"
    r"not (?:available|provided|specified|mentioned|enough|found|known|listed)|unknown|sorry|n/a|none)\b",
    re.I,
)


_NUMERIC = re.compile(
    r"\b(?:when|how (?:many|much|old|long|far|tall|high|big|large|fast)|what (?:year|date|number|age))\b", re.I
)
_NAMED = re.compile(r"\b(?:who|whom|whose|where)\b", re.I)
_POLAR = re.compile(r"^\W*(?:is|are|was|were|do|does|did|can|could|has|have|had|will|would|should)\b", re.I)


def fits_question(question: str, answer: str) -> float:
    """Whether an answer is of the kind that was asked for: 1 yes, -1 no, 0 if the question does not tell.

    Example:
        >>> fits_question("When was it built?", "by Eiffel"), fits_question("Who built it?", "Eiffel")
        (-1.0, 1.0)
    """
    if _POLAR.search(question):
        return 1.0 if answer.lower().startswith(("yes", "no")) else -1.0
    if _NUMERIC.search(question):
        return 1.0 if any(c.isdigit() for c in answer) else -1.0
    if _NAMED.search(question):
        return 1.0 if any(c.isupper() for c in answer) else -1.0
    return 0.0


@signal(stage="draft")
def certainty(reading: Reading) -> dict[str, float]:
    """Token log-probabilities, margins and entropies of the draft; unknown where none were logged."""
    draft = reading.draft
    if draft is None:
        return {}
    told: dict[str, float] = {}
    if draft.logprobs:
        told["d_logprob_mean"] = sum(draft.logprobs) / len(draft.logprobs)
        told["d_logprob_min"] = min(draft.logprobs)
        told["d_logprob_first"] = draft.logprobs[0]
        told["d_logprob_sum"] = sum(draft.logprobs)
    if draft.margins:
        told["d_margin_mean"] = sum(draft.margins) / len(draft.margins)
        told["d_margin_min"] = min(draft.margins)
    if draft.entropies:
        told["d_entropy_mean"] = sum(draft.entropies) / len(draft.entropies)
        told["d_entropy_max"] = max(draft.entropies)
    return told


@signal(stage="draft")
def wording(reading: Reading) -> dict[str, float]:
    """Length, hedging, abstention, names and numbers of the draft and of the answer in it."""
    draft = reading.draft
    if draft is None or reading.draft_arm is None:
        return {}
    text = draft.text
    tokens = reading.draft_words
    final = reading.final(reading.draft_arm)
    said = frozenset(tokens)
    return {
        "d_words": math.log1p(len(tokens)),
        "d_answer_length": math.log1p(len(final)),
        "d_empty": float(not final.strip()),
        "d_hedges": math.log1p(len(_HEDGE.findall(text))),
        "d_abstains": float(_ABSTAIN.search(text) is not None),
        "d_answer_abstains": float(_ABSTAIN.search(final) is not None),
        "d_answer_yesno": float(final.lower().startswith(("yes", "no"))),
        "d_answer_number": float(any(c.isdigit() for c in final)),
        "d_answer_name": float(final[:1].isupper()),
        "d_answer_fits": fits_question(reading.evidence.query, final),
        "d_echo": len(said & reading.word_set) / max(len(said), 1),
        "d_echo_question": len(said & reading.word_set) / max(len(reading.word_set), 1),
        "d_repeats": 1.0 - len(said) / max(len(tokens), 1),
    }


@signal(stage="draft")
def support(reading: Reading) -> dict[str, float]:
    """Overlap of the draft with the passages, and of the answer in it with the best of them."""
    if reading.draft is None or reading.draft_arm is None or not reading.passage_sets:
        return {}
    said = frozenset(reading.draft_words)
    each = [len(said & s) / max(len(said), 1) for s in reading.passage_sets]
    close = [reading.similarity(reading.draft_vector, v) for v in reading.passage_vectors]
    final = reading.final(reading.draft_arm).lower()
    return {
        "d_support_top": each[0],
        "d_support_best": max(each),
        "d_support_close_top": close[0],
        "d_support_close_best": max(close),
        "d_support_closer_than_question": close[0]
        - reading.similarity(reading.query_vector, reading.passage_vectors[0]),
        "d_answer_in_passages": float(
            bool(final) and any(final in p.text.lower() for p in reading.evidence.passages or ())
        ),
    }
