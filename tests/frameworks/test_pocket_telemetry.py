"""OpenTelemetry through the ecosystem's own exporters, with the spans kept in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ragft_plugin.demo.questions import questions
from ragft_plugin.langchain import RoutedChain
from ragft_plugin.llama_index import RoutedQueryEngine

QUESTION = questions("test")[6].query
ARM = "rag+adapter:tickets"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    yield made
    made.shutdown()


def tree(spans: Any) -> dict[str, str | None]:
    """Name of each span -> name of its parent."""
    named = {span.context.span_id: span.name for span in spans}
    return {span.name: named.get(span.parent.span_id) if span.parent else None for span in spans}


async def test_openinference_sees_the_decision_the_retrieval_and_the_generation(
    pipeline: Any, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    openinference = pytest.importorskip("openinference.instrumentation.langchain")
    chain = RoutedChain(pipeline=pipeline)
    instrumentor = openinference.LangChainInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        for asynchronous in (False, True):
            exporter.clear()
            output = await chain.ainvoke(QUESTION, arm=ARM) if asynchronous else chain.invoke(QUESTION, arm=ARM)
            spans = exporter.get_finished_spans()
            parents = {"RoutedChain": None}
            parents |= dict.fromkeys(("route", "KnowledgeBase", "LoraGenerator"), "RoutedChain")
            assert tree(spans) == parents
            told = {span.name: dict(span.attributes) for span in spans}
            kinds = {name: value["openinference.span.kind"] for name, value in told.items()}
            assert kinds == {
                "RoutedChain": "CHAIN",
                "route": "CHAIN",
                "KnowledgeBase": "RETRIEVER",
                "LoraGenerator": "LLM",
            }
            assert json.loads(told["route"]["output.value"])["arm"] == ARM
            assert told["KnowledgeBase"]["retrieval.documents.0.document.content"] == output["context"][0].page_content
            assert told["LoraGenerator"]["llm.output_messages.0.message.content"] == output["answer"]
            assert told["LoraGenerator"]["llm.model_name"] == "tickets"
    finally:
        instrumentor.uninstrument()


def test_langsmiths_own_exporter_sends_the_run_tree_as_spans(
    pipeline: Any, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    langsmith = pytest.importorskip("langsmith")
    from langchain_core.tracers import LangChainTracer

    client = langsmith.Client(
        api_key="none", api_url="http://127.0.0.1:9", tracing_mode="otel", otel_tracer_provider=provider
    )
    try:
        RoutedChain(pipeline=pipeline).invoke(QUESTION, {"callbacks": [LangChainTracer(client=client)]}, arm=ARM)
        client.flush()
        names = {span.name: span for span in exporter.get_finished_spans()}
        assert {"RoutedChain", "route", "KnowledgeBase", "LoraGenerator"} <= set(names)
        assert ARM in str(dict(names["route"].attributes))
    finally:
        client.cleanup()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_llama_indexs_own_package_sees_the_decision_the_retrieval_and_the_generation(
    pipeline: Any, provider: TracerProvider, exporter: InMemorySpanExporter, asynchronous: bool
) -> None:
    otel = pytest.importorskip("llama_index.observability.otel")
    from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]

    root = get_dispatcher()
    handlers, span_handlers = list(root.event_handlers), list(root.span_handlers)
    otel.LlamaIndexOpenTelemetry(
        span_exporter=InMemorySpanExporter(), span_processor="simple", tracer_provider=provider
    ).start_registering()
    for handler in root.span_handlers[len(span_handlers) :]:
        handler._tracer = provider.get_tracer("test")  # the package asks the process-wide provider, set only once
    try:
        engine = RoutedQueryEngine(pipeline, arm=ARM)
        response = await engine.aquery(QUESTION) if asynchronous else engine.query(QUESTION)
    finally:
        root.event_handlers[:] = handlers
        root.span_handlers[:] = span_handlers
    spans = exporter.get_finished_spans()
    a = "a" if asynchronous else ""
    parents = tree(spans)
    assert parents[f"RoutedQueryEngine.{a}decide"] == f"RoutedQueryEngine._{a}query"
    for part in (f"TracedRetriever.{a}retrieve", f"TracedGenerator.{a}generate"):
        assert parents[part] == f"RoutedQueryEngine.{a}answer"
    events = {event.name: dict(event.attributes) for span in spans for event in span.events}
    assert events["RouteDecisionEvent"]["arm"] == ARM
    text = json.dumps(str(response))[1:-1]
    assert any(text in str(value) for value in events["LLMChatEndEvent"].values())
    assert {"RetrievalStartEvent", "RetrievalEndEvent", "LLMChatStartEvent"} <= set(events)
