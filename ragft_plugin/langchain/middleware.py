"""Routing inside an agent: per question, another model, passages to read, or both. Needs ``langchain``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, NotRequired

from langchain.agents.middleware import AgentMiddleware, AgentState
from langchain.agents.middleware.types import ExtendedModelResponse, ModelRequest, ModelResponse
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, SystemMessage
from langchain_core.runnables.config import ensure_config
from langgraph.types import Command

from ragft_plugin.decision_record import decision_to_dict
from ragft_plugin.errors import ConfigError, DataError
from ragft_plugin.langchain.documents import document_from, passage_from
from ragft_plugin.langchain.runs import Call, parents
from ragft_plugin.langchain.traced import watched
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.prompts import check_question, messages
from ragft_plugin.types import Filter, Passage, Prompt


class RoutingState(AgentState[Any]):
    """An agent's state with the decision for its question, and what was retrieved for it."""

    decision: NotRequired[dict[str, Any]]
    context: NotRequired[list[Document]]


class RoutingMiddleware(AgentMiddleware[RoutingState, Any, Any]):
    """Lets a pipeline decide which of its arms an agent's model calls go to; the agent's tools stay as they are.

    An arm's model takes the place of the agent's, an arm's passages are put into the system message. The decision
    stands in the agent's state under ``decision``, the passages under ``context``.

    Args:
        pipeline: decides and retrieves.
        models: arm -> chat model; by default an arm's own, where it is a chat model of LangChain's. Arms without one
            keep the agent's model.
        per: "run" decides once for the agent's whole run, "call" before every call of its model.
        k: passages per question; None means the pipeline's.
        filter: access filter for retrieval.
        cost_weight: reward given up per unit of cost; None means the router's own.
        arm: force this arm.

    Example::

        agent = create_agent(llm, tools, middleware=[RoutingMiddleware(chain.pipeline)])
    """

    state_schema = RoutingState

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        models: Mapping[str, BaseChatModel] | None = None,
        per: Literal["run", "call"] = "run",
        k: int | None = None,
        filter: Filter | None = None,
        cost_weight: float | None = None,
        arm: str | None = None,
    ) -> None:
        super().__init__()
        if unknown := sorted(set(models or {}) - set(pipeline.arms)):
            raise ConfigError(f"models are given for {', '.join(unknown)}; the arms are: {', '.join(pipeline.arms)}")
        own = {name: getattr(one.generator, "model", None) for name, one in pipeline.arms.items()}
        self.models = {name: model for name, model in own.items() if isinstance(model, BaseChatModel)} | {
            **(models or {})
        }
        self.pipeline = pipeline
        self.per = per
        self._request = {"k": k, "scope": filter, "cost_weight": cost_weight, "arm": arm}

    def before_agent(self, state: RoutingState, runtime: Any) -> dict[str, Any] | None:
        """Decide for the run."""
        return self._decided(state["messages"]) if self.per == "run" else None

    async def abefore_agent(self, state: RoutingState, runtime: Any) -> dict[str, Any] | None:
        """As ``before_agent``, without blocking the event loop."""
        return await self._adecided(state["messages"]) if self.per == "run" else None

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Send the call to the chosen arm."""
        if self.per == "run":
            return handler(self._routed(request, request.state))
        found = self._decided(request.messages)
        return ExtendedModelResponse(handler(self._routed(request, found)), Command(update=found))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """As ``wrap_model_call``, without blocking the event loop."""
        if self.per == "run":
            return await handler(self._routed(request, request.state))
        found = await self._adecided(request.messages)
        return ExtendedModelResponse(await handler(self._routed(request, found)), Command(update=found))

    def _decided(self, said: list[Any]) -> dict[str, Any]:
        question, config = _question(said), ensure_config()
        with parents([Call(question, None, config)]):
            seen = watched(self.pipeline, [config])
            routed = seen.decide([question], **self._request)
            return _state(routed[0].decision, seen.passages(routed, **self._request)[0])

    async def _adecided(self, said: list[Any]) -> dict[str, Any]:
        question, config = _question(said), ensure_config()
        with parents([Call(question, None, config)]):
            seen = watched(self.pipeline, [config])
            routed = await seen.adecide([question], **self._request)
            return _state(routed[0].decision, (await seen.apassages(routed, **self._request))[0])

    def _routed(self, request: ModelRequest[Any], state: Mapping[str, Any]) -> ModelRequest[Any]:
        changes: dict[str, Any] = {}
        if (model := self.models.get(state["decision"]["arm"])) is not None:
            changes["model"] = model
        if state["context"]:
            changes["system_message"] = _reading(request.system_message, state["context"])
        return request.override(**changes) if changes else request


def _question(said: list[Any]) -> str:
    for message in reversed(said):
        if isinstance(message, BaseMessage) and message.type == "human":
            return check_question(str(message.text))
    raise DataError("there is no question: the agent's messages hold none of a human")


def _state(decision: Any, passages: tuple[Passage, ...]) -> dict[str, Any]:
    return {"decision": decision_to_dict(decision), "context": [document_from(passage) for passage in passages]}


def _reading(system: SystemMessage | None, context: list[Document]) -> SystemMessage:
    """The system message with the passages after what it says already."""
    told = messages(Prompt("", tuple(passage_from(document) for document in context)))[0]["content"]
    own = [] if system is None else [*system.content_blocks]
    return SystemMessage(content_blocks=[*own, {"type": "text", "text": told}]) if own else SystemMessage(told)
