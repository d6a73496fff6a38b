"""A conformance suite for LlamaIndex components: LlamaIndex has none, so this one is public.

Subclass the suite of a kind, say how a component is made, and pytest runs the rest:

    class TestMyRetriever(RetrieverConformance):
        question = "Where is Brelkon?"

        def component(self, *, k=2, delay=0.0, empty=False):
            return MyRetriever(...)

``delay`` is for how many seconds the component is to wait where it would wait in production (for a model, for a
store); the suite then sees whether it holds the event loop meanwhile. Needs pytest, and no plugin for async tests.
"""

from __future__ import annotations

from ragft_plugin.llama_index.testing.chat_engines import ChatEngineConformance
from ragft_plugin.llama_index.testing.embeddings import EmbeddingConformance
from ragft_plugin.llama_index.testing.llms import LLMConformance
from ragft_plugin.llama_index.testing.postprocessors import PostprocessorConformance
from ragft_plugin.llama_index.testing.probes import Recorder, longest_stall, recorded
from ragft_plugin.llama_index.testing.query_engines import QueryEngineConformance
from ragft_plugin.llama_index.testing.retrievers import RetrieverConformance
from ragft_plugin.llama_index.testing.selectors import SelectorConformance, adversarial_queries
from ragft_plugin.llama_index.testing.vector_stores import VectorStoreConformance

__all__ = [
    "ChatEngineConformance",
    "EmbeddingConformance",
    "LLMConformance",
    "PostprocessorConformance",
    "QueryEngineConformance",
    "Recorder",
    "RetrieverConformance",
    "SelectorConformance",
    "VectorStoreConformance",
    "adversarial_queries",
    "longest_stall",
    "recorded",
]
