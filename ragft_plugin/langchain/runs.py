"""Runs and their parents: which trace a decision, a retrieval or a generation belongs to.

One retrieval or generation may serve many questions, each of them a run of its own in the trace. So the runs'
configurations are kept by question while a pipeline works; the converters look theirs up and pass it on. Context
variables follow asyncio tasks and ``asyncio.to_thread``, hence nothing of this shows in the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import merge_configs, patch_config

from ragft_plugin.course import Routed

_PARENTS: ContextVar[Mapping[str, RunnableConfig] | None] = ContextVar("ragft_parents", default=None)


@dataclass(frozen=True, slots=True)
class Call:
    """One question under way.

    Attributes:
        question: what is asked.
        manager: of the question's run.
        config: for what is done for the question; its callbacks are the run's children.
    """

    question: str
    manager: Any
    config: RunnableConfig

    @classmethod
    def of(cls, question: str, manager: Any, config: RunnableConfig | None = None) -> Call:
        """The call of a run that has just begun."""
        return cls(question, manager, patch_config(config, callbacks=manager.get_child()))

    def after(self, routed: Routed) -> Call:
        """The call once it is decided: the metadata of what follows name the arm and the decision."""
        found = {"ragft_arm": routed.decision.arm, "ragft_decision_id": routed.decision.id}
        return replace(self, question=routed.evidence.query, config=merge_configs(self.config, {"metadata": found}))


@contextmanager
def parents(calls: Sequence[Call]) -> Iterator[None]:
    """While this lasts, what is done for a question belongs to that question's run."""
    token = _PARENTS.set({call.question: call.config for call in calls})
    try:
        yield
    finally:
        _PARENTS.reset(token)


def set_parent(call: Call) -> None:
    """As ``parents``, to the end of the current context: for streams, whose context is their own."""
    _PARENTS.set({call.question: call.config})


def configs_of(questions: Sequence[str]) -> list[RunnableConfig] | None:
    """The configuration for each question's work; None leaves it to LangChain's own context."""
    known = _PARENTS.get()
    return [known.get(question, {}) for question in questions] if known else None
