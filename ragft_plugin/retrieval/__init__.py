"""The knowledge base: hybrid, filtered, incremental retrieval in a directory. Extra: ``retrieval``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ragft_plugin.errors import MissingExtraError

if TYPE_CHECKING:
    from ragft_plugin.retrieval.chunking import Chunker, Document, deduplicated
    from ragft_plugin.retrieval.encoders import (
        HashingEncoder,
        MiniLMEncoder,
        SentenceTransformersEncoder,
    )
    from ragft_plugin.retrieval.indexing import IndexReport, Skipped, index_folder
    from ragft_plugin.retrieval.knowledge_base import KnowledgeBase
    from ragft_plugin.retrieval.readers import read_document
    from ragft_plugin.retrieval.writing import Changes

_HOMES = {
    "Changes": "writing",
    "Chunker": "chunking",
    "Document": "chunking",
    "HashingEncoder": "encoders",
    "IndexReport": "indexing",
    "KnowledgeBase": "knowledge_base",
    "MiniLMEncoder": "encoders",
    "SentenceTransformersEncoder": "encoders",
    "Skipped": "indexing",
    "deduplicated": "chunking",
    "index_folder": "indexing",
    "read_document": "readers",
}
_EXTRA_PACKAGES = {"faiss", "semantic_text_splitter", "tantivy"}

__all__ = [
    "Changes",
    "Chunker",
    "Document",
    "HashingEncoder",
    "IndexReport",
    "KnowledgeBase",
    "MiniLMEncoder",
    "SentenceTransformersEncoder",
    "Skipped",
    "deduplicated",
    "index_folder",
    "read_document",
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
