"""Faithfulness: is each sentence of a longer answer borne out by the passages it was written from?

    faithfulness = sentences whose support is at least the threshold / sentences

Support is a number in [0, 1] from a function of a sentence and the passages. ``lexical_support`` comes with the
package: no model, the same everywhere. It reads words, not meaning: a sentence that turns round what its passage says
("A supplies B" for "B supplies A") passes. Bring a function of your own, such as an entailment model, where that
matters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.answers import contains, normalize_answer

Support = Callable[[str, Sequence[str]], float]
"""Takes a sentence and the passages, returns how far they bear it out, in [0, 1]."""
THRESHOLD = 0.7
# Words that carry no claim of their own.
_COMMON = frozenset(
    "a an and are as at be been but by can did do does for from had has have he her his how i if in into is it its of "
    "on or our she so than that the their them then there these they this to was we were what when where which who "
    "will with would you your also".split()
)
_WORD = re.compile(r"\w+")
_NAME = re.compile(r"\b(?:[A-Z]\w*|\w*\d\w*)\b")
_BREAK = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[A-Z0-9])|\n+")


@dataclass(frozen=True, slots=True)
class SentenceSupport:
    """A sentence and how far the passages bear it out, in [0, 1]."""

    sentence: str
    support: float


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """How faithful an answer is to its passages.

    Attributes:
        score: share of supported sentences; 0 for an answer that says nothing.
        sentences: each with its support.
        threshold: support from which a sentence counts.
    """

    score: float
    sentences: tuple[SentenceSupport, ...]
    threshold: float

    @property
    def unsupported(self) -> tuple[str, ...]:
        """Sentences that the passages do not bear out."""
        return tuple(s.sentence for s in self.sentences if s.support < self.threshold)


def faithfulness(
    answer: str, passages: Sequence[str], *, support: Support | None = None, threshold: float = THRESHOLD
) -> Faithfulness:
    """Score an answer against the passages it was written from.

    Args:
        answer: any number of sentences.
        passages: their texts.
        support: of one sentence; None is ``lexical_support``.
        threshold: support from which a sentence counts.

    Raises:
        DataError: if ``support`` returns something outside [0, 1].

    Example:
        >>> faithfulness("Brelkon is in Rome. It has nine pumps.", ["Brelkon is located in Rome."]).score
        0.5
    """
    measure = support or lexical_support
    scored = []
    for sentence in split_sentences(answer):
        value = float(measure(sentence, passages))
        if not 0.0 <= value <= 1.0:
            raise DataError(f"the support of {sentence[:60]!r} is {value}; expected a number in [0, 1]")
        scored.append(SentenceSupport(sentence, value))
    share = fmean(s.support >= threshold for s in scored) if scored else 0.0
    return Faithfulness(share, tuple(scored), threshold)


def lexical_support(sentence: str, passages: Sequence[str]) -> float:
    """Share of a sentence's words of content that stand together in a passage; 0 if a name or number does not.

        support = max over windows of two neighbouring sentences of weight(content(s) & window) / weight(content(s))

    Words are compared without case, by their first five letters ("manages", "managed"). Names (capitals) and whatever
    holds a digit must all stand in the same window, as a wrong name is a wrong claim however well the rest fits; they
    weigh 2 and other words 1, as the same claim may be made with another verb.

    Args:
        sentence: one sentence.
        passages: texts.
    """
    # The first word is written with a capital whatever it is, so it counts as a name only where a passage has it so.
    names = {n for n in _NAME.findall(sentence) if n.lower() not in _COMMON}
    first = _WORD.search(sentence)
    if first and first.group() in names and not any(re.search(rf"\b{first.group()}\b", p) for p in passages):
        names.discard(first.group())
    content = _content(sentence)
    if not content:
        return 0.0
    heavy = {n.lower()[:5] for n in names}
    weights = {w: 2.0 if w in heavy else 1.0 for w in content}
    best = 0.0
    for passage in passages:
        told = split_sentences(passage)
        for i in range(len(told)):
            window = " ".join(told[i : i + 2])
            if all(re.search(rf"\b{re.escape(name)}\b", window) for name in names):
                best = max(best, sum(weights[w] for w in content & _content(window)) / sum(weights.values()))
    return best


def coverage(answer: str, wanted: Sequence[str]) -> float:
    """Share of the wanted values that stand in the answer word for word, both normalised.

    Raises:
        DataError: if nothing is wanted.
    """
    values = [w for w in wanted if normalize_answer(w)]
    if not values:
        raise DataError("no wanted value given; coverage needs at least one")
    return fmean(contains(answer, value) for value in values)


def balanced(faithful: float, covered: float) -> float:
    """Harmonic mean of faithfulness and coverage: saying nothing wrong by saying nothing earns nothing."""
    total = faithful + covered
    return 2.0 * faithful * covered / total if total else 0.0


def split_sentences(text: str) -> list[str]:
    """Sentences of a text: broken at line ends and after . ! ? before a capital or a digit."""
    return [s for s in (part.strip() for part in _BREAK.split(text)) if _WORD.search(s)]


def _content(text: str) -> set[str]:
    return {w[:5] for w in _WORD.findall(text.lower()) if w not in _COMMON}
