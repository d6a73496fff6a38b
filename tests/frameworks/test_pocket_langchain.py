"""LangChain's side over the pocket model's real arms: one answer, whichever way it is asked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.runnables.utils import AddableDict
from langchain_core.tracers.base import BaseTracer

from ragft_plugin.demo.questions import questions
from ragft_plugin.errors import GenerationError
from ragft_plugin.langchain import ChatLora, RoutedChain, RoutedRetriever

ASKED = [question.query for question in questions("test")[:7]]  # one of each kind
ARMS = ["base", "rag", "adapter:facts", "rag+adapter:facts", "adapter:tickets", "rag+adapter:tickets"]
NAMES = ["base", "facts", "tickets"]
QUICK = ["base", "tickets", "rag+adapter:tickets"]


def each(names: list[str]) -> list[Any]:
    """Parameters; all but a few run with the slow tests."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def plain(output: dict[str, Any]) -> dict[str, Any]:
    """An output without its decision's random id."""
    return {**output, "decision": {**output["decision"], "id": ""}}


def expected(output: dict[str, Any]) -> dict[str, Any]:
    """What another way is to give: the same, but for the rounding of the router's numbers.

    The signals of a batch are a product of matrices in 32 bits, those of one question a product with a vector; both
    sum in an order of their own.
    """
    decision = dict(output["decision"])
    for name in ("values", "confidence"):
        decision[name] = pytest.approx(decision[name], rel=1e-5, abs=1e-7)
    return {**output, "decision": decision}


def summed(parts: list[Any]) -> dict[str, Any]:
    total = AddableDict()
    for part in parts:
        total = total + part
    return plain(dict(total))


async def all_ways(chain: RoutedChain, asked: list[str], **settings: Any) -> list[list[dict[str, Any]]]:
    return [
        [plain(chain.invoke(one, **settings)) for one in asked],
        [plain(await chain.ainvoke(one, **settings)) for one in asked],
        [plain(one) for one in chain.batch(asked, **settings)],
        [plain(one) for one in await chain.abatch(asked, **settings)],
        [summed(list(chain.stream(one, **settings))) for one in asked],
        [summed([part async for part in chain.astream(one, **settings)]) for one in asked],
    ]


@pytest.mark.parametrize("arm", each(ARMS))
async def test_every_arm_answers_alike_in_all_six_ways(pipeline: Any, arm: str) -> None:
    ways = await all_ways(RoutedChain(pipeline=pipeline), [ASKED[0], ASKED[6]], arm=arm)
    wanted = [expected(one) for one in ways[0]]
    assert all(way == wanted for way in ways)
    assert all(one["answer"] for one in ways[0])
    assert all(len(one["context"]) == (3 if arm.startswith("rag") else 0) for one in ways[0])


async def test_what_the_router_decides_is_the_same_in_all_six_ways(pipeline: Any) -> None:
    ways = await all_ways(RoutedChain(pipeline=pipeline), ASKED[::2])
    wanted = [expected(one) for one in ways[0]]
    assert all(way == wanted for way in ways)
    assert len({one["decision"]["arm"] for one in ways[0]}) > 1, "the questions do not tell the arms apart"


async def test_a_routed_retriever_finds_alike_in_all_ways(pipeline: Any) -> None:
    retriever, asked = RoutedRetriever(pipeline=pipeline), ASKED[::2]
    ids = [[document.id for document in retriever.invoke(one)] for one in asked]
    others = [
        [await retriever.ainvoke(one) for one in asked],
        retriever.batch(asked),
        await retriever.abatch(asked),
        [next(iter(retriever.stream(one))) for one in asked],
    ]
    assert [[[document.id for document in found] for found in way] for way in others] == [ids] * 4
    assert {len(found) for found in ids} == {0, 3}


@pytest.mark.parametrize("arm", each(ARMS))
def test_chat_models_over_the_adapters_answer_as_the_arms_do(pipeline: Any, model: Any, arm: str) -> None:
    """Passages too reach the base in the shape that it was trained on."""
    models = {("base" if name == "base" else f"adapter:{name}"): ChatLora(backend=model, model=name) for name in NAMES}
    parts = {"models": models, "retriever": pipeline.retriever, "options": {"max_new_tokens": 12}}
    chain = RoutedChain.from_parts(router=pipeline.router, **parts)
    for question in (ASKED[0], ASKED[5]):
        assert chain.invoke(question, arm=arm)["answer"] == pipeline.answer(question, arm=arm).text


# ------------------------------------------------------------------------------------------- the chat model by itself


@pytest.fixture(scope="module")
def chat(model: Any) -> ChatLora:
    return ChatLora(backend=model, max_tokens=8)


@pytest.mark.parametrize("name", each(NAMES))
async def test_the_chat_model_answers_alike_in_all_six_ways(chat: ChatLora, name: str) -> None:
    said = [chat.invoke(one, model=name) for one in ASKED[:4]]
    texts = [one.text for one in said]
    assert [(await chat.ainvoke(one, model=name)).text for one in ASKED[:4]] == texts
    assert [one.text for one in chat.batch(ASKED[:4], model=name)] == texts
    assert [one.text for one in await chat.abatch(ASKED[:4], model=name)] == texts
    assert ["".join(piece.text for piece in chat.stream(one, model=name)) for one in ASKED[:4]] == texts
    streamed = [[piece async for piece in chat.astream(one, model=name)] for one in ASKED[:4]]
    assert ["".join(piece.text for piece in pieces) for pieces in streamed] == texts
    for one, other in zip(said, chat.batch(ASKED[:4], model=name), strict=True):
        assert one.usage_metadata == other.usage_metadata
        assert one.response_metadata == other.response_metadata


def test_sixty_four_threads_get_each_their_own_adapters_answer(chat: ChatLora) -> None:
    jobs = [(ASKED[i % 4], NAMES[i % 3]) for i in range(64)]
    expected = {job: chat.invoke(job[0], model=job[1]).text for job in set(jobs)}
    gate = threading.Barrier(64)

    def ask(job: tuple[str, str]) -> str:
        gate.wait()
        return chat.invoke(job[0], model=job[1]).text

    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(ask, jobs)) == [expected[job] for job in jobs]


async def test_a_hundred_at_once_get_each_their_own_answer(pipeline: Any) -> None:
    chain = RoutedChain(pipeline=pipeline, options={"max_new_tokens": 6})
    jobs = [(ASKED[i % 5], ARMS[i % 6]) for i in range(100)]
    expected = {job: chain.invoke(job[0], arm=job[1])["answer"] for job in set(jobs)}
    said = await asyncio.gather(*(chain.ainvoke(question, arm=arm) for question, arm in jobs))
    assert [one["answer"] for one in said] == [expected[job] for job in jobs]


async def test_the_loop_ticks_while_the_model_writes(pipeline: Any) -> None:
    """A loop that stands still while one answer is written ticks once or twice, however long that takes."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticker = asyncio.create_task(tick())
    chain = RoutedChain(pipeline=pipeline)
    for arm in ("adapter:tickets", "rag+adapter:tickets"):
        for ask in (chain.ainvoke, lambda one, **request: chain.abatch([one], **request)):
            before = ticks
            await ask(ASKED[5], arm=arm)
            assert ticks - before >= 5
        before = ticks
        _ = [part async for part in chain.astream(ASKED[5], arm=arm)]
        assert ticks - before >= 5
    ticker.cancel()


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not happened():
            await asyncio.sleep(0.01)


async def test_cancelling_frees_the_worker(pipeline: Any, model: Any) -> None:
    chain = RoutedChain(pipeline=pipeline, options={"max_new_tokens": 1500, "stop": []})
    endless, model.renderer.end_ids = model.renderer.end_ids, (-1,)  # nothing ends an answer
    try:
        task = asyncio.create_task(chain.ainvoke(ASKED[0], arm="base"))
        stream = chain.astream(ASKED[0], arm="adapter:facts")
        await anext(stream)
        await until(lambda: model.worker.call(lambda: model.worker.in_use(None)))
        task.cancel()
        await stream.aclose()
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        model.renderer.end_ids = endless
    # Two rows that were cancelled leave at the next step, or the worker would write for a long time yet.
    assert chain.invoke(ASKED[0], arm="base", options={"max_new_tokens": 2})["answer"]
    assert not model.worker.call(lambda: any(model.worker._live()))


async def test_time_outs_are_honoured_and_the_worker_serves_on(pipeline: Any, chat: ChatLora) -> None:
    with pytest.raises(GenerationError, match="no answer within"):
        chat.invoke(ASKED[5], model="tickets", timeout=1e-6)
    with pytest.raises(GenerationError, match="no answer within"):
        await chat.ainvoke(ASKED[5], model="tickets", timeout=1e-6)
    assert chat.invoke(ASKED[5], model="tickets").text
    late = RoutedChain(pipeline=pipeline, options={"timeout": 1e-6})
    with pytest.raises(GenerationError, match="no answer within"):  # every fallback is late too
        late.invoke(ASKED[0], arm="base")


# ------------------------------------------------------------------------------------------------------ what is traced


class Keeper(BaseTracer):
    """Keeps whole run trees."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Any] = []

    def _persist_run(self, run: Any) -> None:
        self.runs.append(run)


def shape(run: Any) -> Any:
    return (run.run_type, run.name, [shape(child) for child in run.child_runs])


async def test_native_retrieval_and_generation_are_runs_of_the_trace(pipeline: Any) -> None:
    keeper = Keeper()
    chain, config = RoutedChain(pipeline=pipeline), {"callbacks": [keeper], "tags": ["mine"]}
    request = {"arm": "rag+adapter:tickets"}
    chain.invoke(ASKED[6], config, **request)
    await chain.ainvoke(ASKED[6], config, **request)
    chain.batch([ASKED[6]], config, **request)
    await chain.abatch([ASKED[6]], config, **request)
    list(chain.stream(ASKED[6], config, **request))
    _ = [part async for part in chain.astream(ASKED[6], config, **request)]
    expected = [("retriever", "KnowledgeBase", []), ("llm", "LoraGenerator", [])]
    assert [shape(run) for run in keeper.runs] == [("chain", "RoutedChain", [("chain", "route", []), *expected])] * 6
    for run in keeper.runs:
        route, found, written = run.child_runs
        assert len(found.outputs["documents"]) == 3
        assert written.outputs["generations"][0][0]["text"] == run.outputs["answer"]
        assert written.extra["metadata"]["ls_model_name"] == "tickets"
        assert written.extra["metadata"]["ragft_decision_id"] == route.outputs["id"]
        assert "mine" in written.tags


async def test_what_is_gathered_for_deciding_stands_under_the_decision(pipeline: Any) -> None:
    keeper = Keeper()
    RoutedChain(pipeline=pipeline).invoke(ASKED[0], {"callbacks": [keeper]})
    route = keeper.runs[0].child_runs[0]
    gathered = [child.run_type for child in route.child_runs]
    assert route.outputs["stage"] == "question" or gathered[0] == "retriever"


async def test_tokens_of_native_arms_are_events(pipeline: Any) -> None:
    events = [
        event
        async for event in RoutedChain(pipeline=pipeline).astream_events(ASKED[5], version="v2", arm="adapter:tickets")
    ]
    pieces = [event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream"]
    assert "".join(pieces) == events[-1]["data"]["output"]["answer"]
    assert len(pieces) > 1
    names = [event["event"] for event in events if event["event"] != "on_chain_stream"]
    assert names.index("on_chat_model_start") < names.index("on_chat_model_stream") < names.index("on_chat_model_end")


async def test_a_failing_native_arm_ends_its_run_with_the_error(pipeline: Any) -> None:
    keeper = Keeper()
    chain = RoutedChain(pipeline=pipeline, options={"timeout": 1e-6})
    for ask in (chain.invoke, lambda *a, **k: list(chain.stream(*a, **k))):
        with pytest.raises(GenerationError):
            ask(ASKED[0], {"callbacks": [keeper]}, arm="rag")
    for run in keeper.runs:
        written = [child for child in run.child_runs if child.run_type == "llm"]
        assert written
        assert all("no answer within" in child.error for child in written)
