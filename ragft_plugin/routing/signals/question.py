"""Signals of the question alone. They are free."""

from __future__ import annotations

import math
import re

from ragft_plugin.routing.signals.reading import Reading
from ragft_plugin.routing.signals.registry import signal

_WH = ("who", "what", "when", "where", "which", "why", "how")
_ENTITY = re.compile(r"(?<!^)(?<![.?!]\s)\b[A-Z]\w+")
_NUMBER = re.compile(r"\d+")
_LINKS = frozenset({"and", "or", "both", "either", "than", "also", "same", "before", "after", "whose", "that"})


@signal(stage="question")
def lexical_shape(reading: Reading) -> dict[str, float]:
    """Length, names, numbers and kind of the question."""
    text = reading.evidence.query
    tokens = reading.words
    n = len(tokens)
    first = tokens[:3]
    shape = {
        "q_words": math.log1p(n),
        "q_word_length": sum(map(len, tokens)) / n if n else 0.0,
        "q_names": math.log1p(len(_ENTITY.findall(text))),
        "q_numbers": math.log1p(len(_NUMBER.findall(text))),
        "q_links": sum(w in _LINKS for w in tokens) / max(n, 1),
        "q_mark": float(text.rstrip().endswith("?")),
    }
    for word in _WH:
        shape["q_" + word] = float(word in first)
    return shape


@signal(stage="question")
def facts(reading: Reading) -> dict[str, float]:
    """What the caller knows of the query beside its text (``Evidence.facts``)."""
    return {"fact_" + name: float(value) for name, value in reading.evidence.facts.items()}
