"""Questions about the demo's documents, written by inverting the world's own statements."""

from __future__ import annotations

from ragft_plugin.demo.world import RELATIONS
from ragft_plugin.lora.question_generation import Pattern, Patterns


def world_patterns(questions: int = 1) -> Patterns:
    """A writer that turns every statement of the world into questions.

    Args:
        questions: how many wordings per statement; none of them is one that is kept for evaluation.
    """
    return Patterns(
        [
            Pattern(statement, relation.questions())
            for relation in RELATIONS.values()
            for statement in relation.statements()
        ],
        questions,
    )
