"""Nodes of LlamaIndex <-> passages: one function per direction; what the caller gave is never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node

from ragft_plugin.decision_record import DECISION_KEY, decision_from_dict, decision_to_dict
from ragft_plugin.types import Decision, Passage

# Where a node lies in the metadata of a passage of a knowledge base, and the id of its document.
NODE_KEYS = ("_node_content", "_node_type")
REF_KEY = "_ref_doc_id"
# Where a knowledge base notes how it found a passage, and of which document it is; nothing for a model to read.
_HIDDEN = ("kb", REF_KEY)


@dataclass(frozen=True, slots=True)
class NodePassage(Passage):
    """A passage that remembers its node, so that relationships, templates and offsets survive the way back.

    Attributes:
        node: where the passage came from.
    """

    node: BaseNode | None = field(default=None, repr=False, compare=False)


def passage_from(found: NodeWithScore) -> Passage:
    """A passage of a node; a node without a score gets 0.

    Example:
        >>> passage_from(NodeWithScore(node=TextNode(id_="7", text="In Rome."), score=0.5))
        NodePassage(id='7', text='In Rome.', score=0.5, metadata={})
    """
    node = found.node
    return NodePassage(
        id=node.node_id,
        text=node.get_content(metadata_mode=MetadataMode.NONE),
        score=0.0 if found.score is None else float(found.score),
        metadata=dict(node.metadata),
        node=node,
    )


def node_from(passage: Passage, decision: Decision | None = None) -> NodeWithScore:
    """A node of a passage; one that came from a node gives that node back.

    Args:
        passage: what to convert.
        decision: written into the metadata of (a copy of) the node, hidden from LLMs and embeddings.
    """
    node = _node(passage)
    if decision is not None:
        node = node.model_copy(
            update={
                "metadata": {**node.metadata, DECISION_KEY: decision_to_dict(decision)},
                "excluded_llm_metadata_keys": [*node.excluded_llm_metadata_keys, DECISION_KEY],
                "excluded_embed_metadata_keys": [*node.excluded_embed_metadata_keys, DECISION_KEY],
            }
        )
    return NodeWithScore(node=node, score=passage.score)


def decision_of(nodes: Sequence[NodeWithScore]) -> Decision | None:
    """The decision that routed nodes carry, or None."""
    for found in nodes:
        value = found.node.metadata.get(DECISION_KEY)
        if isinstance(value, dict):
            return decision_from_dict(value)
    return None


def _node(passage: Passage) -> BaseNode:
    if isinstance(passage, NodePassage) and passage.node is not None:
        return passage.node
    if all(key in passage.metadata for key in NODE_KEYS):
        return metadata_dict_to_node(dict(passage.metadata), text=passage.text)
    document = passage.metadata.get(REF_KEY, passage.metadata.get("source"))
    related = {} if document is None else {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=str(document))}
    return TextNode(
        id_=passage.id,
        text=passage.text,
        metadata=dict(passage.metadata),
        relationships=related,
        excluded_llm_metadata_keys=list(_HIDDEN),
        excluded_embed_metadata_keys=list(_HIDDEN),
    )
