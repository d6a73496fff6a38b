"""A vector store of LlamaIndex over a knowledge base: hybrid, filtered, durable."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from pydantic import PrivateAttr

from ragft_plugin.errors import ConfigError
from ragft_plugin.llama_index.filters import filter_from
from ragft_plugin.llama_index.nodes import NODE_KEYS, REF_KEY, node_from
from ragft_plugin.retrieval import KnowledgeBase
from ragft_plugin.retrieval.filters import check, matches
from ragft_plugin.retrieval.fusion import mmr
from ragft_plugin.types import Filter, Passage

# LlamaIndex' query modes -> how the knowledge base ranks.
_MODES: Mapping[VectorStoreQueryMode, str] = {
    VectorStoreQueryMode.DEFAULT: "dense",
    VectorStoreQueryMode.HYBRID: "hybrid",
    VectorStoreQueryMode.MMR: "mmr",
    VectorStoreQueryMode.SEMANTIC_HYBRID: "rrf",
    VectorStoreQueryMode.SPARSE: "bm25",
    VectorStoreQueryMode.TEXT_SEARCH: "bm25",
}


class KnowledgeBaseVectorStore(BasePydanticVectorStore):
    """Nodes in a ``KnowledgeBase``. What is added is on disk when the call returns; ``persist`` has nothing to do.

    The knowledge base encodes texts and queries itself, so an index over it wants the same encoder for its own
    bookkeeping: ``VectorStoreIndex.from_vector_store(store, embed_model=EncoderEmbedding(knowledge_base.encoder))``.
    Similarities are higher for better nodes, in every mode. Passages that came in by another way (``ragft index``)
    are found as nodes too.

    Args:
        knowledge_base: where nodes lie.

    Example:
        >>> import tempfile
        >>> from llama_index.core.schema import TextNode
        >>> store = KnowledgeBaseVectorStore(KnowledgeBase.create(tempfile.mkdtemp() + "/kb"))
        >>> store.add([TextNode(id_="1", text="Brelkon stands in Tarmora.")])
        ['1']
        >>> store.query(VectorStoreQuery(query_str="Where is Brelkon?", similarity_top_k=1)).ids
        ['1']
    """

    stores_text: bool = True
    is_embedding_query: bool = False
    _knowledge_base: KnowledgeBase = PrivateAttr()

    def __init__(self, knowledge_base: KnowledgeBase) -> None:
        super().__init__(stores_text=True, is_embedding_query=False)
        self._knowledge_base = knowledge_base

    @classmethod
    def from_path(cls, path: str | Path, **settings: Any) -> KnowledgeBaseVectorStore:
        """Open the knowledge base in a directory, or make one.

        Args:
            path: the directory.
            **settings: as for ``KnowledgeBase.create`` and ``open``. ``language`` counts when it is made, and is known
                to the directory from then on.
        """
        if not KnowledgeBase.exists(path):
            return cls(KnowledgeBase.create(path, **settings))
        settings.pop("language", None)
        return cls(KnowledgeBase.open(path, **settings))

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex writes the class down."""
        return "KnowledgeBaseVectorStore"

    @property
    def client(self) -> KnowledgeBase:
        """The knowledge base."""
        return self._knowledge_base

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes; one whose id is there already replaces it. All or nothing.

        Raises:
            DataError: a node's metadata is not JSON.
        """
        self._knowledge_base.add([_passage(node) for node in nodes])
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document; an unknown one is ignored.

        A passage that came in by another way is of the document that it has as its ``source``.
        """
        gone = set(self._ids(None, _of_documents([ref_doc_id])))
        if ref_doc_id in self._knowledge_base.sources():
            # Its checksum goes along, or ``ragft index`` would take the file for unchanged and never read it again.
            others = [one for one in self._passages(None, {"source": ref_doc_id}) if one.id not in gone]
            self._knowledge_base.replace_source(ref_doc_id, others, digest=None)
        self._knowledge_base.delete(list(gone))

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return the nodes of these ids (all without ids) that pass the filters; unknown ids are left out."""
        return [node_from(passage).node for passage in self._passages(node_ids, filter_from(filters))]

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete the nodes of these ids that pass the filters.

        Raises:
            ConfigError: if neither ids nor filters are given; ``clear`` deletes everything.
        """
        if node_ids is None and filters is None:
            raise ConfigError("delete_nodes needs node_ids or filters; clear() deletes everything")
        self._knowledge_base.delete(self._ids(node_ids, filter_from(filters)))

    def clear(self) -> None:
        """Delete every node."""
        self._knowledge_base.delete(self._knowledge_base.ids())

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find nodes by meaning, by words, or both (``query.mode``).

        Args:
            query: ``mmr_threshold`` weighs, in the mode of that name, nearness (1) against difference (0).
            **kwargs: ``mmr_threshold``, which an index passes on here from ``vector_store_kwargs``.

        Raises:
            ConfigError: for a mode that trains a classifier, a filter that the knowledge base does not have, or an
                ``alpha`` in hybrid mode: the weight of its two halves is fixed.
        """
        k = max(0, self._k(query))
        filter = _filter(query)
        # Ids are no metadata, so they cannot be asked for before the search: search everything, then choose.
        # (An index that keeps no nodes of its own passes an empty list and means all.)
        wanted = set(query.node_ids) if query.node_ids else None
        threshold = kwargs.get("mmr_threshold") if query.mmr_threshold is None else query.mmr_threshold
        found = self._retrieve(query, k if wanted is None else len(self._knowledge_base), filter, threshold)
        if wanted is not None:
            found = [passage for passage in found if passage.id in wanted][:k]
        return VectorStoreQueryResult(
            nodes=[node_from(passage).node for passage in found],
            similarities=[passage.score for passage in found],
            ids=[passage.id for passage in found],
        )

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """As ``add``, in a thread."""
        return await asyncio.to_thread(self.add, nodes)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """As ``delete``, in a thread."""
        await asyncio.to_thread(self.delete, ref_doc_id)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """As ``get_nodes``, in a thread."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """As ``delete_nodes``, in a thread."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters)

    async def aclear(self) -> None:
        """As ``clear``, in a thread."""
        await asyncio.to_thread(self.clear)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As ``query``, in a thread: searching is computing, which has no async form."""
        return await asyncio.to_thread(self.query, query)

    def _k(self, query: VectorStoreQuery) -> int:
        if query.mode is VectorStoreQueryMode.HYBRID and query.hybrid_top_k is not None:
            return query.hybrid_top_k
        if query.mode is VectorStoreQueryMode.SPARSE and query.sparse_top_k is not None:
            return query.sparse_top_k
        return query.similarity_top_k

    def _retrieve(
        self, query: VectorStoreQuery, k: int, filter: Filter | None, threshold: float | None
    ) -> list[Passage]:
        if query.mode not in _MODES:
            raise ConfigError(
                f"query mode {query.mode.value!r} is not known; known: {', '.join(mode.value for mode in _MODES)}"
            )
        if query.mode is VectorStoreQueryMode.HYBRID and query.alpha is not None:
            raise ConfigError(
                f"alpha={query.alpha} cannot be obeyed: the weight of vectors and words is fixed in hybrid mode; leave "
                "alpha out, or take mode 'default' for vectors, 'sparse' for words, 'semantic_hybrid' for ranks"
            )
        mode: Any = _MODES[query.mode]
        if self._knowledge_base.encoder is None and mode == "dense":
            mode = None  # made without an encoder: its default is words
        options: dict[str, Any] = {"mode": mode}
        if not query.query_str and query.query_embedding is not None:
            vectors = np.asarray([query.query_embedding], dtype=np.float32)
            options = {"mode": "mmr" if mode == "mmr" else "dense", "vectors": vectors}
        # A vector alone asks no question, but an empty one would find nothing.
        text = query.query_str or ("?" if "vectors" in options else "")
        if options["mode"] == "mmr" and threshold is not None:
            options["mode"] = "dense"
            found = self._knowledge_base.retrieve([text], max(4 * k, 20), filter, **options)[0]
            return self._unlike(found, k, threshold)
        return self._knowledge_base.retrieve([text], k, filter, **options)[0]

    def _unlike(self, found: Sequence[Passage], k: int, weight: float) -> list[Passage]:
        """The k passages that are near to the question but unlike each other."""
        vectors = self._knowledge_base.vectors([passage.id for passage in found])
        relevance = np.array([passage.score for passage in found])
        return [found[at] for at in mmr(relevance, vectors, k, weight=weight)]

    def _passages(self, node_ids: Sequence[str] | None, filter: Filter | None) -> list[Passage]:
        if not filter:
            return self._knowledge_base.get(self._knowledge_base.ids() if node_ids is None else node_ids)
        check(filter)
        found = self._knowledge_base.get(self._let_through(filter) if node_ids is None else node_ids)
        return [passage for passage in found if matches(filter, passage.metadata)]

    def _let_through(self, filter: Filter) -> list[str]:
        """Ids of what a filter lets through, in order of insertion, by the columns that searches are filtered with."""
        dim = self._knowledge_base.vectors([]).shape[1]
        if not dim:  # made without an encoder: only a look at each passage tells
            return self._knowledge_base.ids()
        # A vector of length 0 is as near to one passage as to any other.
        vectors = np.zeros((1, dim), dtype=np.float32)
        (found,) = self._knowledge_base.retrieve(
            ["?"], len(self._knowledge_base), filter, mode="dense", vectors=vectors
        )
        return [passage.id for passage in found]

    def _ids(self, node_ids: Sequence[str] | None, filter: Filter | None) -> list[str]:
        return [passage.id for passage in self._passages(node_ids, filter)]


def _passage(node: BaseNode) -> Passage:
    """A passage that holds the whole node: its own metadata open to filters, the rest as JSON beside them."""
    told = node_to_metadata_dict(node, remove_text=True)
    hidden = {key: told[key] for key in NODE_KEYS}
    own = {key: told[key] for key in node.metadata}
    source = {} if node.ref_doc_id is None else {"source": node.ref_doc_id}
    ref = {} if node.ref_doc_id is None else {REF_KEY: node.ref_doc_id}
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    return Passage(node.node_id, text, metadata={**source, **own, **ref, **hidden})


def _of_documents(ids: list[str]) -> dict[str, Any]:
    """What is of these documents: nodes know theirs, and what came in by another way has it as its source."""
    return {"$or": [{REF_KEY: {"$in": ids}}, {REF_KEY: {"$exists": False}, "source": {"$in": ids}}]}


def _filter(query: VectorStoreQuery) -> Filter | None:
    parts: list[dict[str, Any]] = [_of_documents(list(query.doc_ids))] if query.doc_ids else []
    asked = filter_from(query.filters)
    parts += [] if asked is None else [dict(asked)]
    return None if not parts else {"$and": parts}
