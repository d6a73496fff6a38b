"""Routing in a LangGraph: nodes that decide and answer, an edge that follows the decision, and a tool.

Nodes are plain Runnables from state to update, so this module needs langchain-core alone. A state has the question
in ``input`` or ``messages``; ``decision`` and ``context`` are written by the deciding node and obeyed by the answering
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.tools import BaseTool, StructuredTool

from ragft_plugin.decision_record import decision_to_dict
from ragft_plugin.langchain.chain import RoutedChain
from ragft_plugin.langchain.documents import document_from
from ragft_plugin.langchain.questions import asked_from
from ragft_plugin.langchain.runs import Call, parents
from ragft_plugin.langchain.traced import watched
from ragft_plugin.pipeline import Pipeline

State = Mapping[str, Any]


def route_node(pipeline: Pipeline, **request: Any) -> Runnable[State, dict[str, Any]]:
    """A node that decides and retrieves: writes ``decision`` and ``context``.

    Args:
        pipeline: decides.
        **request: ``k``, ``scope``, ``cost_weight``, ``arm``; see ``Pipeline.answer``.

    Example::

        graph.add_node("route", route_node(pipeline))
        graph.add_conditional_edges("route", arm_edge, {"base": "chat", "rag": "read"})
    """

    def decide(state: State, config: RunnableConfig) -> dict[str, Any]:
        question = asked_from(state).question
        with parents([Call(question, None, config)]):
            seen = watched(pipeline, [config])
            routed = seen.decide([question], **request)
            return _update(routed[0].decision, seen.passages(routed, **request)[0])

    async def adecide(state: State, config: RunnableConfig) -> dict[str, Any]:
        question = asked_from(state).question
        with parents([Call(question, None, config)]):
            seen = watched(pipeline, [config])
            routed = await seen.adecide([question], **request)
            return _update(routed[0].decision, (await seen.apassages(routed, **request))[0])

    return RunnableLambda(decide, adecide, name="route")


def arm_edge(state: State) -> str:
    """An edge's condition: the arm that was decided on."""
    return str(state["decision"]["arm"])


def answer_node(chain: RoutedChain) -> Runnable[State, dict[str, Any]]:
    """A node that answers: writes ``answer``, ``decision``, ``context`` and a message.

    A decision that the state holds is obeyed, not made again; nor are its passages retrieved again.
    """

    def answer(state: State, config: RunnableConfig) -> dict[str, Any]:
        return _answered(chain.invoke(dict(state), config))

    async def aanswer(state: State, config: RunnableConfig) -> dict[str, Any]:
        return _answered(await chain.ainvoke(dict(state), config))

    return RunnableLambda(answer, aanswer, name="answer")


def answer_tool(
    chain: RoutedChain,
    *,
    name: str = "answer",
    description: str = "Answers a question from documents and specialised models. Pass one self-contained question.",
) -> BaseTool:
    """A tool that answers questions; the whole output, decision included, is the tool message's artifact."""

    def answer(question: str) -> tuple[str, dict[str, Any]]:
        output = chain.invoke(question)
        return output["answer"], output

    async def aanswer(question: str) -> tuple[str, dict[str, Any]]:
        output = await chain.ainvoke(question)
        return output["answer"], output

    return StructuredTool.from_function(
        answer, aanswer, name=name, description=description, response_format="content_and_artifact"
    )


def _update(decision: Any, passages: Any) -> dict[str, Any]:
    return {"decision": decision_to_dict(decision), "context": [document_from(passage) for passage in passages]}


def _answered(output: dict[str, Any]) -> dict[str, Any]:
    return {**output, "messages": [AIMessage(output["answer"], response_metadata={"decision": output["decision"]})]}
