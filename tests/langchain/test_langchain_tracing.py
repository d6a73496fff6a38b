"""What callbacks and traces see."""

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.base import BaseTracer
from langchain_stubs import DOCUMENTS, Echo, ListRetriever, ReadingChatModel, WordRouter

from ragft_plugin.langchain import RoutedChain, RoutedRetriever
from ragft_plugin.types import Gather


class Keeper(BaseTracer):
    """Keeps whole run trees."""

    def __init__(self):
        super().__init__()
        self.runs = []

    def _persist_run(self, run):
        self.runs.append(run)


def a_chain(router=None, **options):
    return RoutedChain.from_parts(
        router=router or WordRouter(("look", "rag")), models=ReadingChatModel(), retriever=ListRetriever(), **options
    )


def shape(run):
    return (run.run_type, run.name, [shape(child) for child in run.child_runs])


async def test_the_trace_shows_the_decision_then_what_followed_from_it():
    expected = (
        "chain",
        "RoutedChain",
        [("chain", "route", []), ("retriever", "ListRetriever", []), ("llm", "reader", [])],
    )
    keeper = Keeper()
    config = {"callbacks": [keeper], "tags": ["mine"], "metadata": {"user": "u1"}}
    chain = a_chain()
    chain.invoke("look: Avel", config)
    await chain.ainvoke("look: Avel", config)
    list(chain.stream("look: Avel", config))
    _ = [part async for part in chain.astream("look: Avel", config)]
    chain.batch(["look: Avel"], config)
    await chain.abatch(["look: Avel"], config)
    assert [shape(run) for run in keeper.runs] == [expected] * 6
    for run in keeper.runs:
        route, found, written = run.child_runs
        assert route.outputs["arm"] == "rag"
        assert route.outputs["id"] == written.extra["metadata"]["ragft_decision_id"]
        assert written.extra["metadata"]["ragft_arm"] == found.extra["metadata"]["ragft_arm"] == "rag"
        assert written.extra["metadata"]["user"] == "u1"
        assert "mine" in written.tags


async def test_what_is_gathered_for_deciding_stands_under_the_decision():
    keeper = Keeper()
    a_chain(WordRouter(("look", "rag"), stages=[Gather("passages")])).invoke("look", {"callbacks": [keeper]})
    (run,) = keeper.runs
    assert shape(run)[2] == [("chain", "route", [("retriever", "ListRetriever", [])]), ("llm", "reader", [])]


async def test_in_a_batch_every_question_has_a_trace_of_its_own():
    keeper = Keeper()
    questions = ["look: Avel", "tell me", "look: Corda"]
    chain = a_chain()
    chain.batch(questions, {"callbacks": [keeper]})
    await chain.abatch(questions, {"callbacks": [keeper]})
    assert [run.inputs["input"] for run in keeper.runs] == questions * 2
    for run in keeper.runs:
        looks = run.inputs["input"].startswith("look")
        assert [child.run_type for child in run.child_runs] == ["chain", *["retriever"] * looks, "llm"]
        assert run.inputs["input"] in str(run.child_runs[-1].inputs)


async def test_events_come_in_the_order_of_the_work():
    events = [
        (event["event"], event["name"])
        async for event in a_chain().astream_events("look: the capital of Avel", version="v2")
        if event["event"] != "on_chain_stream"
    ]
    assert events == [
        ("on_chain_start", "RoutedChain"),
        ("on_chain_start", "route"),
        ("on_chain_end", "route"),
        ("on_retriever_start", "ListRetriever"),
        ("on_retriever_end", "ListRetriever"),
        ("on_chat_model_start", "reader"),
        *[("on_chat_model_stream", "reader")] * 5,
        ("on_chat_model_end", "reader"),
        ("on_chain_end", "RoutedChain"),
    ]


async def test_the_final_event_holds_the_whole_answer():
    events = [event async for event in a_chain().astream_events("look: the capital of Avel", version="v2")]
    output = events[-1]["data"]["output"]
    assert output["answer"] == "Brin it is [1]"
    assert output["decision"]["arm"] == "rag"


async def test_a_routed_retriever_traces_its_decision_and_its_source():
    keeper = Keeper()
    retriever = RoutedRetriever.from_retriever(ListRetriever(), router=WordRouter(otherwise="rag"))
    retriever.invoke("Avel", {"callbacks": [keeper], "tags": ["t"]})
    await retriever.ainvoke("Avel", {"callbacks": [keeper], "tags": ["t"]})
    for run in keeper.runs:
        assert shape(run) == (
            "retriever",
            "RoutedRetriever",
            [("chain", "route", []), ("retriever", "ListRetriever", [])],
        )
        assert run.extra["metadata"]["ls_retriever_name"] == "routed"
        assert run.extra["metadata"]["ls_vector_store_provider"] == "ListRetriever"
        assert "t" in run.child_runs[-1].tags


def test_a_failed_decision_closes_its_run_with_the_error():
    keeper = Keeper()
    router = WordRouter(otherwise="base")
    router.next = lambda *_, **__: 1 / 0
    chain = RoutedChain.from_parts(router=router, models=Echo())
    with pytest.raises(ZeroDivisionError):
        chain.invoke("Who?", {"callbacks": [keeper]})
    (run,) = keeper.runs
    assert run.error is not None
    assert run.child_runs[0].error is not None


def test_a_chain_inside_an_arm_keeps_its_own_trace():
    inner = RoutedChain.from_parts(router=WordRouter(), models=ReadingChatModel(name="inner"))
    outer = RoutedChain.from_parts(router=WordRouter(), models=RunnableLambda(lambda asked: inner.invoke(asked)))
    keeper = Keeper()
    outer.batch(["Who?", "Why?"], {"callbacks": [keeper]})
    assert len(keeper.runs) == 2
    for run in keeper.runs:
        (inside,) = run.child_runs[-1].child_runs
        assert shape(inside) == ("chain", "RoutedChain", [("chain", "route", []), ("llm", "inner", [])])


def test_handlers_of_the_constructor_see_tokens():
    class Tokens(BaseCallbackHandler):
        def __init__(self):
            self.seen = []

        def on_llm_new_token(self, token, **_):
            self.seen.append(token)

    handler = Tokens()
    list(a_chain().stream("look: Esk", {"callbacks": [handler]}))
    assert handler.seen[:4] == ["Fars", " it", " is", " [1]"]


def test_documents_carry_the_decision_and_the_callers_are_not_changed():
    retriever = RoutedRetriever.from_retriever(ListRetriever(), router=WordRouter(otherwise="rag"))
    found = retriever.invoke("Avel")
    assert {one.metadata["decision"]["arm"] for one in found} == {"rag"}
    assert [one.id for one in found] == ["Avel", "Corda", "Esk"]
    assert all("decision" not in one.metadata for one in DOCUMENTS)
