"""Signals of two answers: arms that agree are seldom both wrong in the same way."""

from __future__ import annotations

import math
import re

from ragft_plugin.routing.signals.draft import _ABSTAIN, fits_question
from ragft_plugin.routing.signals.reading import Reading
from ragft_plugin.routing.signals.registry import signal

_TOKEN = re.compile(r"\w+")
_ARTICLES = frozenset({"a", "an", "the"})


def _tokens(text: str) -> list[str]:
    found = _TOKEN.findall(text.lower())
    return [t for t in found if t not in _ARTICLES] or found


def _letters(first: str, second: str) -> float:
    """Share of pairs of neighbouring letters that two texts have in common (Dice)."""
    a, b = ({t[i : i + 2] for i in range(len(t) - 1)} for t in (first.lower(), second.lower()))
    return 2.0 * len(a & b) / (len(a) + len(b)) if a and b else 0.0


@signal(stage="agreement")
def agreement(reading: Reading) -> dict[str, float]:
    """Equality and overlap of the draft's answer with the second arm's."""
    if reading.draft is None or reading.second is None or reading.draft_arm is None or reading.agreement_arm is None:
        return {}
    first_text, second_text = reading.final(reading.draft_arm), reading.final(reading.agreement_arm)
    first, second = _tokens(first_text), _tokens(second_text)
    a, b = frozenset(first), frozenset(second)
    common = len(a & b)
    both = bool(a) and bool(b)
    draft = frozenset(_TOKEN.findall(reading.draft.text.lower()))
    lead = _tokens(reading.final(reading.draft_arm))[:1] == _tokens(reading.final(reading.agreement_arm))[:1]
    return {
        "a_equal": float(both and first == second),
        "a_f1": 2.0 * common / (len(a) + len(b)) if both else 0.0,
        "a_first_word": float(both and lead),
        "a_contains": float(both and (a <= b or b <= a)),
        "a_in_draft": len(b & draft) / len(b) if b else 0.0,
        "a_second_length": math.log1p(len(second_text)),
        "a_longer": math.log1p(len(second)) - math.log1p(len(first)),
        "a_second_empty": float(not b),
        "a_second_abstains": float(_ABSTAIN.search(second_text) is not None),
        "a_second_echo": len(b & reading.word_set) / max(len(b), 1),
        "a_second_number": float(any(c.isdigit() for c in second_text)),
        "a_second_name": float(second_text[:1].isupper()),
        "a_second_fits": fits_question(reading.evidence.query, second_text),
        "a_letters": _letters(first_text, second_text),
    }
