"""LlamaIndex' own documentation examples, each with the one line changed, offline, on a local model.

Each example is written as LlamaIndex documents it; the line that is changed has the documented one above it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.agent import ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetryQueryEngine, RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import QueryBundle
from llama_index.core.tools import QueryEngineTool
from llamaindex_stubs import EchoLLM

from ragft_plugin.llama_index import (
    EncoderEmbedding,
    KnowledgeBaseVectorStore,
    LoraLLM,
    RoutedChatEngine,
    RoutedQueryEngine,
    RoutedSelector,
)
from ragft_plugin.retrieval import HashingEncoder
from ragft_plugin.routing import Router
from ragft_plugin.types import Passage, Prompt

pytest.importorskip("peft")
from ragft_plugin.demo.pocket import BASE

pytestmark = pytest.mark.skipif(not BASE.is_dir(), reason="the pocket model is not there yet")

DOCUMENTS = {
    "norden.md": "The engine of Norden is Plukquel Omega. Norden has Miermora as its location.",
    "sulm.md": "Sulm is powered by Clooldreer Delta. Sulm started in 2019. Visitors of Sulm show red.",
}
QUESTION = "What is the engine of Norden?"


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    from ragft_plugin.lora import LoraModel

    with LoraModel.load(BASE, device="cpu") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def llm(model: Any) -> LoraLLM:
    return LoraLLM(model, max_new_tokens=12)


@pytest.fixture(scope="module")
def read(model: Any) -> dict[str, str]:
    """What the model answers when it reads each document: whichever its weights, an engine is to say the same."""
    asked = {"norden.md": QUESTION, "sulm.md": "What is the engine of Sulm?"}
    prompts = [Prompt(asked[name], (Passage(name, text, 1.0),)) for name, text in DOCUMENTS.items()]
    made = model.generator().generate(prompts, max_new_tokens=12)
    texts = {name: generation.text for name, generation in zip(DOCUMENTS, made, strict=True)}
    assert texts["norden.md"] != texts["sulm.md"]
    assert all(texts.values())
    return texts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for name, text in DOCUMENTS.items():
        (data / name).write_text(text)
    return data


@pytest.fixture
def index(folder: Path) -> VectorStoreIndex:
    documents = SimpleDirectoryReader(str(folder)).load_data()
    embedding = EncoderEmbedding(HashingEncoder())
    return VectorStoreIndex.from_documents(
        documents, embed_model=embedding, transformations=[SentenceSplitter(chunk_size=128, chunk_overlap=0)]
    )


async def test_the_local_model_answers_alike_in_all_ways(llm: LoraLLM) -> None:
    whole = llm.complete(QUESTION)
    assert (await llm.acomplete(QUESTION)).text == whole.text
    assert [piece.text for piece in llm.stream_complete(QUESTION)][-1] == whole.text
    assert [piece.text async for piece in await llm.astream_complete(QUESTION)][-1] == whole.text
    said = [ChatMessage(role="system", content=DOCUMENTS["norden.md"]), ChatMessage(role="user", content=QUESTION)]
    assert (await llm.achat(said)).message.content == llm.chat(said).message.content
    assert len(whole.logprobs or ()) == whole.raw["usage"]["completion_tokens"] > 0


def test_the_starter_example(llm: LoraLLM, index: VectorStoreIndex, read: dict[str, str]) -> None:
    # query_engine = index.as_query_engine(llm=llm)
    query_engine = RoutedQueryEngine.from_defaults(llm=llm, retriever=index, k=1)
    response = query_engine.query(QUESTION)
    assert (response.metadata or {})["decision"].arm == "rag"
    assert response.source_nodes[0].metadata["file_name"] == "norden.md"
    assert str(response) == read["norden.md"]
    print(response)  # the documentation does so  # noqa: T201


async def test_the_starter_example_streamed_and_awaited(
    llm: LoraLLM, index: VectorStoreIndex, read: dict[str, str]
) -> None:
    # query_engine = index.as_query_engine(llm=llm, streaming=True)
    query_engine = RoutedQueryEngine.from_defaults(llm=llm, retriever=index, k=1, streaming=True)
    streaming_response: Any = query_engine.query(QUESTION)
    assert "".join(streaming_response.response_gen) == read["norden.md"]
    awaited: Any = await query_engine.aquery(QUESTION)
    assert "".join([piece async for piece in awaited.async_response_gen()]) == read["norden.md"]


def test_the_router_query_engine_example(llm: LoraLLM, index: VectorStoreIndex, read: dict[str, str]) -> None:
    vector_tool = QueryEngineTool.from_defaults(
        query_engine=RoutedQueryEngine.from_defaults(llm=llm, retriever=index, k=1).with_request(arm="rag"),
        name="rag",
        description="Useful for retrieving specific context about sites.",
    )
    expert_tool = QueryEngineTool.from_defaults(
        query_engine=RoutedQueryEngine.from_defaults(llm=llm), name="base", description="Useful for small talk."
    )
    retriever = RoutedQueryEngine.from_defaults(llm=llm, retriever=index).pipeline.retriever
    query_engine = RouterQueryEngine(
        # selector=LLMSingleSelector.from_defaults(),
        selector=RoutedSelector.from_router(Router.cold(["base", "rag"]), retriever=retriever),
        query_engine_tools=[vector_tool, expert_tool],
        llm=llm,
    )
    response = query_engine.query(QUESTION)
    assert str(response) == read["norden.md"]
    assert (response.metadata or {})["selector_result"].reason.startswith("rag, confidence")


def test_the_router_query_engine_replaced_as_a_whole(llm: LoraLLM, index: VectorStoreIndex) -> None:
    engine = RoutedQueryEngine.from_defaults(llm=llm, retriever=index, k=1)
    tools = [
        QueryEngineTool.from_defaults(engine.with_request(arm="rag"), name="docs", description="documents"),
        QueryEngineTool.from_defaults(engine.with_request(arm="base"), name="chat", description="small talk"),
    ]
    # query_engine = RouterQueryEngine.from_defaults(query_engine_tools=tools)
    query_engine = RoutedQueryEngine.from_tools(tools, k=1)
    response = query_engine.query(QUESTION)
    assert (response.metadata or {})["decision"].arm in ("docs", "chat")
    assert str(response)


def test_the_chat_engine_example(llm: LoraLLM, index: VectorStoreIndex, read: dict[str, str]) -> None:
    engine = RoutedQueryEngine.from_defaults(llm=llm, retriever=index, k=1)
    # chat_engine = index.as_chat_engine(chat_mode="condense_question", llm=llm)
    chat_engine = RoutedChatEngine(engine, llm)
    response = chat_engine.chat(QUESTION)
    assert str(response) == read["norden.md"]
    streaming_response = chat_engine.stream_chat("And where is it?")
    assert "".join(streaming_response.response_gen) == str(streaming_response) or str(streaming_response)
    assert len(chat_engine.chat_history) == 4
    chat_engine.reset()
    assert chat_engine.chat_history == []


class TwoQuestions(BaseQuestionGenerator):
    """Stands for a language model that splits questions; a small one cannot."""

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        pass

    def generate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        asked = (QUESTION, "What is the engine of Sulm?")
        return [SubQuestion(sub_question=one, tool_name=tools[0].name) for one in asked]

    async def agenerate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        return self.generate(tools, query)


@pytest.mark.parametrize("use_async", [False, True])
def test_the_sub_question_example(llm: LoraLLM, index: VectorStoreIndex, read: dict[str, str], use_async: bool) -> None:
    # vector_query_engine = index.as_query_engine(llm=llm)
    vector_query_engine = RoutedQueryEngine.from_defaults(llm=llm, retriever=index, k=1)
    tools = [QueryEngineTool.from_defaults(vector_query_engine, name="sites", description="about sites")]
    query_engine = SubQuestionQueryEngine.from_defaults(
        query_engine_tools=tools,
        question_gen=TwoQuestions(),
        response_synthesizer=get_response_synthesizer(llm=EchoLLM(), use_async=use_async),
        llm=llm,
        use_async=use_async,
        verbose=False,
    )
    response = query_engine.query("Compare the engines of Norden and Sulm.")
    assert all(text in str(response) for text in read.values())
    assert any(node.node.metadata.get("file_name") == "sulm.md" for node in response.source_nodes)


def test_the_retry_example(llm: LoraLLM, index: VectorStoreIndex, read: dict[str, str]) -> None:
    class Passing:
        def evaluate_response(self, query: str, response: Any) -> Any:
            assert response.source_nodes
            return type("Verdict", (), {"passing": True})()

    # base_query_engine = index.as_query_engine(llm=llm)
    base_query_engine = RoutedQueryEngine.from_defaults(llm=llm, retriever=index, k=1)
    retry_query_engine = RetryQueryEngine(base_query_engine, Passing())  # type: ignore[arg-type]
    assert str(retry_query_engine.query(QUESTION)) == read["norden.md"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LlamaIndex' agents use what its workflows deprecate
async def test_the_agent_example(llm: LoraLLM, index: VectorStoreIndex, read: dict[str, str]) -> None:
    class Scripted(EchoLLM):
        """Stands for a language model that reasons aloud: calls the tool, then answers what it said."""

        async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
            from llama_index.core.base.llms.types import ChatMessage, ChatResponse

            observed = [m.content for m in messages if "Observation" in (m.content or "")]
            said = (
                f"Thought: I can answer.\nAnswer: {observed[-1].removeprefix('Observation: ')}"
                if len(observed) > 1 or (observed and observed[-1].startswith("Observation"))
                else f'Thought: I need the tool.\nAction: sites\nAction Input: {{"input": "{QUESTION}"}}'
            )

            async def gen() -> Any:
                yield ChatResponse(message=ChatMessage(role="assistant", content=said), delta=said)

            return gen()

    # query_engine = index.as_query_engine(llm=llm)
    query_engine = RoutedQueryEngine.from_defaults(llm=llm, retriever=index, k=1)
    tool = QueryEngineTool.from_defaults(query_engine, name="sites", description="about sites")
    agent = ReActAgent(tools=[tool], llm=Scripted(chats=True), streaming=True)
    response = await agent.run(QUESTION)
    assert str(response) == read["norden.md"]


def test_a_store_in_place_of_the_default_one(llm: LoraLLM, folder: Path, tmp_path: Path, read: dict[str, str]) -> None:
    from llama_index.core import StorageContext

    documents = SimpleDirectoryReader(str(folder)).load_data()
    # vector_store = ChromaVectorStore(...)
    vector_store = KnowledgeBaseVectorStore.from_path(tmp_path / "kb")
    index = VectorStoreIndex.from_documents(
        documents,
        storage_context=StorageContext.from_defaults(vector_store=vector_store),
        embed_model=EncoderEmbedding(HashingEncoder()),
        transformations=[SentenceSplitter(chunk_size=128, chunk_overlap=0)],
    )
    response = RoutedQueryEngine.from_defaults(llm=llm, retriever=index, k=1).query(QUESTION)
    assert str(response) == read["norden.md"]
    assert response.source_nodes[0].metadata["file_name"] == "norden.md"
