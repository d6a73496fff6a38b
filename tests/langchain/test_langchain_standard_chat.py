"""LangChain's own suites for chat models."""

import pytest
from langchain_stubs import EchoBackend
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from ragft_plugin.langchain import ChatLora


class TestChatLoraUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[ChatLora]:
        return ChatLora

    @property
    def chat_model_params(self) -> dict:
        return {"backend": EchoBackend()}

    @property
    def supports_model_override(self) -> bool:
        return True


class TestChatLoraIntegration(ChatModelIntegrationTests):
    """Over a real base with adapters, tiny and random: it answers, but knows no tools, no JSON and no pictures."""

    @pytest.fixture(autouse=True)
    def _backend(self, lora_model):
        self.backend = lora_model

    @property
    def chat_model_class(self) -> type[ChatLora]:
        return ChatLora

    @property
    def chat_model_params(self) -> dict:
        return {"backend": self.backend, "model": "red", "max_tokens": 12, "seed": 1}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "green"
