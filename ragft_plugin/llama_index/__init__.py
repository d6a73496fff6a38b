"""LlamaIndex: routing as a query engine, a retriever, a selector, a chat engine, an LLM and a vector store.

Every class here is thin: it turns LlamaIndex' values into the package's and calls a ``Pipeline``. Which arm answers is
decided there, once per question. Nothing reads or writes LlamaIndex' global ``Settings``. Names are imported when
first used, so importing this folder costs nothing.

The one line that changes in LlamaIndex' own examples:

    query_engine = index.as_query_engine(llm=llm)
    query_engine = RoutedQueryEngine.from_defaults(llm=llm, retriever=index, adapters={"legal": LoraLLM(model, ...)})

    query_engine = RouterQueryEngine.from_defaults(query_engine_tools=tools)
    query_engine = RoutedQueryEngine.from_tools(tools, router="router")          # or only the selector of it:
    query_engine = RouterQueryEngine(RoutedSelector(pipeline), tools, llm=llm)

    chat_engine = index.as_chat_engine(chat_mode="condense_question", llm=llm)
    chat_engine = RoutedChatEngine(query_engine, llm)

``response.metadata["decision"]`` then says which arm answered, and why. What ``ragft.yaml`` describes is answered by
``RoutedQueryEngine(Project(read_config("ragft.yaml")).pipeline())``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ragft_plugin.errors import MissingExtraError

if TYPE_CHECKING:
    from ragft_plugin.decision_record import decision_from_dict, decision_to_dict
    from ragft_plugin.llama_index.chat_engine import RoutedChatEngine, RoutedChatStream
    from ragft_plugin.llama_index.embeddings import EmbeddingEncoder, EncoderEmbedding
    from ragft_plugin.llama_index.engine_arms import EngineArm, EngineGenerator, from_query_engine
    from ragft_plugin.llama_index.events import RouteDecisionEvent
    from ragft_plugin.llama_index.filters import filter_from, metadata_filters_from
    from ragft_plugin.llama_index.generators import LLMGenerator, SynthesizerGenerator, from_llm
    from ragft_plugin.llama_index.llm import LoraLLM
    from ragft_plugin.llama_index.nodes import NodePassage, node_from, passage_from
    from ragft_plugin.llama_index.parts import pipeline_from
    from ragft_plugin.llama_index.postprocessor import RoutedReranker
    from ragft_plugin.llama_index.query_engine import RoutedQueryEngine
    from ragft_plugin.llama_index.retriever import RoutedRetriever
    from ragft_plugin.llama_index.retrievers import NodeRetriever, from_retriever
    from ragft_plugin.llama_index.selector import RoutedSelection, RoutedSelector
    from ragft_plugin.llama_index.vector_store import KnowledgeBaseVectorStore
    from ragft_plugin.llama_index.workflow import RoutedEvent, RoutedWorkflow

_MODULES = {
    "EmbeddingEncoder": "embeddings",
    "EncoderEmbedding": "embeddings",
    "EngineArm": "engine_arms",
    "EngineGenerator": "engine_arms",
    "KnowledgeBaseVectorStore": "vector_store",
    "LLMGenerator": "generators",
    "LoraLLM": "llm",
    "NodePassage": "nodes",
    "NodeRetriever": "retrievers",
    "RouteDecisionEvent": "events",
    "RoutedChatEngine": "chat_engine",
    "RoutedChatStream": "chat_engine",
    "RoutedEvent": "workflow",
    "RoutedQueryEngine": "query_engine",
    "RoutedReranker": "postprocessor",
    "RoutedRetriever": "retriever",
    "RoutedSelection": "selector",
    "RoutedSelector": "selector",
    "RoutedWorkflow": "workflow",
    "SynthesizerGenerator": "generators",
    "decision_from_dict": ".decision_record",
    "decision_to_dict": ".decision_record",
    "filter_from": "filters",
    "from_llm": "generators",
    "from_query_engine": "engine_arms",
    "from_retriever": "retrievers",
    "metadata_filters_from": "filters",
    "node_from": "nodes",
    "passage_from": "nodes",
    "pipeline_from": "parts",
}

__all__ = [
    "EmbeddingEncoder",
    "EncoderEmbedding",
    "EngineArm",
    "EngineGenerator",
    "KnowledgeBaseVectorStore",
    "LLMGenerator",
    "LoraLLM",
    "NodePassage",
    "NodeRetriever",
    "RouteDecisionEvent",
    "RoutedChatEngine",
    "RoutedChatStream",
    "RoutedEvent",
    "RoutedQueryEngine",
    "RoutedReranker",
    "RoutedRetriever",
    "RoutedSelection",
    "RoutedSelector",
    "RoutedWorkflow",
    "SynthesizerGenerator",
    "decision_from_dict",
    "decision_to_dict",
    "filter_from",
    "from_llm",
    "from_query_engine",
    "from_retriever",
    "metadata_filters_from",
    "node_from",
    "passage_from",
    "pipeline_from",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        # Only the package itself: a module missing inside it is another version's, and its own error says which.
        if error.name not in {"llama_index", "llama_index.core", "workflows"}:
            raise
        raise MissingExtraError("llama-index-core", "llama-index") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
