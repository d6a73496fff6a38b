"""The routed chain: one decision, the same answer whichever way it is asked for."""

import asyncio
import json

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables.utils import AddableDict
from langchain_stubs import Echo, ListRetriever, ReadingChatModel, WordRouter

from ragft_plugin.langchain import RoutedChain, RoutedRetriever, decision_from_dict

QUESTIONS = ["What is the capital of Avel?", "What is the recipe?", "Look up the capital of Corda", "Which skill?"]
RULES = (("Look up", "rag"), ("skill", "adapter:skills"), ("Avel", "rag+adapter:skills"))


def a_chain(**options):
    models = {"base": ReadingChatModel(name="base"), "adapter:skills": ReadingChatModel(name="skills")}
    return RoutedChain.from_parts(router=WordRouter(*RULES), models=models, retriever=ListRetriever(), **options)


def same(one, other):
    """Equal but for the decision's random id."""
    strip = lambda value: {**value, "decision": {**value["decision"], "id": ""}}  # noqa: E731
    return strip(one) == strip(other)


async def test_invoke_ainvoke_batch_and_stream_agree_for_every_arm():
    chain = a_chain()
    alone = [chain.invoke(question) for question in QUESTIONS]
    assert [one["decision"]["arm"] for one in alone] == ["rag+adapter:skills", "base", "rag", "adapter:skills"]
    assert [one["answer"] for one in alone] == ["Brin it is [1]", "base guesses", "Delo it is [1]", "skills guesses"]
    assert [len(one["context"]) for one in alone] == [3, 0, 3, 0]
    others = [
        [await chain.ainvoke(question) for question in QUESTIONS],
        chain.batch(QUESTIONS),
        await chain.abatch(QUESTIONS),
        [sum_of(list(chain.stream(question))) for question in QUESTIONS],
        [sum_of([part async for part in chain.astream(question)]) for question in QUESTIONS],
    ]
    for other in others:
        assert all(same(one, another) for one, another in zip(alone, other, strict=True))


def sum_of(parts):
    total = AddableDict()
    for part in parts:
        total = total + part
    return dict(total)


def test_the_answer_is_streamed_in_the_models_own_pieces():
    parts = list(a_chain().stream("Look up the capital of Avel"))
    assert [part["answer"] for part in parts] == ["Brin", " it", " is", " [1]"]
    assert set(parts[0]) == {"input", "decision", "context", "answer"}


def test_a_batch_decides_once_and_arms_of_one_model_are_one_batch_of_it():
    router = WordRouter(("look", "rag"))
    base, retriever = Echo("base"), ListRetriever()
    chain = RoutedChain.from_parts(router=router, models=base, retriever=retriever)
    answers = chain.batch([f"{word} {i}" for i in range(32) for word in ("look", "tell")])
    assert [call["n"] for call in router.calls] == [64]
    assert base.batches == [64]
    assert [one["answer"].split(": ")[1] for one in answers[:3]] == ["look 0", "tell 0", "look 1"]
    assert len(retriever.asked) == 32


def test_the_decision_is_json_and_comes_back_unchanged():
    decision = a_chain().invoke("Which skill?")["decision"]
    assert json.loads(json.dumps(decision)) == decision
    assert decision_from_dict(decision).arm == "adapter:skills"


def test_a_decision_that_is_passed_in_is_not_made_again():
    chain = a_chain()
    decision = chain.invoke("Which skill?")["decision"]
    chain.pipeline.router.decided.clear()
    answer = chain.invoke({"input": "What is the capital of Avel?", "decision": decision})
    assert answer["decision"] == decision
    assert answer["answer"] == "skills guesses"
    assert chain.pipeline.router.decided == []


def test_a_routed_retriever_stands_for_its_pipeline_and_settings():
    retriever = RoutedRetriever(pipeline=a_chain().pipeline, k=2)
    chain = RoutedChain(pipeline=retriever)
    assert len(chain.invoke("Look up the capital of Esk")["context"]) == 2
    assert retriever.pipeline.router.decided == ["Look up the capital of Esk"]


def test_settings_of_one_call_reach_router_retriever_and_generator():
    router, base = WordRouter(otherwise="base"), Echo("base")
    chain = RoutedChain.from_parts(
        router=router, models=base, retriever=ListRetriever(), options={"max_new_tokens": 5, "seed": 1}
    )
    answer = chain.invoke("Who?", arm="rag", k=1, cost_weight=0.5, options={"seed": 2})
    assert router.calls[-1] == {"n": 1, "cost_weight": 0.5, "arm": "rag"}
    assert len(answer["context"]) == 1
    assert base.options == [{"max_new_tokens": 5, "seed": 2}]
    assert answer["decision"]["forced"]


def test_messages_are_condensed_to_a_standalone_question():
    condense = ReadingChatModel(name="condenser", knows={"Rome": "When was Avel founded?"})
    chain = a_chain(condense=condense)
    chat = [HumanMessage("Who founded Rome?"), AIMessage("Romulus."), HumanMessage("When?")]
    answer = chain.invoke(chat)
    assert answer["input"] == "When?"
    assert chain.pipeline.router.decided == ["When was Avel founded?"]
    (asked,) = condense.calls
    assert "AI: Romulus." in asked["messages"][-1].text


def test_messages_without_history_are_asked_as_they_are():
    chain = a_chain(condense=ReadingChatModel(fails=True))
    assert (
        chain.invoke({"messages": [("system", "Be brief."), ("human", "Which skill?")]})["answer"] == "skills guesses"
    )


async def test_a_hundred_calls_at_once_get_each_their_own_answer():
    chain = RoutedChain.from_parts(
        router=WordRouter(("look", "rag")), models=ReadingChatModel(delay=0.01), retriever=ListRetriever(delay=0.01)
    )
    questions = [f"look: the capital of {land}, {i}" for i in range(34) for land in ("Avel", "Corda", "Esk")]
    answers = await asyncio.gather(*(chain.ainvoke(question) for question in questions))
    assert [one["input"] for one in answers] == questions
    assert [one["answer"].split()[0] for one in answers] == ["Brin", "Delo", "Fars"] * 34


@pytest.mark.parametrize("bad", [[], "", "   ", {}, {"input": ""}, {"messages": []}, [AIMessage("Hm?")], 7])
def test_an_input_without_a_question_is_refused_by_name(bad):
    with pytest.raises(ValueError, match=r"question|empty") as caught:
        a_chain().invoke(bad)
    assert type(caught.value).__name__ == "DataError"


async def test_without_a_router_of_ones_own_a_cold_one_decides_by_what_the_passages_cover():
    routing = pytest.importorskip("ragft_plugin.routing")
    chain = RoutedChain.from_parts(models=ReadingChatModel(), retriever=ListRetriever())
    assert isinstance(chain.pipeline.router, routing.Router)
    answer = chain.invoke("What is the capital of Avel?")
    assert answer["decision"]["arm"] == "rag"
    assert answer["answer"] == "Brin it is [1]"
    assert json.loads(json.dumps(answer["decision"]))["reasons"]
    assert same(answer, await chain.ainvoke("What is the capital of Avel?"))
    assert [one["decision"]["arm"] for one in chain.batch(["What is the capital of Avel?"] * 3)] == ["rag"] * 3
