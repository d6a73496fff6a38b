"""Arms: a generator, with or without a retriever in front of it.

``base``, ``rag``, ``adapter:facts`` and ``rag+adapter:facts`` differ in those two choices alone, so "both" is
never a special case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ragft_plugin.errors import ConfigError
from ragft_plugin.prompts import closed_book, open_book
from ragft_plugin.types import Answer, Evidence, Generation, Generator, Prompt, Retriever


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to answer.

    Attributes:
        name: unique among the arms of a pipeline.
        generator: what writes the answer.
        retriever: what finds passages to read first; None makes the arm closed-book.
        cost: price of one answer in the user's unit (retrievals, tokens, milliseconds, money), its retrieval
            included.
        options: passed to the generator with every call (``max_new_tokens``, ``stop``, ...).

    Example:
        >>> from ragft_plugin.types import Evidence, Generation
        >>> class Parrot:
        ...     def generate(self, prompts, **options):
        ...         return [Generation(prompt.question) for prompt in prompts]
        ...
        ...     def stream(self, prompt, **options):
        ...         yield prompt.question
        >>> Arm("base", Parrot()).prompt(Evidence("Who?")).passages is None
        True
    """

    name: str
    generator: Generator
    retriever: Retriever | None = None
    cost: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def retrieves(self) -> bool:
        """Whether the arm reads passages."""
        return self.retriever is not None

    def prompt(self, evidence: Evidence) -> Prompt:
        """What the generator is asked, given the evidence.

        Raises:
            DataError: if the question is empty or too long.
            ConfigError: if the arm reads passages and the evidence holds none.
        """
        if not self.retrieves:
            return closed_book(evidence.query)
        if evidence.passages is None:
            raise ConfigError(f"arm {self.name!r} reads passages, but none were retrieved for this query")
        return open_book(evidence.query, evidence.passages)

    def answer(self, evidence: Evidence, generation: Generation, seconds: float) -> Answer:
        """Make an answer of what the generator returned."""
        return Answer(
            text=generation.text,
            arm=self.name,
            passages=(evidence.passages or ()) if self.retrieves else (),
            logprobs=generation.logprobs,
            margins=generation.margins,
            entropies=generation.entropies,
            usage=generation.usage,
            seconds=seconds,
        )


def by_name(arms: Mapping[str, Arm] | list[Arm] | tuple[Arm, ...]) -> dict[str, Arm]:
    """Arms keyed by name, in their order.

    Raises:
        ConfigError: if there is none, or two share a name.
    """
    listed = list(arms.values()) if isinstance(arms, Mapping) else list(arms)
    if not listed:
        raise ConfigError("a pipeline needs at least one arm; none was given")
    named = {arm.name: arm for arm in listed}
    if len(named) < len(listed):
        names = [arm.name for arm in listed]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(f"arm names must be unique; given more than once: {', '.join(twice)}")
    return named
