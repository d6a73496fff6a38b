"""Imports: passages that stand in another store, with their vectors where these are known to fit.

Nothing is unpickled here: a community FAISS store is handed over as the object that its owner has loaded, and of files
only ``index.faiss`` is read, by faiss. Vectors are taken over only if the caller states the fingerprint of the encoder
that made them and it is that of the knowledge base; otherwise the texts are encoded again. Frameworks are known by the
methods and attributes of their objects and not imported.

A store that is to stay where it is needs no import: any LangChain or LlamaIndex retriever or vector store becomes a
retriever of the pipeline with ``from_retriever`` of ``ragft_plugin.langchain`` or ``ragft_plugin.llama_index``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError, DataError, StoreError
from ragft_plugin.retrieval.knowledge_base import KnowledgeBase
from ragft_plugin.retrieval.writing import Changes
from ragft_plugin.types import Passage

_BATCH = 4096
# Where the LlamaIndex vector store of this package looks for a node's document.
_REF_KEY = "_ref_doc_id"
Progress = Callable[[int, int], None]


def import_faiss_store(
    kb: KnowledgeBase,
    store: Any,
    *,
    fingerprint: str | None = None,
    index: str | Path | None = None,
    progress: Progress | None = None,
) -> Changes:
    """Take over the documents of a community ``FAISS`` vector store.

    Args:
        kb: what to add them to; a passage keeps the document's id.
        store: the loaded store: an object with ``index``, ``docstore`` and ``index_to_docstore_id``.
        fingerprint: of the encoder that made the store's vectors; states that they may be kept.
        index: an ``index.faiss`` to read the vectors from, instead of the store's own index.
        progress: called with (passages done, passages).

    Raises:
        ConfigError: the object is no such store, or the fingerprint is not the knowledge base's.
        DataError: a document is missing, or there are more or fewer vectors than documents: such stores break when an
            id is added twice.
    """
    _check_fingerprint(kb, fingerprint)
    for name in ("index", "docstore", "index_to_docstore_id"):
        if not hasattr(store, name):
            raise ConfigError(
                f"{type(store).__name__} has no {name!r}; give a loaded FAISS vector store of langchain-community. "
                "Files of one are pickles, which this package never opens: load them where you trust them"
            )
    ids = [store.index_to_docstore_id[row] for row in sorted(store.index_to_docstore_id)]
    passages = []
    for id in ids:
        document = store.docstore.search(id)
        if not hasattr(document, "page_content"):
            raise DataError(f"the store's document {id!r} is missing: {document}")
        passages.append(Passage(str(id), document.page_content, metadata=dict(document.metadata)))
    vectors = None if fingerprint is None else faiss_vectors(store.index if index is None else index)
    return _add(kb, passages, vectors, progress)


def import_index(
    kb: KnowledgeBase, index: Any, *, fingerprint: str | None = None, progress: Progress | None = None
) -> Changes:
    """Take over the nodes of a LlamaIndex ``VectorStoreIndex``.

    Args:
        kb: what to add them to; a passage keeps the node's id. The id of its document becomes its ``source`` or, where
            it has one of its own, ``_ref_doc_id``.
        index: its nodes are read from its docstore or, where the store keeps the texts, from its vector store.
        fingerprint: of the embedding model that made the index's vectors; states that they may be kept where they can
            be read.
        progress: called with (passages done, passages).

    Raises:
        ConfigError: the object is no such index, its nodes cannot be read, or the fingerprint is not the knowledge
            base's.
    """
    _check_fingerprint(kb, fingerprint)
    nodes = _nodes(index)
    passages = [Passage(str(node.node_id), node.get_content(), metadata=_node_metadata(node)) for node in nodes]
    rows = None
    if fingerprint is not None:
        known = _embeddings(index)
        found = [known.get(node.node_id, node.embedding) for node in nodes]
        missing = next((node.node_id for node, row in zip(nodes, found, strict=True) if row is None), None)
        if missing is not None:
            raise ConfigError(
                f"the vector of node {missing!r} cannot be read from {type(index.vector_store).__name__}; leave "
                "fingerprint out to encode the texts again"
            )
        rows = np.asarray(found, dtype=np.float32)
    return _add(kb, passages, rows, progress)


def faiss_vectors(index: Any) -> NDArray[np.float32]:
    """Return the vectors of a FAISS index, or of a file of one, in order, shape (n, dim).

    Raises:
        StoreError: the file cannot be read, or the kind of index does not keep its vectors.
    """
    if isinstance(index, (str, Path)):
        if not Path(index).is_file():
            raise StoreError(f"{index} is not there; it should be an index.faiss")
        try:
            index = faiss.read_index(str(index))
        except RuntimeError as error:
            raise StoreError(f"{index} is no FAISS index: {error}") from error
    try:
        # Indexes with inverted lists find a vector by its number only when told to.
        plain: Any = faiss.downcast_index(index)
        if hasattr(plain, "make_direct_map"):
            plain.make_direct_map()
        vectors = index.reconstruct_n(0, index.ntotal) if index.ntotal else np.zeros((0, index.d), np.float32)
    except RuntimeError as error:
        raise StoreError(
            f"the vectors of a {type(index).__name__} cannot be read back: {error}; leave fingerprint out to encode "
            "the texts again"
        ) from error
    return np.asarray(vectors, dtype=np.float32)


def _check_fingerprint(kb: KnowledgeBase, fingerprint: str | None) -> None:
    own = kb.encoder.fingerprint if kb.encoder is not None else ""
    if fingerprint is not None and fingerprint != own:
        raise ConfigError(
            f"the vectors are of {fingerprint!r}, the knowledge base is of {own or 'no encoder'!r}; leave fingerprint "
            "out to encode the texts again"
        )


def _add(
    kb: KnowledgeBase, passages: Sequence[Passage], vectors: NDArray[np.float32] | None, progress: Progress | None
) -> Changes:
    if vectors is not None and len(vectors) != len(passages):
        raise DataError(
            f"the store has {len(passages)} documents, but {len(vectors)} vectors; it is broken. Leave fingerprint out "
            "to encode the texts again"
        )
    counts = dict.fromkeys(("added", "updated", "unchanged", "deleted"), 0)
    for start in range(0, len(passages), _BATCH):
        end = start + _BATCH
        changes = kb.add(passages[start:end], vectors=None if vectors is None else vectors[start:end])
        counts = {name: count + getattr(changes, name) for name, count in counts.items()}
        if progress is not None:
            progress(min(end, len(passages)), len(passages))
    return Changes(**counts, version=kb.version)


def _nodes(index: Any) -> list[Any]:
    store, docstore = getattr(index, "vector_store", None), getattr(index, "docstore", None)
    if store is None or docstore is None:
        raise ConfigError(f"{type(index).__name__} has no docstore and vector_store; give a VectorStoreIndex")
    # The docstore may also hold nodes of other indexes; the index' own structure says which are here.
    listed = getattr(getattr(index, "index_struct", None), "nodes_dict", None)
    wanted = list((listed or {}).values())
    if listed is not None and not wanted and not getattr(store, "stores_text", True):
        return []  # such a store has no nodes but those that the structure lists
    found = [node for id in wanted if (node := docstore.docs.get(id)) is not None]
    if found and len(found) == len(wanted):
        return found
    try:
        return list(store.get_nodes())
    except (NotImplementedError, AttributeError) as error:
        raise ConfigError(
            f"{type(store).__name__} does not tell its nodes; load your documents and add them, or use the index as a "
            "retriever: ragft_plugin.llama_index.from_retriever(index)"
        ) from error


def _embeddings(index: Any) -> Mapping[str, Sequence[float]]:
    data = getattr(index.vector_store, "data", None)
    return getattr(data, "embedding_dict", None) or {}


def _node_metadata(node: Any) -> dict[str, Any]:
    metadata = dict(node.metadata)
    for name, value in (("start", node.start_char_idx), ("end", node.end_char_idx)):
        if value is not None:
            metadata.setdefault(name, value)
    if node.ref_doc_id is not None and metadata.setdefault("source", node.ref_doc_id) != node.ref_doc_id:
        metadata[_REF_KEY] = node.ref_doc_id
    return metadata
