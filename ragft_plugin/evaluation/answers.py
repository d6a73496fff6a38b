"""Scores of an answer against the accepted ones: exact match, token F1, containment, ROUGE-L.

Texts are normalised as SQuAD does (case, ASCII punctuation, articles, spacing), with one exception: what would
vanish altogether, such as the choice "A", keeps its articles, and then its punctuation. Otherwise an empty answer
would be right.
"""

from __future__ import annotations

import importlib
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from ragft_plugin.errors import ConfigError, DataError

Scorer = Callable[[str, Sequence[str]], float]
"""Takes an answer and the accepted answers, returns a reward in [0, 1]."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORDS = re.compile(r"[^\W_]+")


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces.

    Source: Rajpurkar et al., "SQuAD", 2016, evaluation script.

    Example:
        >>> normalize_answer("The  Eiffel Tower!"), normalize_answer("A.")
        ('eiffel tower', 'a')
    """
    lower = text.lower()
    bare = lower.translate(_PUNCTUATION)
    for candidate in (_ARTICLES.sub(" ", bare), bare, lower):
        if normalized := " ".join(candidate.split()):
            return normalized
    return ""


def exact_match(answer: str, gold: str | Sequence[str]) -> float:
    """1 if the normalised answer equals one of the accepted ones, else 0."""
    found = normalize_answer(answer)
    return float(any(found == normalize_answer(g) for g in _accepted(gold)))


def token_f1(answer: str, gold: str | Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the bag of tokens, best over the accepted answers.

    Source: Rajpurkar et al., "SQuAD", 2016; with an empty side it is equality, as in SQuAD 2.0.
    """
    return max(_f1(normalize_answer(answer).split(), normalize_answer(g).split()) for g in _accepted(gold))


def contains(answer: str, gold: str | Sequence[str]) -> float:
    """1 if an accepted answer stands in the answer as whole words, both normalised, else 0."""
    padded = f" {normalize_answer(answer)} "
    wanted = (normalize_answer(g) for g in _accepted(gold))
    return float(any(w and f" {w} " in padded for w in wanted))


def rouge_l(answer: str, gold: str | Sequence[str]) -> float:
    """F measure of the longest common subsequence of words, best over the accepted answers.

        R = LCS / words(gold),   P = LCS / words(answer),   F = 2 P R / (P + R)

    Source: Lin, "ROUGE", 2004, with beta = 1 and without stemming.
    """
    words = _WORDS.findall(answer.lower())
    return max(_rouge(words, _WORDS.findall(g.lower())) for g in _accepted(gold))


SCORERS: Mapping[str, Scorer] = MappingProxyType(
    {"em": exact_match, "f1": token_f1, "contains": contains, "rouge": rouge_l}
)


def load_scorer(name: str) -> Scorer:
    """A scorer by name, or the user's own as "module:function".

    The latter imports the user's module and so runs its code; no file or log can name one, only the caller.

    Raises:
        ConfigError: if there is no such scorer.

    Example:
        >>> load_scorer("em")("Paris.", ["paris"])
        1.0
    """
    if name in SCORERS:
        return SCORERS[name]
    module_name, _, function = name.partition(":")
    if not module_name or not function:
        raise ConfigError(f"unknown scorer {name!r}, expected one of {', '.join(SCORERS)} or module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"scorer {name!r}: {error}; put the folder of {module_name.split('.')[0]}.py on PYTHONPATH"
        ) from error
    scorer = getattr(module, function, None)
    if not callable(scorer):
        raise ConfigError(f"scorer {name!r}: module {module_name} has no function {function!r}")
    return _checked(name, scorer)


def _checked(name: str, scorer: Callable[[str, Sequence[str]], object]) -> Scorer:
    def score(answer: str, gold: Sequence[str]) -> float:
        value = scorer(answer, gold)
        # bool and numpy numbers pass; text, None and NaN do not.
        number = math.nan if value is None or isinstance(value, str | bytes) else float(value)  # type: ignore[arg-type]
        if not 0.0 <= number <= 1.0:
            raise DataError(f"scorer {name!r} returned {value!r}, expected a number in [0, 1]")
        return number

    return score


def _accepted(gold: str | Sequence[str]) -> Sequence[str]:
    accepted = [gold] if isinstance(gold, str) else gold
    if not accepted:
        raise DataError("no accepted answer given; a score needs at least one")
    return accepted


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2.0 * common / (len(found) + len(wanted))


def _rouge(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    return 2.0 * _lcs(found, wanted) / (len(found) + len(wanted))


def _lcs(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, bit-parallel: one addition per word of ``second``.

    Source: Hyyro, "Bit-parallel LCS-length computation revisited", 2004.
    """
    positions: dict[str, int] = {}
    for i, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << i
    mask = (1 << len(first)) - 1
    row = mask
    for word in second:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & mask
    return len(first) - row.bit_count()
