"""LlamaIndex' side over the pocket model's real arms, and the same answers as LangChain's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage

from ragft_plugin.demo.questions import questions
from ragft_plugin.errors import GenerationError
from ragft_plugin.langchain import RoutedChain
from ragft_plugin.langchain import RoutedRetriever as ChainRetriever
from ragft_plugin.llama_index import LoraLLM, RoutedChatEngine, RoutedQueryEngine, RoutedRetriever
from ragft_plugin.llama_index.testing import recorded
from ragft_plugin.types import Decision

ASKED = [question.query for question in questions("test")[:200]]
ARMS = ["base", "rag", "adapter:facts", "rag+adapter:facts", "adapter:tickets", "rag+adapter:tickets"]
NAMES = [None, "facts", "tickets"]
QUICK = ["base", "tickets", "rag+adapter:tickets"]


def each(names: Sequence[str | None]) -> list[Any]:
    """Parameters; all but a few run with the slow tests."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def told(decision: Any) -> dict[str, Any]:
    """A decision without its id, which is drawn anew for each."""
    names = [name for name in Decision.__dataclass_fields__ if name != "id"]
    values = {name: decision[name] if isinstance(decision, dict) else getattr(decision, name) for name in names}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


async def read(response: Any) -> tuple[str, list[str], dict[str, Any]]:
    if hasattr(response, "async_response_gen"):
        text = "".join([piece async for piece in response.async_response_gen()])
    elif hasattr(response, "response_gen"):
        text = "".join(response.response_gen)
    else:
        text = str(response)
    return text, [node.node_id for node in response.source_nodes], told(response.metadata["decision"])


@pytest.mark.parametrize("arm", each([*ARMS, None]))
async def test_every_arm_answers_alike_in_all_four_ways(pipeline: Any, arm: str | None) -> None:
    engine = RoutedQueryEngine(pipeline, arm=arm)
    streaming = engine.with_streaming()
    for question in (ASKED[0], ASKED[6]):
        ways = [engine.query(question), await engine.aquery(question)]
        ways += [streaming.query(question), await streaming.aquery(question)]
        seen = [await read(response) for response in ways]
        assert seen == [seen[0]] * 4
        assert seen[0][0]


def same(pipeline: Any, asked: list[str]) -> set[str]:
    """Both frameworks on each question; the arms that were chosen."""
    chain, engine = RoutedChain(pipeline=pipeline), RoutedQueryEngine(pipeline)
    chosen = set()
    for question in asked:
        one, other = chain.invoke(question), engine.query(question)
        decision = (other.metadata or {})["decision"]
        assert one["answer"] == str(other)
        assert told(one["decision"]) == told(decision)
        assert [document.id for document in one["context"]] == [node.node_id for node in other.source_nodes]
        chosen.add(decision.arm)
    return chosen


def test_both_frameworks_decide_and_answer_alike(pipeline: Any) -> None:
    assert len(same(pipeline, ASKED[:7])) > 1, "the questions do not tell the arms apart"


@pytest.mark.slow
def test_both_frameworks_decide_and_answer_two_hundred_questions_alike(pipeline: Any) -> None:
    assert len(ASKED) == 200
    assert len(same(pipeline, ASKED)) > 2


async def test_retrievers_of_both_frameworks_find_alike(pipeline: Any) -> None:
    chain, retriever = ChainRetriever(pipeline=pipeline), RoutedRetriever(pipeline)
    for question in ASKED[:7]:
        ids = [node.node_id for node in retriever.retrieve(question)]
        assert [node.node_id for node in await retriever.aretrieve(question)] == ids
        assert [document.id for document in chain.invoke(question)] == ids


# ----------------------------------------------------------------------------------------- the language model by itself


@pytest.fixture(scope="module")
def llm(model: Any) -> LoraLLM:
    return LoraLLM(model, max_new_tokens=8)


@pytest.mark.parametrize("adapter", each(NAMES))
async def test_the_llm_answers_alike_in_all_eight_ways(llm: LoraLLM, adapter: str | None) -> None:
    question, call = ASKED[5], {"adapter": adapter}
    said = [ChatMessage(role="user", content=question)]
    whole = llm.complete(question, **call).text
    assert whole
    assert (await llm.acomplete(question, **call)).text == whole
    assert [piece.text for piece in llm.stream_complete(question, **call)][-1] == whole
    assert "".join(piece.delta for piece in llm.stream_complete(question, **call)) == whole
    assert "".join([piece.delta async for piece in await llm.astream_complete(question, **call)]) == whole
    assert llm.chat(said, **call).message.content == whole
    assert (await llm.achat(said, **call)).message.content == whole
    assert "".join(piece.delta for piece in llm.stream_chat(said, **call)) == whole
    assert "".join([piece.delta async for piece in await llm.astream_chat(said, **call)]) == whole


def test_the_adapter_is_chosen_per_call_or_at_construction(llm: LoraLLM, model: Any) -> None:
    asked = ASKED[3:6]
    made = {adapter: tuple(llm.complete(one, adapter=adapter).text for one in asked) for adapter in NAMES}
    assert len(set(made.values())) == 3
    for adapter in NAMES:
        bound = LoraLLM(model, adapter=adapter, max_new_tokens=8)
        assert tuple(bound.complete(one).text for one in asked) == made[adapter]


async def test_many_at_once_get_each_their_own_adapters_answer(llm: LoraLLM) -> None:
    jobs = [(ASKED[i % 4], NAMES[i % 3]) for i in range(100)]
    expected = {job: llm.complete(job[0], adapter=job[1]).text for job in set(jobs)}
    awaited = await asyncio.gather(*(llm.acomplete(question, adapter=adapter) for question, adapter in jobs))
    assert [one.text for one in awaited] == [expected[job] for job in jobs]
    gate = threading.Barrier(64)

    def ask(job: tuple[str, str | None]) -> str:
        gate.wait()
        return llm.complete(job[0], adapter=job[1]).text

    with ThreadPoolExecutor(64) as pool:
        assert await asyncio.to_thread(lambda: list(pool.map(ask, jobs[:64]))) == [expected[job] for job in jobs[:64]]


async def test_the_loop_ticks_while_the_model_writes(pipeline: Any, llm: LoraLLM) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticker = asyncio.create_task(tick())
    engine = RoutedQueryEngine(pipeline, arm="rag+adapter:tickets")
    for ask in (engine.aquery, lambda one: llm.acomplete(one, adapter="tickets")):
        before = ticks
        await ask(ASKED[5])
        assert ticks - before >= 5
    ticker.cancel()


async def test_time_outs_are_honoured_and_the_worker_serves_on(llm: LoraLLM) -> None:
    with pytest.raises(GenerationError, match="no answer within"):
        llm.complete(ASKED[5], timeout=1e-6)
    with pytest.raises(GenerationError, match="no answer within"):
        await llm.acomplete(ASKED[5], timeout=1e-6)
    assert llm.complete(ASKED[5]).text


async def test_cancelling_frees_the_worker(llm: LoraLLM, model: Any) -> None:
    endless, model.renderer.end_ids = model.renderer.end_ids, (-1,)  # nothing ends an answer
    try:
        task = asyncio.create_task(llm.acomplete(ASKED[0], max_new_tokens=1500))
        stream = await llm.astream_complete(ASKED[0], max_new_tokens=1500, adapter="facts")
        await anext(stream)
        task.cancel()
        await stream.aclose()
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        model.renderer.end_ids = endless
    # Rows that were cancelled leave at the next step. LlamaIndex leaves closing the stream to the event loop.
    for _ in range(3):
        await asyncio.sleep(0.1)
        assert llm.complete(ASKED[0], max_new_tokens=2).text
    assert not model.worker.call(lambda: any(model.worker._live()))


async def test_a_chat_is_condensed_and_routed(pipeline: Any, llm: LoraLLM) -> None:
    chat = RoutedChatEngine(RoutedQueryEngine(pipeline, arm="rag"), llm)
    first = chat.chat(ASKED[0])
    assert str(first) == str(RoutedQueryEngine(pipeline, arm="rag").query(ASKED[0]))
    assert str(await chat.achat(ASKED[1]))
    assert len(chat.chat_history) == 4


# ------------------------------------------------------------------------------------------------------ what is told


async def test_native_retrieval_and_generation_are_spans_and_events(pipeline: Any) -> None:
    engine = RoutedQueryEngine(pipeline, arm="rag+adapter:tickets")
    for asynchronous in (False, True):
        with recorded() as (seen, spans):
            response = await engine.aquery(ASKED[6]) if asynchronous else engine.query(ASKED[6])
        names = [event.class_name() for event in seen.events]
        wanted = ["RouteDecisionEvent", "RetrievalStartEvent", "RetrievalEndEvent", "LLMChatStartEvent"]
        assert [name for name in names if name in {*wanted, "LLMChatEndEvent"}] == [*wanted, "LLMChatEndEvent"]
        (ended,) = [event for event in seen.events if event.class_name() == "LLMChatEndEvent"]
        assert ended.response.message.content == str(response)
        ids = {span.id_: span for span in spans.completed_spans}
        named = {one.partition("-")[0]: span for one, span in ids.items()}
        suffix = "a" if asynchronous else ""
        for inner in (f"TracedRetriever.{suffix}retrieve", f"TracedGenerator.{suffix}generate"):
            parent = named[inner].parent_id
            assert parent.startswith(f"RoutedQueryEngine.{suffix}answer")
