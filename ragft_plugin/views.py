"""Views: a pipeline seen through wrappers of its parts, for whoever watches it at work.

A framework that traces what happens puts its spans around generators and retrievers that know nothing of it. The
pipeline itself stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import TypeVar

from ragft_plugin.pipeline import Pipeline
from ragft_plugin.types import Generator, Retriever

T = TypeVar("T")


def view(
    pipeline: Pipeline, *, generator: Callable[[Generator], Generator], retriever: Callable[[Retriever], Retriever]
) -> Pipeline:
    """The pipeline with wrapped parts; router, settings and log are shared with it.

    Args:
        pipeline: it is not changed.
        generator: wraps one, or returns it as it is.
        retriever: likewise. A part that stands in several arms is wrapped once, so that arms still share it.

    Example:
        >>> from ragft_plugin.arms import Arm
        >>> from ragft_plugin.types import Decision, Generation
        >>> class Parrot:
        ...     def generate(self, prompts, **options):
        ...         return [Generation(prompt.question) for prompt in prompts]
        ...
        ...     def stream(self, prompt, **options):
        ...         yield prompt.question
        >>> class Loud(Parrot):
        ...     def generate(self, prompts, **options):
        ...         return [Generation(prompt.question.upper()) for prompt in prompts]
        >>> class Always:
        ...     arms = ("base",)
        ...
        ...     def next(self, evidence, **request):
        ...         return [Decision("d", "base", {"base": 1.0}) for _ in evidence]
        >>> plain = Pipeline([Arm("base", Parrot())], Always())
        >>> loud = view(plain, generator=lambda _: Loud(), retriever=lambda found: found)
        >>> loud.answer("who?").text, plain.answer("who?").text
        ('WHO?', 'who?')
    """
    wrapped: dict[int, object] = {}

    def once(wrap: Callable[[T], T], part: T) -> T:
        if id(part) not in wrapped:
            wrapped[id(part)] = wrap(part)
        return wrapped[id(part)]  # type: ignore[return-value]

    def through(part: Retriever | None) -> Retriever | None:
        return None if part is None else once(retriever, part)

    seen = copy(pipeline)
    seen.arms = {
        name: replace(arm, generator=once(generator, arm.generator), retriever=through(arm.retriever))
        for name, arm in pipeline.arms.items()
    }
    seen.retriever = through(pipeline.retriever)
    return seen
