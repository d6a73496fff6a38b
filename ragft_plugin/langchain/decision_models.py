"""A pipeline's router as a decision model of LangChain's, for langchain-core 1.8 and later.

It then drives what LangChain builds on decision models, its ``ModelRouterMiddleware`` for one, unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from langchain_core.messages import BaseMessage

from ragft_plugin.errors import ConfigError, RagftError
from ragft_plugin.langchain.questions import asked_from
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.types import Decision


def decision_model(pipeline: Pipeline, **request: Any) -> Any:
    """A ``BaseDecisionModel`` that answers a ``Choice`` among arms.

    Args:
        pipeline: decides; the labels of every choice must be arms of its router, and hold the one it decides on.
        **request: ``k``, ``scope``, ``cost_weight``, ``arm``; see ``Pipeline.answer``.

    Raises:
        RagftError: if langchain-core is older than 1.8.

    Example::

        ModelRouterMiddleware(
            choices={"base": ..., "adapter:legal": ...}, instructions="", classifier=decision_model(p)
        )
    """
    try:
        decisions = import_module("langchain_core.decisions")
    except ModuleNotFoundError as error:
        raise RagftError(
            "this langchain-core has no decision models; install them with: pip install 'langchain-core>=1.8,<2', or "
            "use RoutingMiddleware"
        ) from error

    class PipelineDecisionModel(decisions.BaseDecisionModel):  # type: ignore[misc,name-defined]
        """The router of a pipeline, as a decision model."""

        model: str = "ragft-router"

        @property
        def _provider(self) -> str:
            return "ragft_plugin"

        def _classify(self, state: Any, questions: dict[str, Any]) -> Any:
            (routed,) = pipeline.decide([_question(state)], **request)
            return self._response(routed.decision, questions)

        async def _aclassify(self, state: Any, questions: dict[str, Any]) -> Any:
            (routed,) = await pipeline.adecide([_question(state)], **request)
            return self._response(routed.decision, questions)

        def _response(self, decision: Decision, questions: dict[str, Any]) -> Any:
            answers = {
                name: decisions.ChoiceAnswer(type="choice", **_choice(decision, _labels(question)))
                for name, question in questions.items()
            }
            return decisions.ClassifierResponse(model=self.model, answers=answers, request_id=decision.id)

    return PipelineDecisionModel()


def _choice(decision: Decision, labels: list[str]) -> dict[str, Any]:
    if decision.arm not in labels:
        raise ConfigError(f"the router decided on {decision.arm!r}, which is none of the labels: {', '.join(labels)}")
    probabilities = {label: float(decision.propensities.get(label, 0.0)) for label in labels}
    return {"choice": decision.arm, "probabilities": probabilities, "confidence": float(decision.confidence)}


def _labels(question: Any) -> list[str]:
    if question.type != "choice":
        raise ConfigError(f"a router answers a Choice among arms, not a {type(question).__name__}")
    return list(question.criteria)


def _question(state: Any) -> str:
    if isinstance(state, (str, BaseMessage, Mapping)):
        return asked_from(state).question
    return asked_from([one for one in state if isinstance(one, BaseMessage)]).question
