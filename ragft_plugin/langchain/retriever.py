"""A retriever that first decides whether there is anything to look up."""

from __future__ import annotations

from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from pydantic import ConfigDict

from ragft_plugin.course import Routed
from ragft_plugin.decision_record import decision_to_dict
from ragft_plugin.langchain.documents import document_from
from ragft_plugin.langchain.parts import pipeline_from
from ragft_plugin.langchain.requests import request_of
from ragft_plugin.langchain.runs import Call, parents
from ragft_plugin.langchain.traced import watched
from ragft_plugin.langchain.tracing import aroute, route
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.types import Passage


class RoutedRetriever(BaseRetriever):
    """Drop-in for any retriever: what the chosen arm reads, or nothing if it reads nothing.

    Every document's metadata hold the ``decision``. In a chain that also answers, give this retriever to
    ``RoutedChain``, which then decides once for both.

    Args:
        pipeline: decides and retrieves.
        k: documents per question; None means the pipeline's.
        filter: access filter; None lets everything through.
        cost_weight: reward given up per unit of cost; None means the router's own.
        arm: force this arm.

    All but the pipeline can be given at the call as well: ``retriever.invoke(question, k=1)``.

    Example::

        retriever = RoutedRetriever.from_retriever(vector_store, router=Router.load("router"))
        chain = create_retrieval_chain(retriever, combine_docs_chain)
    """

    pipeline: Pipeline
    k: int | None = None
    filter: dict[str, Any] | None = None
    cost_weight: float | None = None
    arm: str | None = None

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    @classmethod
    def from_retriever(cls, retriever: Any, **parts: Any) -> Self:
        """Route a LangChain retriever, vector store or Runnable.

        Args:
            retriever: what finds documents.
            **parts: ``router`` (whose arms are ``base``, do not look up, and ``rag``) and what else ``pipeline_from``
                takes; ``models`` only for a router that looks at drafts; and arguments of this class.
        """
        own = {name: parts.pop(name) for name in set(parts) & (set(cls.model_fields) - {"pipeline"})}
        return cls(pipeline=pipeline_from(retriever=retriever, **parts), **own)

    # Any keyword here lets LangChain hand over those of the call: invoke(question, k=1, filter={...}, arm="rag").
    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **settings: Any
    ) -> list[Document]:
        request = request_of(self, **settings)
        call = Call.of(query, run_manager)
        routed = route(self.pipeline, [call], [query], request)
        with parents([call.after(routed[0])]):
            (passages,) = watched(self.pipeline, [call.config]).passages(routed, **request)
        return _documents(routed[0], passages)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **settings: Any
    ) -> list[Document]:
        request = request_of(self, **settings)
        call = Call.of(query, run_manager)
        routed = await aroute(self.pipeline, [call], [query], request)
        with parents([call.after(routed[0])]):
            (passages,) = await watched(self.pipeline, [call.config]).apassages(routed, **request)
        return _documents(routed[0], passages)

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = super()._get_ls_params(**kwargs)
        source = getattr(self.pipeline.retriever, "source", self.pipeline.retriever)
        store = getattr(source, "vectorstore", source)
        return {**params, "ls_vector_store_provider": type(store).__name__}


def _documents(routed: Routed, passages: tuple[Passage, ...]) -> list[Document]:
    return [document_from(passage, decision=decision_to_dict(routed.decision)) for passage in passages]
