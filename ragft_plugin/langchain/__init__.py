"""LangChain: routing as a retriever, a chain, a chat model, a vector store and a middleware.

Every class here is thin: it turns LangChain's values into the package's and calls a ``Pipeline``. Which arm answers is
decided there, once per question. Names are imported when first used, so importing this folder costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ragft_plugin.errors import MissingExtraError

if TYPE_CHECKING:
    from ragft_plugin.decision_record import decision_from_dict, decision_to_dict
    from ragft_plugin.langchain.chain import RoutedChain
    from ragft_plugin.langchain.chat_lora import ChatLora
    from ragft_plugin.langchain.citation import citations
    from ragft_plugin.langchain.decision_models import decision_model
    from ragft_plugin.langchain.documents import document_from, passage_from
    from ragft_plugin.langchain.embeddings import EmbeddingsEncoder, EncoderEmbeddings
    from ragft_plugin.langchain.generators import ChatModelGenerator, from_chat_model
    from ragft_plugin.langchain.loading import load
    from ragft_plugin.langchain.middleware import RoutingMiddleware, RoutingState
    from ragft_plugin.langchain.nodes import answer_node, answer_tool, arm_edge, route_node
    from ragft_plugin.langchain.parts import pipeline_from
    from ragft_plugin.langchain.reranker import ScoringReranker
    from ragft_plugin.langchain.retriever import RoutedRetriever
    from ragft_plugin.langchain.retrievers import RunnableRetriever, from_retriever
    from ragft_plugin.langchain.vector_store import KnowledgeBaseVectorStore

_MODULES = {
    "ChatLora": "chat_lora",
    "ChatModelGenerator": "generators",
    "EmbeddingsEncoder": "embeddings",
    "EncoderEmbeddings": "embeddings",
    "KnowledgeBaseVectorStore": "vector_store",
    "RoutedChain": "chain",
    "RoutedRetriever": "retriever",
    "RoutingMiddleware": "middleware",
    "RoutingState": "middleware",
    "RunnableRetriever": "retrievers",
    "ScoringReranker": "reranker",
    "answer_node": "nodes",
    "answer_tool": "nodes",
    "arm_edge": "nodes",
    "citations": "citation",
    "decision_from_dict": ".decision_record",
    "decision_model": "decision_models",
    "decision_to_dict": ".decision_record",
    "document_from": "documents",
    "from_chat_model": "generators",
    "from_retriever": "retrievers",
    "load": "loading",
    "passage_from": "documents",
    "pipeline_from": "parts",
    "route_node": "nodes",
}

__all__ = [
    "ChatLora",
    "ChatModelGenerator",
    "EmbeddingsEncoder",
    "EncoderEmbeddings",
    "KnowledgeBaseVectorStore",
    "RoutedChain",
    "RoutedRetriever",
    "RoutingMiddleware",
    "RoutingState",
    "RunnableRetriever",
    "ScoringReranker",
    "answer_node",
    "answer_tool",
    "arm_edge",
    "citations",
    "decision_from_dict",
    "decision_model",
    "decision_to_dict",
    "document_from",
    "from_chat_model",
    "from_retriever",
    "load",
    "passage_from",
    "pipeline_from",
    "route_node",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        # Only the package itself: a module missing inside it is another version's, and its own error says which.
        missing = (error.name or "").partition(".")[0]
        if missing not in {"langchain_core", "langchain", "langgraph"} or find_spec(missing):
            raise
        raise MissingExtraError(missing, "langchain" if missing == "langchain_core" else "agents") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
