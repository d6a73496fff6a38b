"""The knowledge base: hybrid, filtered, incremental retrieval in a directory. Extra: ``retrieval``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ragft_plugin.errors import MissingExtraError

if TYPE_CHECKING:
    from ragft_plugin.retrieval.chunking import Chunker, Document, deduplicated
    from ragft_plugin.retrieval.encoder_tuning import (
        EncoderReport,
        Positive,
        positives_from_log,
        reencode,
        tune_encoder,
    )
    from ragft_plugin.retrieval.encoders import HashingEncoder, MiniLMEncoder
    from ragft_plugin.retrieval.imports import faiss_vectors, import_faiss_store, import_index
    from ragft_plugin.retrieval.indexing import IndexReport, index_folder
    from ragft_plugin.retrieval.knowledge_base import KnowledgeBase
    from ragft_plugin.retrieval.onnx_encoder import OnnxEncoder, export_onnx
    from ragft_plugin.retrieval.parents import ParentChunker, ParentRetriever
    from ragft_plugin.retrieval.readers import read_document
    from ragft_plugin.retrieval.reranking import CrossEncoderScorer, Reranked
    from ragft_plugin.retrieval.static_encoder import StaticEncoder
    from ragft_plugin.retrieval.survey import Skipped
    from ragft_plugin.retrieval.wrappers import (
        EmbeddingEncoder,
        EmbeddingsEncoder,
        SentenceTransformersEncoder,
        as_encoder,
    )
    from ragft_plugin.retrieval.writing import Changes

_HOMES = {
    "Changes": "writing",
    "Chunker": "chunking",
    "CrossEncoderScorer": "reranking",
    "Document": "chunking",
    "EmbeddingEncoder": "wrappers",
    "EmbeddingsEncoder": "wrappers",
    "EncoderReport": "encoder_tuning",
    "HashingEncoder": "encoders",
    "IndexReport": "indexing",
    "KnowledgeBase": "knowledge_base",
    "MiniLMEncoder": "encoders",
    "OnnxEncoder": "onnx_encoder",
    "ParentChunker": "parents",
    "ParentRetriever": "parents",
    "Positive": "encoder_tuning",
    "Reranked": "reranking",
    "SentenceTransformersEncoder": "wrappers",
    "Skipped": "survey",
    "StaticEncoder": "static_encoder",
    "as_encoder": "wrappers",
    "deduplicated": "chunking",
    "export_onnx": "onnx_encoder",
    "faiss_vectors": "imports",
    "import_faiss_store": "imports",
    "import_index": "imports",
    "index_folder": "indexing",
    "positives_from_log": "encoder_tuning",
    "read_document": "readers",
    "reencode": "encoder_tuning",
    "tune_encoder": "encoder_tuning",
}
_EXTRA_PACKAGES = {"faiss", "semantic_text_splitter", "tantivy"}

__all__ = [
    "Changes",
    "Chunker",
    "CrossEncoderScorer",
    "Document",
    "EmbeddingEncoder",
    "EmbeddingsEncoder",
    "EncoderReport",
    "HashingEncoder",
    "IndexReport",
    "KnowledgeBase",
    "MiniLMEncoder",
    "OnnxEncoder",
    "ParentChunker",
    "ParentRetriever",
    "Positive",
    "Reranked",
    "SentenceTransformersEncoder",
    "Skipped",
    "StaticEncoder",
    "as_encoder",
    "deduplicated",
    "export_onnx",
    "faiss_vectors",
    "import_faiss_store",
    "import_index",
    "index_folder",
    "positives_from_log",
    "read_document",
    "reencode",
    "tune_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ImportError as error:
        if error.name in _EXTRA_PACKAGES:
            raise MissingExtraError(error.name, "retrieval") from error
        raise


def __dir__() -> list[str]:
    return __all__
