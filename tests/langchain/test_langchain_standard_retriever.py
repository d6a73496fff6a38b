"""LangChain's own suite for retrievers."""

from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_stubs import DOCUMENTS, ListRetriever, WordRouter
from langchain_tests.integration_tests import RetrieversIntegrationTests

from ragft_plugin.langchain import RoutedRetriever, pipeline_from


class TestRoutedRetrieverOverARetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return RoutedRetriever

    @property
    def retriever_constructor_params(self) -> dict:
        return {"pipeline": pipeline_from(router=WordRouter(otherwise="rag"), retriever=ListRetriever())}

    @property
    def retriever_query_example(self) -> str:
        return "What is the capital of Avel?"


class TestRoutedRetrieverOverAVectorStore(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return RoutedRetriever

    @property
    def retriever_constructor_params(self) -> dict:
        store = InMemoryVectorStore(DeterministicFakeEmbedding(size=6))
        store.add_documents(DOCUMENTS)
        return {"pipeline": pipeline_from(router=WordRouter(otherwise="rag"), retriever=store)}

    @property
    def retriever_query_example(self) -> str:
        return "What is the capital of Avel?"
