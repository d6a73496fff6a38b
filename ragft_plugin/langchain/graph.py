"""What a pipeline looks like from LangChain: its Runnables, and its arms as branches of a graph."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.graph import Graph

from ragft_plugin.pipeline import Pipeline


def runnables_of(pipeline: Pipeline) -> list[Runnable[Any, Any]]:
    """The LangChain parts of a pipeline, each once: models first, then retrievers."""
    parts = [getattr(arm.generator, "model", None) for arm in pipeline.arms.values()]
    parts += [getattr(arm.retriever, "source", None) for arm in pipeline.arms.values()]
    return [*{id(part): part for part in parts if isinstance(part, Runnable)}.values()]


def graph_of(chain: Any) -> Graph:
    """A chain's graph: the router, and from it one branch per arm through what it reads and what writes its answer.

    Args:
        chain: has ``pipeline``, ``get_input_schema`` and ``get_output_schema``.
    """
    graph = Graph()
    start = graph.add_node(chain.get_input_schema(), id="input")
    router = graph.add_node(_named("route"), id="route")
    end = graph.add_node(chain.get_output_schema(), id="output")
    graph.add_edge(start, router)
    for name, arm in chain.pipeline.arms.items():
        node = graph.add_node(_named(name), id=name)
        before = router
        if arm.retriever is not None:
            before = graph.add_node(_named("retrieve"), id=f"{name}: retrieve")
            graph.add_edge(router, before, name, conditional=True)
            graph.add_edge(before, node)
        else:
            graph.add_edge(router, node, name, conditional=True)
        graph.add_edge(node, end)
    return graph


def _named(name: str) -> Runnable[Any, Any]:
    """A node of a drawing; it is never run."""
    return RunnableLambda(lambda value: value, name=name)
