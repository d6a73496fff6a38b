"""Any scoring function as a document compressor: the best documents first, the rest left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict

from ragft_plugin.errors import DataError
from ragft_plugin.langchain.documents import SCORE_KEY


class ScoringReranker(BaseDocumentCompressor):
    """Ranks documents by a score; the documents that come in are not changed.

    Args:
        scorer: a cross-encoder of LangChain's, or a function of a question and texts that returns one score per text;
            higher is better.
        top_n: how many documents to keep.

    Example:
        >>> ranked = ScoringReranker(scorer=lambda question, texts: [len(text) for text in texts], top_n=1)
        >>> ranked.compress_documents([Document("short"), Document("longer")], "?")[0].page_content
        'longer'
    """

    scorer: BaseCrossEncoder | Callable[[str, Sequence[str]], Sequence[float]]
    top_n: int = 3

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The best ``top_n``, best first, each with its ``relevance_score``; equals keep their order.

        Raises:
            DataError: if the scorer returns another number of scores than there are documents.
        """
        if not documents:
            return []
        texts = [document.page_content for document in documents]
        scores = self._scores(query, texts)
        if len(scores) != len(texts):
            raise DataError(f"the scorer returned {len(scores)} scores for {len(texts)} documents")
        ranked = sorted(zip(scores, documents, strict=True), key=lambda pair: -pair[0])[: self.top_n]
        return [
            Document(one.page_content, id=one.id, metadata={**one.metadata, SCORE_KEY: float(score)})
            for score, one in ranked
        ]

    def _scores(self, query: str, texts: list[str]) -> list[Any]:
        if isinstance(self.scorer, BaseCrossEncoder):
            return list(self.scorer.score([(query, text) for text in texts]))
        return list(self.scorer(query, texts))
