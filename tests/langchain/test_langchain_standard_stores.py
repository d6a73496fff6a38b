"""LangChain's own suites for vector stores and embeddings."""

from collections.abc import Iterator

import pytest
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests, VectorStoreIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from ragft_plugin.langchain import EncoderEmbeddings, KnowledgeBaseVectorStore


class TestKnowledgeBaseVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path) -> Iterator[VectorStore]:
        store = KnowledgeBaseVectorStore.create(tmp_path / "kb", self.get_embeddings())
        yield store
        store.knowledge_base.close()


class TestEncoderEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[EncoderEmbeddings]:
        return EncoderEmbeddings


class TestEncoderEmbeddingsIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[EncoderEmbeddings]:
        return EncoderEmbeddings
