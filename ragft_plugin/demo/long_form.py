"""A long-form task of the demo's world: tell all that is known of a site, one sentence per fact.

A request comes with passages of the site among passages of others; the wanted text states what they say, in a fixed
order of relations and in one wording each. It is scored by faithfulness (are its sentences borne out by the passages?)
and coverage (are the wanted values in it?), see ``evaluation.faithfulness``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ragft_plugin.demo.world import RELATIONS, Site
from ragft_plugin.evaluation.faithfulness import balanced, coverage, faithfulness

REQUEST = "What do you know of {x}?"


@dataclass(frozen=True, slots=True)
class Telling:
    """How good a text about a site is; all in [0, 1]. ``exact`` is the faithfulness by the world's own grammar."""

    faithfulness: float
    coverage: float
    exact: float

    @property
    def balanced(self) -> float:
        """Harmonic mean of faithfulness and coverage."""
        return balanced(self.faithfulness, self.coverage)


def request(rng: random.Random, site: Site) -> str:
    """Ask for all that is known of a site."""
    del rng
    return REQUEST.format(x=site.name)


def wanted(site: Site) -> str:
    """What is to be said of a site whose passages state all of its relations."""
    return " ".join(relation.says[0].format(x=site.name, v=site.facts[name]) for name, relation in RELATIONS.items())


def score_telling(answer: str, site: Site, passages: Sequence[str]) -> Telling:
    """Score a text.

    Args:
        answer: the text.
        site: what it should be about.
        passages: what it is held against: the site's own, whether they were given to read or not.
    """
    return Telling(
        faithfulness(answer, passages).score,
        coverage(answer, list(site.facts.values())),
        faithfulness(answer, passages, support=lambda sentence, _: float(sentence in statements(site))).score,
    )


def statements(site: Site) -> set[str]:
    """Every sentence of the world that is true of a site."""
    return {
        template.format(x=site.name, v=site.facts[name])
        for name, relation in RELATIONS.items()
        for template in relation.statements()
    }


def agreement(answers: Sequence[str], sites: Sequence[Site], passages: Sequence[Sequence[str]]) -> float:
    """Share of sentences on which the lexical scorer and the world's own grammar agree."""
    same = total = 0
    for answer, site, texts in zip(answers, sites, passages, strict=True):
        true = statements(site)
        told = faithfulness(answer, texts)
        for sentence in told.sentences:
            same += (sentence.support >= told.threshold) == (sentence.sentence in true)
            total += 1
    return same / total if total else 1.0
