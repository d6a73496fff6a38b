"""A pipeline made of the parts a LlamaIndex user already has, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.indices.base import BaseIndex
from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.response_synthesizers import BaseSynthesizer

from ragft_plugin.arms import Arm
from ragft_plugin.errors import ConfigError
from ragft_plugin.llama_index.engine_arms import from_query_engine
from ragft_plugin.llama_index.generators import from_llm
from ragft_plugin.llama_index.retrievers import from_retriever
from ragft_plugin.pipeline import DecisionSink, Pipeline, Router
from ragft_plugin.routing import Router as LearntRouter
from ragft_plugin.types import Generator, Retriever


def pipeline_from(
    *,
    router: Router | str | Path | None = None,
    llm: LLM | Generator | None = None,
    retriever: BaseRetriever | BaseIndex[Any] | Retriever | None = None,
    adapters: Mapping[str, LLM | Generator] | None = None,
    query_engines: Mapping[str, BaseQueryEngine] | None = None,
    node_postprocessors: Sequence[BaseNodePostprocessor] = (),
    response_synthesizer: BaseSynthesizer | None = None,
    costs: Mapping[str, float] | None = None,
    k: int = 3,
    retrieval_cost: float = 0.0,
    fallback: Sequence[str] | None = None,
    log: DecisionSink | None = None,
) -> Pipeline:
    r"""Make a pipeline of LlamaIndex parts.

    The arms are ``base`` (the LLM) and ``rag`` (the LLM reading what the retriever finds), ``adapter:NAME`` and
    ``rag+adapter:NAME`` for each adapter, and one arm per query engine, under its own name. Those that the router
    does not choose among can still stand in when the chosen one fails.

    Args:
        router: chooses among the arms; or where one was saved; None is a router that has learnt nothing yet, and
            compares how well the passages cover the question with what the adapters were trained on.
        llm: answers ``base`` and ``rag``.
        retriever: a retriever or an index.
        adapters: name -> what answers with that adapter (``LoraLLM``, a server's model, a ``LoraGenerator``).
        query_engines: arm name -> query engine.
        node_postprocessors: applied to what the retriever finds.
        response_synthesizer: writes the answers of ``rag`` in place of the ``open_book`` prompt.
        costs: arm name -> price of one answer; 0 where absent.
        k: passages to read.
        retrieval_cost: price of one retrieval, part of the costs of the arms that read.
        fallback: see ``Pipeline``.
        log: see ``Pipeline``.

    Raises:
        ConfigError: if a part is not of its kind, costs name no arm, or the router chooses among arms that the
            parts do not make.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> from ragft_plugin.types import Decision
        >>> class Always:
        ...     arms = ("base",)
        ...
        ...     def next(self, evidence, **request):
        ...         return [Decision("d", "base", {"base": 1.0}) for _ in evidence]
        >>> pipeline_from(router=Always(), llm=MockLLM()).answer("Who?").text
        'user: Who?\nassistant: '
    """
    finder = None if retriever is None else from_retriever(retriever, node_postprocessors=node_postprocessors)
    prices = dict(costs or {})
    arms: list[Arm] = []

    def add(name: str, generator: Generator, reading: Generator) -> None:
        closed, opened = (name, f"rag+{name}") if name != "base" else ("base", "rag")
        arms.append(Arm(closed, generator, cost=prices.pop(closed, 0.0)))
        if finder is not None:
            arms.append(Arm(opened, reading, finder, cost=prices.pop(opened, 0.0)))

    if llm is not None:
        add("base", from_llm(llm), from_llm(llm, synthesizer=response_synthesizer))
    for name, source in (adapters or {}).items():
        generator = from_llm(source)
        add(f"adapter:{name}", generator, generator)
    for name, engine in (query_engines or {}).items():
        arms.append(from_query_engine(name, engine, cost=prices.pop(name, 0.0)))
    if prices:
        known = ", ".join(arm.name for arm in arms)
        raise ConfigError(f"costs name arms that there are not: {', '.join(prices)}; the arms are: {known}")
    return Pipeline(arms, _router(router, arms), k=k, retrieval_cost=retrieval_cost, fallback=fallback, log=log)


def _router(router: Router | str | Path | None, arms: Sequence[Arm]) -> Router:
    if isinstance(router, str | Path):
        return LearntRouter.load(router)
    if router is None:
        return LearntRouter.cold([arm.name for arm in arms], retrieves={arm.name: arm.retrieves for arm in arms})
    return router
