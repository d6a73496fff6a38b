"""RoutedQueryEngine: the answer, the nodes, the decision; sync, async and streamed alike; decided once."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core import QueryBundle, VectorStoreIndex
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import BaseQueryEngine, RetrieverQueryEngine, TransformQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import QueryEngineTool
from llamaindex_stubs import (
    FACTS,
    AsyncEchoLLM,
    EchoLLM,
    PlainGenerator,
    PlainRetriever,
    SleepyRetriever,
    WordEmbedding,
    WordRouter,
    plain_pipeline,
)

from ragft_plugin.arms import Arm
from ragft_plugin.errors import ConfigError, DataError, GenerationError, PartialAnswerError
from ragft_plugin.llama_index import RoutedQueryEngine, RoutedRetriever, pipeline_from
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.types import Decision

PORT = "Which port does the relay of Norden use?"


def texts(pieces: list[str]) -> str:
    return "".join(pieces)


async def all_of(response: AsyncStreamingResponse) -> str:
    return texts([piece async for piece in response.async_response_gen()])


def test_it_is_a_query_engine() -> None:
    assert BaseQueryEngine in RoutedQueryEngine.__mro__


def test_an_arm_that_reads_gives_its_passages_as_source_nodes() -> None:
    response = RoutedQueryEngine(plain_pipeline()).query(PORT)
    assert isinstance(response, Response)
    assert response.response == f"model read p1,p2 for {PORT}"
    assert [(n.node_id, n.text, n.score) for n in response.source_nodes] == [
        ("p1", FACTS["p1"], 5.0),
        ("p2", FACTS["p2"], 4.0),
    ]
    assert response.source_nodes[0].node.ref_doc_id == "p1"


def test_a_closed_book_arm_gives_no_source_nodes_and_no_empty_response() -> None:
    response = RoutedQueryEngine(plain_pipeline()).query("Who are you?")
    assert str(response) == "model read nothing for Who are you?"
    assert response.source_nodes == []


def test_the_decision_is_in_the_metadata() -> None:
    response = RoutedQueryEngine(plain_pipeline()).query(PORT)
    decision = (response.metadata or {})["decision"]
    assert isinstance(decision, Decision)
    assert (decision.arm, decision.confidence, decision.propensities) == ("rag", 0.9, {"rag": 1.0, "base": 0.0})


@pytest.mark.parametrize("question", [PORT, "Who are you?"])
@pytest.mark.parametrize("gather", [False, True])
async def test_sync_async_and_streams_answer_alike(question: str, gather: bool) -> None:
    engine = RoutedQueryEngine(plain_pipeline(gather=gather))
    streaming = RoutedQueryEngine(plain_pipeline(gather=gather), streaming=True)
    whole = engine.query(question)
    awaited = await engine.aquery(question)
    streamed = streaming.query(question)
    astreamed = await streaming.aquery(question)
    assert isinstance(streamed, StreamingResponse)
    assert isinstance(astreamed, AsyncStreamingResponse)
    assert str(whole) == str(awaited) == texts(list(streamed.response_gen)) == await all_of(astreamed)
    ids = [[n.node_id for n in r.source_nodes] for r in (whole, awaited, streamed, astreamed)]
    assert ids == [ids[0]] * 4
    assert {(r.metadata or {})["decision"].arm for r in (whole, awaited, streamed, astreamed)} == {
        "rag" if question == PORT else "base"
    }


def test_one_query_retrieves_once_and_decides_once() -> None:
    for gather in (False, True):
        for streaming in (False, True):
            pipeline = plain_pipeline(gather=gather)
            str(RoutedQueryEngine(pipeline, streaming=streaming).query(PORT))
            assert pipeline.retriever.calls == 1  # type: ignore[union-attr]
            assert pipeline.router.calls == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("question", [PORT, "Who are you?"])
async def test_retrieve_then_synthesize_decides_and_retrieves_once(question: str) -> None:
    pipeline = plain_pipeline()
    engine = RoutedQueryEngine(pipeline)
    bundle = QueryBundle(question)
    nodes = engine.retrieve(bundle)
    response = engine.synthesize(bundle, nodes)
    assert str(response) == str(engine.query(question))
    assert pipeline.router.calls == 2  # type: ignore[attr-defined] # once for the pair, once for query
    assert pipeline.retriever.calls == (2 if question == PORT else 0)  # type: ignore[union-attr]
    anodes = await engine.aretrieve(bundle)
    assert str(await engine.asynthesize(bundle, anodes)) == str(response)
    assert pipeline.router.calls == 3  # type: ignore[attr-defined]


def test_nodes_that_were_filtered_in_between_keep_their_decision() -> None:
    pipeline = plain_pipeline()
    engine = RoutedQueryEngine(pipeline)
    nodes = engine.retrieve(QueryBundle(PORT))
    response = engine.synthesize(QueryBundle(PORT), [nodes[1]])
    assert str(response) == f"model read p2 for {PORT}"
    assert [n.node_id for n in response.source_nodes] == ["p2"]
    assert (response.metadata or {})["decision"].id == "d1"
    assert pipeline.router.calls == 1  # type: ignore[attr-defined]


def test_nodes_changed_in_place_are_what_is_read() -> None:
    engine = RoutedQueryEngine(plain_pipeline())
    nodes = engine.retrieve(QueryBundle(PORT))
    nodes.pop(0)
    assert str(engine.synthesize(QueryBundle(PORT), nodes)) == f"model read p2 for {PORT}"


def test_nodes_from_elsewhere_are_routed_and_read() -> None:
    engine = RoutedQueryEngine(plain_pipeline())
    found = [NodeWithScore(node=TextNode(id_="x", text="elsewhere"))]
    extra = NodeWithScore(node=TextNode(id_="y", text="extra"))
    response = engine.synthesize(QueryBundle(PORT), found, [extra])
    assert str(response) == f"model read x for {PORT}"
    assert [n.node_id for n in response.source_nodes] == ["x", "y"]


def test_it_works_inside_a_transforming_engine() -> None:
    class Shout:
        def run(self, query: Any, metadata: Any = None) -> QueryBundle:
            return QueryBundle(query.query_str.upper())

        __call__ = run

    pipeline = plain_pipeline()
    wrapped = TransformQueryEngine(RoutedQueryEngine(pipeline), Shout())  # type: ignore[arg-type]
    assert str(wrapped.query("which port of norden")) == "model read p1,p2 for WHICH PORT OF NORDEN"


def test_it_works_as_a_tool() -> None:
    tool = QueryEngineTool.from_defaults(RoutedQueryEngine(plain_pipeline()), name="ask", description="answers")
    output = tool.call(input=PORT)
    assert output.content == f"model read p1,p2 for {PORT}"
    assert output.raw_output.metadata["decision"].arm == "rag"


def test_a_routed_retriever_lends_its_pipeline() -> None:
    pipeline = plain_pipeline()
    assert RoutedQueryEngine(RoutedRetriever(pipeline)).pipeline is pipeline


def test_a_failing_arm_falls_back_before_its_first_token() -> None:
    def fail() -> Exception:
        return GenerationError("down")

    for streaming in (False, True):
        arms = [Arm("base", PlainGenerator("base")), Arm("rag", PlainGenerator("rag", fail=fail), PlainRetriever())]
        engine = RoutedQueryEngine(Pipeline(arms, WordRouter({"port": "rag"}, "base")), streaming=streaming)
        response = engine.query(PORT)
        decision = (response.metadata or {})["decision"]
        assert (decision.arm, decision.fallback) == ("rag", "base")
        assert response.source_nodes == []
        assert str(response) == f"base read nothing for {PORT}"


def test_a_failure_after_the_first_token_carries_the_text() -> None:
    class Breaking(PlainGenerator):
        def stream(self, prompt: Any, **options: Any) -> Any:
            yield "so far"
            raise GenerationError("gone")

    engine = RoutedQueryEngine(Pipeline([Arm("base", Breaking("b"))], WordRouter({}, "base")), streaming=True)
    response = engine.query("Who?")
    with pytest.raises(PartialAnswerError) as caught:
        list(response.response_gen)  # type: ignore[union-attr]
    assert caught.value.text == "so far"


def test_an_answer_without_a_single_piece_is_the_empty_string() -> None:
    class Silent(PlainGenerator):
        def stream(self, prompt: Any, **options: Any) -> Any:
            return iter(())

    engine = RoutedQueryEngine(Pipeline([Arm("base", Silent("b"))], WordRouter({}, "base")), streaming=True)
    response = engine.query("Who?")
    assert list(response.response_gen) == []  # type: ignore[union-attr]
    assert (response.metadata or {})["decision"].arm == "base"


def test_an_empty_question_is_refused() -> None:
    with pytest.raises(DataError, match="question is empty"):
        RoutedQueryEngine(plain_pipeline()).query("  ")


def test_a_request_is_checked_when_the_engine_is_made() -> None:
    with pytest.raises(ConfigError, match="no arm named 'rga'"):
        RoutedQueryEngine(plain_pipeline(), arm="rga")
    with pytest.raises(ConfigError, match="k must be at least 1"):
        RoutedQueryEngine(plain_pipeline(), k=0)


def test_with_request_leaves_the_engine_as_it_was() -> None:
    engine = RoutedQueryEngine(plain_pipeline())
    forced = engine.with_request(arm="rag", k=1)
    assert str(forced.query("Who?")).startswith("model read p1 for")
    assert (forced.query("Who?").metadata or {})["decision"].forced
    assert str(engine.query("Who?")) == "model read nothing for Who?"


# ---------------------------------------------------------------------------------- over LlamaIndex' own parts


def index() -> VectorStoreIndex:
    nodes = [TextNode(id_=i, text=t, metadata={"source": i}) for i, t in FACTS.items()]
    return VectorStoreIndex(nodes, embed_model=WordEmbedding())


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every look at the global settings an error."""
    from llama_index.core import settings as module

    def refuse(self: Any) -> Any:
        raise AssertionError("global Settings were read")

    for name in ("llm", "embed_model"):
        monkeypatch.setattr(module._Settings, name, property(refuse))


@pytest.mark.usefixtures("no_settings")
@pytest.mark.parametrize("model", [EchoLLM, AsyncEchoLLM])
@pytest.mark.parametrize("source", ["index", "retriever", "sync retriever"])
async def test_users_own_retriever_and_llm_make_a_routed_engine_in_one_call(model: Any, source: str) -> None:
    made = {"index": index, "retriever": lambda: index().as_retriever(), "sync retriever": SleepyRetriever}
    router = WordRouter({"port": "rag", "legal": "adapter:legal"}, "base")
    parts = {"llm": model(), "retriever": made[source](), "adapters": {"legal": model()}, "k": 2}
    engine = RoutedQueryEngine.from_defaults(router=router, **parts)
    assert list(engine.pipeline.arms) == ["base", "rag", "adapter:legal", "rag+adapter:legal"]
    response = engine.query(PORT)
    expected = (
        "<system: Answer from these passages, briefly. If they do not hold the answer, say: I do not know.\n\n"
        f"[1] {FACTS['p1']}\n\n[2] {FACTS['p2']}\nuser: {PORT}\nassistant: >"
    )
    assert str(response) == expected
    assert [n.node_id for n in response.source_nodes] == ["p1", "p2"]
    assert str(await engine.aquery(PORT)) == expected
    streaming = RoutedQueryEngine.from_defaults(router=router, streaming=True, **parts)
    assert str(streaming.query(PORT)) == expected
    assert await all_of(await streaming.aquery(PORT)) == expected  # type: ignore[arg-type]
    assert str(engine.query("A legal matter")) == "<user: A legal matter\nassistant: >"


def test_prompts_of_the_arms_can_be_seen_and_replaced() -> None:
    router = WordRouter({"port": "rag"}, "base")
    engine = RoutedQueryEngine.from_defaults(
        router=router, llm=EchoLLM(), retriever=index(), adapters={"legal": EchoLLM()}, k=1
    )
    prompts = engine.get_prompts()
    assert {"base:closed_book", "rag:open_book", "rag+adapter/legal:open_book"} <= set(prompts)
    engine.update_prompts({"rag:open_book": PromptTemplate("{context_str} | {query_str}")})
    assert str(engine.query(PORT)) == f"<[1] {FACTS['p1']} | {PORT}>"


def test_users_own_query_engines_are_arms() -> None:
    docs = RetrieverQueryEngine.from_args(SleepyRetriever(), llm=EchoLLM())
    tools = [
        QueryEngineTool.from_defaults(docs, name="docs", description="documents"),
        QueryEngineTool.from_defaults(RoutedQueryEngine(plain_pipeline(), arm="base"), name="expert", description="x"),
    ]
    engine = RoutedQueryEngine.from_tools(tools, router=WordRouter({"port": "docs"}, "expert"), k=2)
    response = engine.query(PORT)
    assert FACTS["p1"] in str(response)
    assert FACTS["p2"] in str(response)
    assert FACTS["p3"] not in str(response)
    assert [n.node_id for n in response.source_nodes] == ["p1", "p2"]


def test_costs_must_name_arms() -> None:
    with pytest.raises(ConfigError, match="costs name arms that there are not: rga"):
        pipeline_from(router=WordRouter({}, "base"), llm=EchoLLM(), costs={"rga": 1.0})
