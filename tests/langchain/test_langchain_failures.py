"""What happens when a part fails, is silent, or is too slow; and when nobody wants the answer any more."""

import asyncio
import threading
import time

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_stubs import Echo, ListRetriever, ReadingChatModel, WordRouter, forbidden

from ragft_plugin.errors import ConfigError, DataError, GenerationError, PartialAnswerError
from ragft_plugin.langchain import RoutedChain, RoutedRetriever, from_chat_model
from ragft_plugin.types import Prompt


def chain_of(base, broken, **options):
    router = WordRouter(otherwise="adapter:broken")
    return RoutedChain.from_parts(router=router, models={"base": base, "adapter:broken": broken}, **options)


def silent_model():
    return RunnableLambda(lambda _: AIMessage(""))


def slow_model():
    return RunnableLambda(lambda _: time.sleep(2) or "late")


@pytest.mark.parametrize("broken", [Echo(fails=True), ReadingChatModel(fails=True), silent_model()])
async def test_another_arm_answers_and_the_decision_says_so(broken):
    chain = chain_of(Echo("base"), broken)
    answers = [
        chain.invoke("Who?"),
        await chain.ainvoke("Who?"),
        chain.batch(["Who?"])[0],
        next(iter(chain.stream("Who?"))),
        await anext(aiter(chain.astream("Who?"))),
    ]
    for answer in answers:
        assert answer["answer"].startswith("base")
        assert answer["decision"]["arm"] == "adapter:broken"
        assert answer["decision"]["fallback"] == "base"
        assert "base answered instead" in answer["decision"]["reasons"][0]


async def test_a_model_that_is_too_slow_is_replaced():
    chain = chain_of(Echo("base"), slow_model(), options={"timeout": 0.05})
    answers = [chain.invoke("Who?"), await chain.ainvoke("Who?"), *list(chain.stream("Who?"))[:1]]
    for answer in answers:
        assert answer["answer"].startswith("base")
        assert "TimeoutError" in answer["decision"]["reasons"][0]


async def test_a_stream_that_takes_too_long_ends_with_its_text_so_far():
    generator = from_chat_model(ReadingChatModel(name="one two three four five", delay=0.04))
    pieces = []

    async def read_async():
        async for piece in generator.astream(Prompt("Who?"), timeout=0.1):
            pieces.append(piece)

    def read():
        pieces.extend(iter(generator.stream(Prompt("Who?"), timeout=0.1)))

    with pytest.raises(TimeoutError):
        await read_async()
    assert "one two".startswith("".join(pieces))
    with pytest.raises(TimeoutError):
        read()


async def test_after_the_first_piece_the_error_carries_the_text():
    chain = chain_of(Echo("base"), ReadingChatModel(name="broken", fails_after=1))
    for read in (lambda: list(chain.stream("Who?")), lambda: asyncio.run(drain(chain.astream("Who?")))):
        with pytest.raises(PartialAnswerError) as caught:
            await asyncio.to_thread(read)
        assert caught.value.text == "broken"


async def drain(parts):
    return [part async for part in parts]


def test_when_no_arm_answers_the_last_error_is_named():
    chain = chain_of(Echo("base", fails=True), Echo("broken", fails=True))
    with pytest.raises(GenerationError, match="base is out of order"):
        chain.invoke("Who?")


def test_a_retriever_that_raises_makes_a_closed_book_arm_answer():
    chain = RoutedChain.from_parts(
        router=WordRouter(otherwise="rag"), models=Echo("base"), retriever=RunnableLambda(lambda _: 1 / 0)
    )
    answer = chain.invoke("Who?")
    assert (answer["answer"], answer["context"]) == ("base read nothing: Who?", [])
    assert "ZeroDivisionError" in answer["decision"]["reasons"][0]


def test_a_routed_retriever_passes_its_retrievers_error_on():
    retriever = RoutedRetriever.from_retriever(RunnableLambda(lambda _: 1 / 0), router=WordRouter(otherwise="rag"))
    with pytest.raises(ZeroDivisionError):
        retriever.invoke("Who?")


def test_a_retriever_that_returns_no_documents_is_named():
    retriever = RoutedRetriever.from_retriever(RunnableLambda(lambda _: "Rome"), router=WordRouter(otherwise="rag"))
    with pytest.raises(GenerationError, match=r"RunnableLambda returned str instead of a list of documents"):
        retriever.invoke("Who?")


def test_one_bad_question_does_not_spoil_a_batch_that_returns_exceptions():
    base = Echo("base")
    chain = RoutedChain.from_parts(router=WordRouter(), models=base)
    first, second, third = chain.batch(["Who?", "", "Why?"], return_exceptions=True)
    assert isinstance(second, DataError)
    assert [first["answer"], third["answer"]] == ["base read nothing: Who?", "base read nothing: Why?"]
    assert base.batches == [2]
    with pytest.raises(DataError, match="empty"):
        chain.batch(["Who?", "", "Why?"])


async def test_one_failing_question_does_not_spoil_a_batch_that_returns_exceptions():
    picky = RunnableLambda(lambda asked: asked["input"] if "bad" not in asked["input"] else forbidden())
    chain = RoutedChain.from_parts(router=WordRouter(), models=picky)
    for answers in (
        chain.batch(["good", "bad", "fine"], return_exceptions=True),
        await chain.abatch(["good", "bad", "fine"], return_exceptions=True),
    ):
        assert [one if isinstance(one, Exception) else one["answer"] for one in answers][::2] == ["good", "fine"]
        assert isinstance(answers[1], GenerationError)


def test_a_pipeline_without_models_retrieves_but_says_that_it_cannot_answer():
    retriever = RoutedRetriever.from_retriever(ListRetriever(), router=WordRouter(otherwise="rag"))
    assert len(retriever.invoke("Avel")) == 3
    with pytest.raises(ConfigError, match="made without models"):
        RoutedChain(pipeline=retriever).invoke("Avel")


def test_a_cost_for_an_arm_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"costs are given for adapter:x, but the arms are: base"):
        RoutedChain.from_parts(router=WordRouter(), models=Echo(), costs={"adapter:x": 1.0})


async def test_the_loop_keeps_ticking_while_an_answer_is_produced():
    """Plain generators and sync-only Runnables too: an answer that waits for the loop's ticks would else never come."""
    ticked = threading.Event()

    async def tick():
        while True:
            for _ in range(20):
                await asyncio.sleep(0.001)
            ticked.set()

    def wait(*_):
        ticked.clear()
        assert ticked.wait(60), "the loop stood still"
        return "late"

    class Waiting(Echo):
        def text(self, prompt):
            return wait()

    ticker = asyncio.create_task(tick())
    for model in (Waiting("base"), RunnableLambda(wait)):
        chain = RoutedChain.from_parts(router=WordRouter(otherwise="rag"), models=model, retriever=ListRetriever())
        assert (await chain.ainvoke("Who?"))["answer"] == "late"
        assert [one["answer"] for one in await chain.abatch(["Who?", "What?"])] == ["late"] * 2
        assert "".join([part["answer"] async for part in chain.astream("Why?")]) == "late"
    ticker.cancel()


async def test_cancelling_frees_the_model():
    model = ReadingChatModel(delay=0.05)
    chain = RoutedChain.from_parts(router=WordRouter(), models=model)
    task = asyncio.create_task(chain.ainvoke("Who?"))
    await asyncio.sleep(0.02)
    assert model.running[0] == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.running[0] == 0


async def test_a_reader_who_leaves_the_stream_frees_the_model():
    model = ReadingChatModel(name="one two three", delay=0.01)
    chain = RoutedChain.from_parts(router=WordRouter(), models=model)
    stream = chain.astream("Who?")
    assert (await anext(stream))["answer"] == "one"
    assert model.running[0] == 1
    await stream.aclose()
    assert model.running[0] == 0
