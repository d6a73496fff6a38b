"""Converters, selector, LoraLLM, chat, workflow, store: what the conformance suite does not know of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage, ImageBlock
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine, RetryQueryEngine, RouterQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import (
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.tools import QueryEngineTool
from llama_index.core.tools.types import ToolMetadata
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.core.workflow import StartEvent, step
from llamaindex_stubs import (
    FACTS,
    EchoLLM,
    PlainGenerator,
    PlainRetriever,
    SleepyRetriever,
    WordEmbedding,
    WordRouter,
    plain_pipeline,
)

import ragft_plugin.llama_index as extra
from ragft_plugin.arms import Arm
from ragft_plugin.errors import ConfigError, DataError, GenerationError
from ragft_plugin.llama_index import (
    EmbeddingEncoder,
    EncoderEmbedding,
    KnowledgeBaseVectorStore,
    LoraLLM,
    RoutedChatEngine,
    RoutedEvent,
    RoutedQueryEngine,
    RoutedReranker,
    RoutedRetriever,
    RoutedSelector,
    RoutedWorkflow,
    decision_from_dict,
    decision_to_dict,
    filter_from,
    from_llm,
    from_query_engine,
    from_retriever,
    metadata_filters_from,
    node_from,
    passage_from,
    pipeline_from,
)
from ragft_plugin.llama_index.testing import recorded
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.prompts import closed_book, messages, open_book
from ragft_plugin.retrieval import HashingEncoder, KnowledgeBase, as_encoder, import_index, index_folder
from ragft_plugin.retrieval.filters import matches
from ragft_plugin.types import Decision, Evidence, Generation, Passage, Prompt, Usage

PORT = "Which port does the relay of Norden use?"
TOOLS = [ToolMetadata(name="rag", description="documents"), ToolMetadata(name="base", description="knows")]

# ---------------------------------------------------------------------------------------------------- package


def test_public_names_are_sorted_and_all_there() -> None:
    assert extra.__all__ == sorted(extra.__all__)
    assert all(getattr(extra, name).__name__ == name for name in extra.__all__)


def test_a_missing_extra_names_the_command() -> None:
    code = (
        "import sys; sys.modules['llama_index'] = None\n"
        "from ragft_plugin.errors import MissingExtraError\n"
        "try:\n    from ragft_plugin.llama_index import RoutedQueryEngine\n"
        "except MissingExtraError as error:\n    assert \"pip install 'ragft-plugin[llama-index]'\" in str(error)\n"
        "else:\n    raise SystemExit('no error')"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_the_folder_loads_no_llama_index() -> None:
    code = "import sys, ragft_plugin.llama_index; sys.exit(any(m.startswith('llama_index') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -------------------------------------------------------------------------------------------------- converters


def test_a_node_survives_the_way_to_a_passage_and_back() -> None:
    node = TextNode(id_="n", text="In Rome.", metadata={"page": 3}, start_char_idx=5)
    node.relationships[NodeRelationship.NEXT] = RelatedNodeInfo(node_id="m")
    passage = passage_from(NodeWithScore(node=node, score=0.25))
    assert (passage.id, passage.text, passage.score, passage.metadata) == ("n", "In Rome.", 0.25, {"page": 3})
    back = node_from(passage)
    assert back.node is node
    assert back.score == 0.25


def test_a_node_without_a_score_is_worth_nothing() -> None:
    assert passage_from(NodeWithScore(node=TextNode(text="a"))).score == 0.0


def test_a_decision_on_a_node_is_hidden_from_models_and_leaves_the_original_alone() -> None:
    node = TextNode(id_="n", text="In Rome.", metadata={"page": 3})
    decision = Decision("d", "rag", {"rag": 1.0}, reasons=("because",))
    routed = node_from(passage_from(NodeWithScore(node=node)), decision).node
    assert node.metadata == {"page": 3}
    assert decision_from_dict(routed.metadata["decision"]) == decision
    assert routed.get_content(metadata_mode="llm") == node.get_content(metadata_mode="llm")  # type: ignore[arg-type]
    assert routed.get_content(metadata_mode="embed") == node.get_content(metadata_mode="embed")  # type: ignore[arg-type]


@given(
    st.builds(
        Decision,
        st.text(),
        st.text(),
        st.dictionaries(st.text(), st.floats(0, 1)),
        values=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
        confidence=st.floats(0, 1),
        reasons=st.lists(st.text()).map(tuple),
        forced=st.booleans(),
        fallback=st.none() | st.text(),
    )
)
@settings(deadline=None, derandomize=True, max_examples=50)
def test_decision_dicts_are_inverse(decision: Decision) -> None:
    assert decision_from_dict(decision_to_dict(decision)) == decision


def test_something_else_is_no_decision() -> None:
    with pytest.raises(DataError, match="this is not a decision: missing"):
        decision_from_dict({"arm": "rag"})


def test_the_default_prompts_are_those_of_the_package() -> None:
    read = tuple(Passage(i, text) for i, text in FACTS.items())
    for prompt in (closed_book("Who?"), open_book("Who?", read), open_book("Who?", ())):
        asked: list[Any] = []

        class Listening(EchoLLM):
            chats: bool = True

            def chat(self, messages: Any, **kwargs: Any) -> Any:
                asked.extend(messages)  # noqa: B023 -- called within the same turn of the loop
                return super().chat(messages, **kwargs)

        from_llm(Listening()).generate([prompt])
        assert [{"role": m.role.value, "content": m.content} for m in asked] == messages(prompt)


def test_options_are_renamed_and_absent_ones_left_out() -> None:
    llm = EchoLLM(seen=[])
    from_llm(llm).generate([closed_book("Who?")], max_new_tokens=5, temperature=0.0, stop=None)
    assert llm.seen == [{"max_tokens": 5, "temperature": 0.0}]


def test_logprobs_margins_and_usage_are_taken_over() -> None:
    (made,) = from_llm(EchoLLM()).generate([closed_book("Who?")])
    assert made.logprobs == (-0.5,)
    assert made.margins == (1.0,)
    assert made.usage == Usage(7, 2)


def test_what_is_no_part_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="expected a LlamaIndex LLM or a generator, got str: 'default'"):
        from_llm("default")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a LlamaIndex retriever or index, got int"):
        from_retriever(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="RoutedRetriever routes already"):
        from_retriever(RoutedRetriever(plain_pipeline()))


def test_parts_of_the_package_are_taken_as_they_are() -> None:
    generator, retriever = PlainGenerator("g"), PlainRetriever()
    assert from_llm(generator) is generator
    assert from_retriever(retriever) is retriever


def test_k_is_asked_of_the_index_without_changing_the_users_retriever() -> None:
    nodes = [TextNode(id_=i, text=t) for i, t in FACTS.items()]
    own = VectorStoreIndex(nodes, embed_model=WordEmbedding()).as_retriever(similarity_top_k=1)
    assert len(from_retriever(own).retrieve([PORT], 3)[0]) == 3
    assert own.similarity_top_k == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({"source": "p3"}, ["p3"]),
        ({"source": {"$in": ["p2", "p3"]}}, ["p2", "p3"]),
        ({"$not": {"source": "p1"}}, ["p2", "p3"]),
        ({"source": {"$exists": True}}, ["p1", "p2", "p3"]),
        ({"open": True}, []),
    ],
)
@pytest.mark.parametrize("indexed", [True, False])
async def test_an_access_filter_never_lets_another_passage_through(
    scope: dict[str, Any], expected: list[str], indexed: bool
) -> None:
    nodes = [TextNode(id_=i, text=t, metadata={"source": i}) for i, t in FACTS.items()]
    source: Any = VectorStoreIndex(nodes, embed_model=WordEmbedding()) if indexed else SleepyRetriever()
    retriever: Any = from_retriever(source)
    assert sorted(p.id for p in retriever.retrieve([PORT], 3, scope)[0]) == expected
    assert sorted(p.id for p in (await retriever.aretrieve([PORT], 3, scope))[0]) == expected


@pytest.mark.parametrize("values", [[None, "p3"], [True, "p3"], [1, "p3"]])
async def test_an_access_filter_that_llama_index_cannot_say_is_obeyed_all_the_same(values: list[Any]) -> None:
    nodes = [TextNode(id_=i, text=t, metadata={"source": i}) for i, t in FACTS.items()]
    retriever: Any = from_retriever(VectorStoreIndex(nodes, embed_model=WordEmbedding()))
    assert [p.id for p in retriever.retrieve([PORT], 3, {"source": {"$in": values}})[0]] == ["p3"]
    assert [p.id for p in (await retriever.aretrieve([PORT], 3, {"source": {"$in": values}}))[0]] == ["p3"]
    with pytest.raises(ConfigError, match=r"unknown operator '\$like'"):
        retriever.retrieve([PORT], 3, {"source": {"$like": "p3"}})
    with pytest.raises(ConfigError, match=r"unknown operator '\$like'"):
        await retriever.aretrieve([PORT], 3, {"source": {"$like": "p3"}})


def test_an_access_filter_reaches_the_vector_store_before_k() -> None:
    nodes = [TextNode(id_=i, text=t, metadata={"source": i}) for i, t in FACTS.items()]
    retriever = from_retriever(VectorStoreIndex(nodes, embed_model=WordEmbedding()))
    assert [p.id for p in retriever.retrieve([PORT], 1, {"source": "p3"})[0]] == ["p3"]


def test_an_opaque_query_engine_refuses_an_access_filter() -> None:
    routed = RoutedQueryEngine(plain_pipeline())
    arm = from_query_engine("docs", RetryQueryEngine(routed, evaluator=None))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be told the access filter"):
        arm.prompt(Evidence("Who?", scope={"team": "a"}))
    reading = from_query_engine("docs", routed)
    with pytest.raises(ConfigError, match="cannot be told the access filter"):
        reading.retriever.retrieve(["Who?"], 2, {"team": "a"})  # type: ignore[union-attr]


def test_a_synthesizer_writes_open_book_answers_only() -> None:
    llm = EchoLLM()
    manager = CallbackManager([])
    synthesizer = get_response_synthesizer(llm=llm, callback_manager=manager, response_mode="simple_summarize")  # type: ignore[arg-type]
    for streaming in (False, True):
        engine = RoutedQueryEngine.from_defaults(
            router=WordRouter({"port": "rag"}, "base"),
            llm=llm,
            retriever=SleepyRetriever(),
            response_synthesizer=synthesizer,
            streaming=streaming,
            k=1,
        )
        assert "Context information is below" in str(engine.query(PORT))
        assert str(engine.query("Who?")) == "<user: Who?\nassistant: >"
    assert synthesizer._streaming is False
    prompts = engine.get_prompts()
    assert {"rag:text_qa_template", "rag:closed_book"} <= set(prompts)


def test_node_postprocessors_see_what_was_found() -> None:
    longest = RoutedReranker(lambda query, texts: [len(text) for text in texts], top_n=1)
    engine = RoutedQueryEngine.from_defaults(
        router=WordRouter({"port": "rag"}, "base"),
        llm=EchoLLM(),
        retriever=SleepyRetriever(),
        node_postprocessors=[longest],
    )
    assert [n.node_id for n in engine.query(PORT).source_nodes] == ["p1"]


def test_without_a_router_the_cold_one_looks_at_the_passages() -> None:
    engine = RoutedQueryEngine.from_defaults(llm=EchoLLM(), retriever=SleepyRetriever(), k=1)
    decision = (engine.query(PORT).metadata or {})["decision"]
    assert decision.router_version == "cold"
    assert decision.arm == "rag"


# ------------------------------------------------------------------------------------------------------ filters

VALUES = st.integers(-2, 2) | st.sampled_from(["a", "b"])
CONDITIONS = st.one_of(
    VALUES,
    st.builds(lambda op, v: {op: v}, st.sampled_from(["$eq", "$ne"]), VALUES),
    st.builds(lambda op, v: {op: v}, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), st.integers(-2, 2)),
    st.builds(
        lambda op, v: {op: v}, st.sampled_from(["$in", "$nin"]), st.lists(st.integers(-2, 2), min_size=1, max_size=3)
    ),
)
LEAVES = st.dictionaries(st.sampled_from(["x", "y"]), CONDITIONS, min_size=1, max_size=2)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(
            lambda op, parts: {op: parts}, st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3)
        ),
        inner.map(lambda one: {"$not": one}),
    ),
    max_leaves=5,
)


@given(FILTERS, st.dictionaries(st.sampled_from(["x", "y"]), VALUES))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_filters_mean_the_same_after_the_way_there_and_back(filter: dict[str, Any], metadata: dict[str, Any]) -> None:
    back = filter_from(metadata_filters_from(filter))
    assert back is not None
    assert matches(back, metadata) == matches(filter, metadata)


@pytest.mark.parametrize("filter", [{"x": True}, {"x": None}, {"x": {"$exists": True}}, {"$or": []}, {"$not": {}}])
def test_what_llama_index_cannot_say_is_refused(filter: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot be said as MetadataFilters"):
        metadata_filters_from(filter)


@pytest.mark.parametrize(
    ("operator", "value", "metadata", "expected"),
    [
        (FilterOperator.ANY, ["a", "b"], {"x": ["b"]}, True),
        (FilterOperator.ALL, ["a", "b"], {"x": ["b"]}, False),
        (FilterOperator.CONTAINS, "b", {"x": ["b"]}, True),
        (FilterOperator.IS_EMPTY, None, {}, True),
        (FilterOperator.IS_EMPTY, None, {"x": 1}, False),
        (FilterOperator.IS_EMPTY, None, {"x": None}, True),
        (FilterOperator.IS_EMPTY, None, {"x": ""}, True),
        (FilterOperator.IS_EMPTY, None, {"x": "a"}, False),
        (FilterOperator.IS_EMPTY, None, {"x": ["a"]}, False),
        (FilterOperator.IS_EMPTY, None, {"x": 0}, False),
        (FilterOperator.IS_EMPTY, None, {"x": False}, False),
    ],
)
def test_operators_over_lists(operator: FilterOperator, value: Any, metadata: Any, expected: bool) -> None:
    found = filter_from(MetadataFilters(filters=[MetadataFilter(key="x", value=value, operator=operator)]))
    assert found is not None
    assert matches(found, metadata) is expected


def test_text_match_is_refused() -> None:
    one = MetadataFilter(key="x", value="a", operator=FilterOperator.TEXT_MATCH)
    with pytest.raises(ConfigError, match="operator 'text_match' is not known"):
        filter_from(MetadataFilters(filters=[one]))


# ----------------------------------------------------------------------------------------------------- selector


def test_the_reason_tells_scores_and_causes() -> None:
    selection = RoutedSelector(plain_pipeline()).select(TOOLS, PORT)
    assert selection.ind == 0
    assert selection.reason == "rag, confidence 0.90; values rag 0.90, base 0.10; the question goes to rag"
    assert selection.decision.arm == "rag"  # type: ignore[attr-defined]


def test_in_the_router_query_engine_the_decision_is_in_the_result() -> None:
    tools = [
        QueryEngineTool.from_defaults(RoutedQueryEngine(plain_pipeline(), arm="rag"), name="rag", description="d"),
        QueryEngineTool.from_defaults(RoutedQueryEngine(plain_pipeline(), arm="base"), name="base", description="k"),
    ]
    engine = RouterQueryEngine(RoutedSelector(plain_pipeline()), tools, llm=EchoLLM())
    response = engine.query(PORT)
    assert str(response) == f"model read p1,p2 for {PORT}"
    assert (response.metadata or {})["selector_result"].decision.arm == "rag"


def test_one_arm_may_stand_for_two_tools_that_are_combined() -> None:
    router = WordRouter({"port": "rag+adapter"}, "adapter")
    selector = RoutedSelector.from_router(
        router, tools={"rag+adapter": ("docs", "expert"), "adapter": "expert"}, fallback="docs"
    )
    choices = [ToolMetadata(name="docs", description="d"), ToolMetadata(name="expert", description="e")]
    assert selector.select(choices, PORT).inds == [0, 1]
    assert selector.select(choices, "Who?").inds == [1]
    engine = RouterQueryEngine(
        selector,
        [
            QueryEngineTool.from_defaults(RoutedQueryEngine(plain_pipeline()), name="docs", description="d"),
            QueryEngineTool.from_defaults(RoutedQueryEngine(plain_pipeline()), name="expert", description="e"),
        ],
        llm=EchoLLM(),
    )
    assert len(engine.query(PORT).source_nodes) == 4


def test_an_arm_that_is_not_on_offer_gives_way_to_the_best_that_is() -> None:
    selector = RoutedSelector.from_router(WordRouter({"port": "gone", "x": "rag"}, "base"))
    result = selector.select(TOOLS, PORT)
    assert result.ind == 0
    assert result.reason.startswith("rag, the best of those on offer, in place of gone, confidence 0.90")


@pytest.mark.parametrize("question", ["", "  ", "x" * 30_000])
async def test_a_question_that_cannot_be_decided_gets_the_safe_choice(question: str) -> None:
    selector = RoutedSelector(plain_pipeline(), fallback="base")
    for result in (selector.select(TOOLS, question), await selector.aselect(TOOLS, question)):
        assert result.ind == 1
        assert result.reason.startswith("safe choice: DataError")


async def test_a_retriever_that_is_down_gets_the_safe_choice() -> None:
    class Down(PlainRetriever):
        def retrieve(self, *args: Any, **kwargs: Any) -> Any:
            raise OSError("connection refused")

    router = WordRouter({"port": "rag"}, "base", gather=True)
    for selector in (RoutedSelector.from_router(router, retriever=Down()), RoutedSelector.from_router(router)):
        assert selector.select(TOOLS, PORT).reason.startswith("safe choice: ")
        assert (await selector.aselect(TOOLS, PORT)).ind == 0


def test_choices_that_stand_for_no_arm_are_an_error_not_a_guess() -> None:
    selector = RoutedSelector(plain_pipeline())
    strangers = [ToolMetadata(name=name, description="?") for name in ("a", "b", "c")]
    with pytest.raises(ConfigError, match=r"no choice stands for an arm: choices \['a', 'b', 'c'\]"):
        selector.select(strangers, PORT)
    with pytest.raises(ConfigError, match="nothing to select from"):
        selector.select([], PORT)
    with pytest.raises(ConfigError, match="the fallback 'x' is not among the choices"):
        RoutedSelector(plain_pipeline(), fallback="x").select(TOOLS, PORT)
    with pytest.raises(ConfigError, match="tools names no arm: 'rga'"):
        RoutedSelector(plain_pipeline(), tools={"rga": "docs"})


# ------------------------------------------------------------------------------------------------------ LoraLLM


class Model:
    context = 512

    def __init__(self) -> None:
        self.made: dict[str | None, PlainGenerator] = {}

    def generator(self, adapter: str | None = None) -> PlainGenerator:
        return self.made.setdefault(adapter, PlainGenerator(adapter or "base"))


def test_the_adapter_is_chosen_per_call() -> None:
    llm = LoraLLM(Model(), adapter="legal")
    assert llm.complete("Who?").text == "legal read nothing for Who?"
    assert llm.complete("Who?", adapter="tax").text == "tax read nothing for Who?"
    assert llm.complete("Who?", adapter=None).text == "base read nothing for Who?"
    assert llm.chat([ChatMessage(role="user", content="Who?")], adapter="tax").message.content == (
        "tax read nothing for Who?"
    )
    assert llm.adapter == "legal"


def test_options_reach_the_generator_under_its_names() -> None:
    model = Model()
    LoraLLM(model, max_new_tokens=9).complete("Who?", temperature=0.5, stop=["."], seed=None)
    LoraLLM(model).complete("Who?", max_tokens=3)
    assert model.made[None].options == [
        {"max_new_tokens": 9, "temperature": 0.5, "stop": ["."]},
        {"max_new_tokens": 3, "temperature": 0.0},
    ]


def test_a_conversation_keeps_its_turns() -> None:
    asked: list[Prompt] = []

    class Listening(Model):
        def generator(self, adapter: str | None = None) -> Any:
            class Ear(PlainGenerator):
                def generate(self, prompts: Any, **options: Any) -> list[Generation]:
                    asked.extend(prompts)
                    return [Generation("yes", logprobs=(-0.1,), margins=(0.4,), usage=Usage(3, 1))]

            return Ear("ear")

    said = [("system", "Be brief."), ("user", "Who founded Rome?"), ("assistant", "Romulus."), ("user", "When?")]
    response = LoraLLM(Listening()).chat([ChatMessage(role=role, content=text) for role, text in said])
    assert asked == [Prompt("When?", turns=tuple(said[:-1]))]
    assert response.raw["usage"] == {"prompt_tokens": 3, "completion_tokens": 1}  # type: ignore[index]
    assert [[one.logprob for one in token] for token in response.logprobs or ()] == [[-0.1, -0.5]]


def test_what_is_not_text_or_has_no_question_is_refused() -> None:
    llm = LoraLLM(Model())
    with pytest.raises(DataError, match="block of type 'image'"):
        llm.chat([ChatMessage(role="user", blocks=[ImageBlock(url="http://localhost/a.png")])])
    with pytest.raises(DataError, match="nothing to answer"):
        llm.chat([ChatMessage(role="assistant", content="Hello")])


def test_a_lora_llm_in_an_arm_renders_passages_as_in_training() -> None:
    model = Model()
    assert from_llm(LoraLLM(model, adapter="legal")) is model.made["legal"]


def test_an_llm_hides_its_model_from_what_is_written_down() -> None:
    assert "_model" not in LoraLLM(Model(), adapter="legal").to_dict()


# -------------------------------------------------------------------------------------------- chat and workflow


def test_a_turn_carries_its_decision_and_its_sources() -> None:
    chat = RoutedChatEngine(RoutedQueryEngine(plain_pipeline()), EchoLLM())
    told = chat.chat(PORT)
    assert (told.metadata or {})["decision"].arm == "rag"
    assert [n.node_id for n in told.source_nodes] == ["p1", "p2"]
    streamed = chat.stream_chat("Who?", chat_history=[])
    assert streamed.metadata["decision"].arm == "base"  # type: ignore[attr-defined]
    assert "".join(streamed.response_gen) == "model read nothing for Who?"
    assert str(streamed) == "model read nothing for Who?"


def test_the_first_turn_costs_no_condensing() -> None:
    llm = EchoLLM(seen=[])
    chat = RoutedChatEngine(RoutedQueryEngine(plain_pipeline()), llm)
    chat.chat(PORT)
    assert llm.seen == []
    chat.chat("And the other?")
    assert len(llm.seen) == 1


def test_a_turn_that_broke_off_is_not_remembered() -> None:
    class Breaking(PlainGenerator):
        def stream(self, prompt: Any, **options: Any) -> Any:
            yield "so far"
            raise GenerationError("gone")

    pipeline = Pipeline([Arm("base", Breaking("b"))], WordRouter({}, "base"))
    chat = RoutedChatEngine(RoutedQueryEngine(pipeline), EchoLLM())
    with pytest.raises(GenerationError):
        list(chat.stream_chat("Who?").response_gen)
    assert chat.chat_history == []


def test_the_condensing_prompt_can_be_replaced() -> None:
    from llama_index.core.prompts import PromptTemplate

    chat = RoutedChatEngine(RoutedQueryEngine(plain_pipeline()), EchoLLM())
    chat.update_prompts({"condense_prompt": PromptTemplate("again: {question}")})
    chat.chat(PORT)
    assert str(chat.chat("And now?")) == "model read nothing for <again: And now?>"


async def test_a_workflow_decides_and_answers_in_two_steps() -> None:
    pipeline = plain_pipeline()
    response = await RoutedWorkflow(RoutedQueryEngine(pipeline)).run(query=PORT)
    assert str(response) == f"model read p1,p2 for {PORT}"
    assert pipeline.router.calls == 1  # type: ignore[attr-defined]


async def test_a_step_of_the_users_own_stands_before_the_others() -> None:
    class Polite(RoutedWorkflow):
        @step
        async def route(self, event: StartEvent) -> RoutedEvent:
            return RoutedEvent(routed=await self.engine.adecide(event.query.removeprefix("Please: ")))

    response = await Polite(RoutedQueryEngine(plain_pipeline())).run(query=f"Please: {PORT}")
    assert str(response) == f"model read p1,p2 for {PORT}"


# ------------------------------------------------------------------------------------------------ vector store


@pytest.fixture
def store(tmp_path: Path) -> KnowledgeBaseVectorStore:
    made = KnowledgeBaseVectorStore.from_path(tmp_path / "kb")
    made.add([TextNode(id_=i, text=t, metadata={"n": n}) for n, (i, t) in enumerate(FACTS.items())])
    return made


@pytest.mark.parametrize("mode", ["default", "hybrid", "mmr", "semantic_hybrid", "sparse", "text_search"])
def test_each_mode_finds_the_right_node_first(store: KnowledgeBaseVectorStore, mode: str) -> None:
    query = VectorStoreQuery(query_str="nine wells Norden", similarity_top_k=2, mode=VectorStoreQueryMode(mode))
    found = store.query(query)
    assert (found.ids or [])[0] == "p3"
    assert found.nodes is not None
    assert found.nodes[0].metadata == {"n": 2}


def test_words_that_no_node_has_are_found_by_no_text_search(store: KnowledgeBaseVectorStore) -> None:
    assert store.query(VectorStoreQuery(query_str="zebra", mode=VectorStoreQueryMode.TEXT_SEARCH)).ids == []


def test_a_mode_that_trains_a_classifier_is_refused(store: KnowledgeBaseVectorStore) -> None:
    with pytest.raises(ConfigError, match="query mode 'svm' is not known"):
        store.query(VectorStoreQuery(query_str="a", mode=VectorStoreQueryMode.SVM))


def test_a_vector_alone_finds_its_text(store: KnowledgeBaseVectorStore) -> None:
    vector = [float(x) for x in HashingEncoder().encode([FACTS["p2"]])[0]]
    assert store.query(VectorStoreQuery(query_embedding=vector)).ids == ["p2"]


def test_documents_limit_the_search(tmp_path: Path) -> None:
    made = KnowledgeBaseVectorStore.from_path(tmp_path / "other")
    for doc in ("d1", "d2"):
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=doc)}
        made.add([TextNode(id_=f"n{doc}", text="the same words", relationships=source)])
    assert made.query(VectorStoreQuery(query_str="words", similarity_top_k=9, doc_ids=["d2"])).ids == ["nd2"]


def test_a_source_of_the_users_own_is_kept_and_its_document_can_still_be_deleted(tmp_path: Path) -> None:
    made = KnowledgeBaseVectorStore.from_path(tmp_path / "other")
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="d1")}
    made.add([TextNode(id_="n", text="words", metadata={"source": "mine"}, relationships=source)])
    wanted = MetadataFilters(filters=[MetadataFilter(key="source", value="mine")])
    assert [node.metadata for node in made.get_nodes(filters=wanted)] == [{"source": "mine"}]
    made.delete("d1")
    assert made.get_nodes() == []


def of_document(id: str, document: str, **metadata: Any) -> TextNode:
    related = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}
    return TextNode(id_=id, text=f"words of {id}", metadata=metadata, relationships=related)


@pytest.mark.parametrize("encoder", ["hashing", None])
def test_deleting_a_document_deletes_its_nodes_and_no_others(tmp_path: Path, encoder: Any) -> None:
    base = KnowledgeBase.create(tmp_path / "kb", encoder)
    made = KnowledgeBaseVectorStore(base)
    own = of_document("n2", "D1", source="manual.pdf")
    other = of_document("n3", "D9", source="D1")
    made.add([of_document("n1", "D1"), own, other, TextNode(id_="n4", text="words of nobody")])
    base.add([Passage("p1", "words from a file", metadata={"source": "D1"})])
    made.delete("D1")
    assert base.ids() == ["n3", "n4"]
    made.delete("manual.pdf")
    made.delete("unknown")
    assert base.ids() == ["n3", "n4"]
    made.delete("D9")
    assert base.ids() == ["n4"]


def test_documents_are_found_by_columns_and_not_by_a_look_at_every_passage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = KnowledgeBaseVectorStore.from_path(tmp_path / "kb")
    made.add([of_document(f"n{i}", f"D{i % 5}", n=i % 2) for i in range(40)])
    read: list[int] = []
    get = KnowledgeBase.get

    def watched(self: KnowledgeBase, ids: Any) -> Any:
        read.append(len(ids))
        return get(self, ids)

    monkeypatch.setattr(KnowledgeBase, "get", watched)
    made.delete("D3")
    wanted = MetadataFilters(filters=[MetadataFilter(key="n", value=1), MetadataFilter(key="source", value="D4")])
    assert [node.node_id for node in made.get_nodes(filters=wanted)] == ["n9", "n19", "n29", "n39"]
    made.delete_nodes(filters=wanted)
    assert max(read) == 8
    assert len(made.client) == 40 - 8 - 4


def test_a_file_whose_passages_were_deleted_is_read_again_when_it_is_indexed(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.md").write_text("Ovens are hot.")
    made = KnowledgeBaseVectorStore.from_path(tmp_path / "kb")
    index_folder(made.client, tmp_path / "files")
    made.add([of_document("n", "D9", source="a.md")])
    made.delete("a.md")
    assert made.client.ids() == ["n"]
    index_folder(made.client, tmp_path / "files")
    assert "Ovens are hot." in [node.get_content() for node in made.get_nodes()]


def test_documents_limit_the_search_whichever_way_they_came(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for name in ("a.md", "b.md"):
        (tmp_path / "files" / name).write_text(f"Ovens are hot, says {name}.")
    made = KnowledgeBaseVectorStore.from_path(tmp_path / "kb")
    index_folder(made.client, tmp_path / "files")
    made.add([of_document("n", "c.md", source="a.md")])
    for document in ("a.md", "c.md"):
        query = VectorStoreQuery(query_str="hot ovens", similarity_top_k=9, doc_ids=[document])
        nodes = made.query(query).nodes or []
        assert [node.ref_doc_id for node in nodes] == [document]


def test_a_store_is_made_in_a_language_and_opened_in_it_again(tmp_path: Path) -> None:
    made = KnowledgeBaseVectorStore.from_path(tmp_path / "kb", language="german", encoder=None)
    made.add([TextNode(id_="1", text="Die Häuser sind alt.")])
    made.client.close()
    again = KnowledgeBaseVectorStore.from_path(tmp_path / "kb", language="german", encoder=None)
    assert again.query(VectorStoreQuery(query_str="Haus", mode=VectorStoreQueryMode.SPARSE)).ids == ["1"]


def test_the_threshold_of_mmr_weighs_nearness_against_difference(tmp_path: Path) -> None:
    made = KnowledgeBaseVectorStore.from_path(tmp_path / "kb")
    texts = ["the pump is red", "the pump is red indeed", "the pump stands in Sulm"]
    made.add([TextNode(id_=str(n), text=text) for n, text in enumerate(texts)])
    vector = [float(x) for x in HashingEncoder().encode([texts[0]])[0]]
    for asked in ({"query_str": texts[0]}, {"query_embedding": vector}):
        query = VectorStoreQuery(similarity_top_k=2, mode=VectorStoreQueryMode.MMR, **asked)  # type: ignore[arg-type]
        assert made.query(query, mmr_threshold=1.0).ids == ["0", "1"]
        assert made.query(query, mmr_threshold=0.2).ids == ["0", "2"]
        query.mmr_threshold = 1.0
        assert made.query(query).ids == ["0", "1"]
        query.mmr_threshold = 0.2
        assert made.query(query, mmr_threshold=1.0).ids == ["0", "2"]
    index = VectorStoreIndex.from_vector_store(made, embed_model=EncoderEmbedding(HashingEncoder()))
    options: dict[str, Any] = {"vector_store_query_mode": "mmr", "similarity_top_k": 2}
    for threshold, expected in ((1.0, ["0", "1"]), (0.2, ["0", "2"])):
        retriever = index.as_retriever(**options, vector_store_kwargs={"mmr_threshold": threshold})
        assert [found.node.node_id for found in retriever.retrieve(texts[0])] == expected


def test_a_weight_that_cannot_be_obeyed_is_refused(store: KnowledgeBaseVectorStore) -> None:
    query = VectorStoreQuery(query_str="wells", mode=VectorStoreQueryMode.HYBRID, alpha=0.3)
    with pytest.raises(ConfigError, match=r"alpha=0\.3 cannot be obeyed.*leave alpha out"):
        store.query(query)
    query.mode = VectorStoreQueryMode.DEFAULT
    assert store.query(query).ids == ["p3"]


def test_nodes_taken_over_from_an_index_keep_their_document(tmp_path: Path) -> None:
    nodes = [of_document("n1", "D1"), of_document("n2", "D1", source="manual.pdf"), TextNode(id_="n3", text="words")]
    index = VectorStoreIndex(nodes, embed_model=WordEmbedding())
    base = KnowledgeBase.create(tmp_path / "kb")
    import_index(base, index)
    made = KnowledgeBaseVectorStore(base)
    assert {node.node_id: node.ref_doc_id for node in made.get_nodes()} == {"n1": "D1", "n2": "D1", "n3": None}
    (own,) = made.get_nodes(["n2"])
    assert own.metadata["source"] == "manual.pdf"
    assert "D1" not in own.get_content(metadata_mode=MetadataMode.LLM)
    # Written back by the store, it is still of its document.
    made.add([own])
    made.delete("D1")
    assert base.ids() == ["n3"]


def test_deleting_without_saying_what_is_refused(store: KnowledgeBaseVectorStore) -> None:
    with pytest.raises(ConfigError, match="needs node_ids or filters"):
        store.delete_nodes()
    assert len(store.get_nodes()) == 3


def test_passages_that_came_another_way_are_nodes(tmp_path: Path) -> None:
    base = KnowledgeBase.create(tmp_path / "other")
    base.add([Passage("x", "Ovens are hot.", metadata={"source": "a.md", "page": 1})])
    (node,) = KnowledgeBaseVectorStore(base).get_nodes()
    assert (node.node_id, node.ref_doc_id, node.get_content()) == ("x", "a.md", "Ovens are hot.")
    (found,) = base.retrieve(["ovens"], 1)[0]
    assert "kb" in found.metadata
    assert (
        node_from(found).node.get_content(metadata_mode=MetadataMode.LLM) == "page: 1\nsource: a.md\n\nOvens are hot."
    )


def test_an_ingestion_pipeline_writes_into_the_store_and_an_index_reads_it(tmp_path: Path) -> None:
    store = KnowledgeBaseVectorStore.from_path(tmp_path / "kb")
    encoder = store.client.encoder
    assert encoder is not None
    embedding = EncoderEmbedding(encoder)
    documents = [Document(text=text, doc_id=f"doc-{i}", metadata={"file_name": f"{i}.md"}) for i, text in FACTS.items()]
    ingestion = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), embedding], vector_store=store
    )
    ingestion.run(documents=documents)
    assert {node.ref_doc_id for node in store.get_nodes()} == {"doc-p1", "doc-p2", "doc-p3"}
    index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
    found = index.as_retriever(similarity_top_k=1).retrieve("nine wells")
    assert found[0].node.ref_doc_id == "doc-p3"
    index.delete_ref_doc("doc-p3")
    assert {node.ref_doc_id for node in store.get_nodes()} == {"doc-p1", "doc-p2"}


def test_the_same_knowledge_base_serves_arms_and_store(store: KnowledgeBaseVectorStore) -> None:
    router = WordRouter({"port": "rag"}, "base")
    pipeline = pipeline_from(router=router, llm=EchoLLM(), retriever=store.client, k=1)
    (node,) = RoutedQueryEngine(pipeline).query(PORT).source_nodes
    assert (node.node_id, node.metadata) == ("p1", {"n": 0})


# ------------------------------------------------------------------------------------- embeddings, re-ranking


def test_embedding_wrappers_are_inverse() -> None:
    encoder = HashingEncoder(64)
    texts = list(FACTS.values())
    wrapped = EmbeddingEncoder(EncoderEmbedding(encoder))
    np.testing.assert_allclose(wrapped.encode(texts), encoder.encode(texts))
    assert wrapped.fingerprint == encoder.fingerprint
    assert wrapped.encode([]).shape == (0, 0)
    assert as_encoder(EncoderEmbedding(encoder)) is encoder


def test_an_embedding_that_changes_the_vectors_is_not_taken_for_the_encoder_behind_it() -> None:
    class Shouting(EncoderEmbedding):
        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return super()._get_text_embeddings([f"{text} shouted" for text in texts])

    # Its name is the string that stands there, as ever.
    assert as_encoder(Shouting(HashingEncoder(64))).fingerprint == "EncoderEmbedding:hashing-1-64"


async def test_questions_are_embedded_as_the_encoder_encodes_questions() -> None:
    class Asymmetric(HashingEncoder):
        def encode_queries(self, texts: Any) -> Any:
            return self.encode([text.removeprefix("query: ") for text in texts])

    embedding = EncoderEmbedding(Asymmetric(64))
    expected = HashingEncoder(64).encode(["red lamps"])[0].tolist()
    assert embedding.get_query_embedding("query: red lamps") == expected
    assert await embedding.aget_query_embedding("query: red lamps") == expected
    assert embedding.get_text_embedding("query: red lamps") != expected


def test_vectors_are_scaled_to_length_one() -> None:
    vectors = EmbeddingEncoder(WordEmbedding(model_name="words")).encode(list(FACTS.values()))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0)


def test_a_score_function_of_the_wrong_length_is_named() -> None:
    with pytest.raises(ConfigError, match="returned 0 scores for 1 texts"):
        RoutedReranker(lambda query, texts: []).postprocess_nodes(
            [NodeWithScore(node=TextNode(text="a"))], query_str="b"
        )


# --------------------------------------------------------------------------------------------- instrumentation


@pytest.mark.parametrize("gather", [False, True])
def test_the_decision_is_an_event_within_the_query(gather: bool) -> None:
    router = WordRouter({"port": "rag"}, "base", gather=gather)
    engine = RoutedQueryEngine.from_defaults(router=router, llm=EchoLLM(), retriever=SleepyRetriever())
    with recorded() as (events, spans):
        engine.query(PORT)
    names = [name for name in events.names if not name.startswith(("LLM", "Span"))]
    retrieval = ["RetrievalStartEvent", "RetrievalEndEvent"]
    decided = [*retrieval, "RouteDecisionEvent"] if gather else ["RouteDecisionEvent"]
    late = [] if gather else retrieval
    assert names == ["QueryStartEvent", *decided, "SynthesizeStartEvent", *late, "SynthesizeEndEvent", "QueryEndEvent"]
    event = next(e for e in events.events if e.class_name() == "RouteDecisionEvent")
    assert (event.arm, event.confidence, event.reasons) == ("rag", 0.9, ["the question goes to rag"])
    assert event.span_id is not None
    assert event.model_dump(mode="json")["values"] == {"rag": 0.9, "base": 0.1}
    told = [span.id_.partition("-")[0] for span in spans.completed_spans]
    assert {"RoutedQueryEngine.query", "RoutedQueryEngine._query", "RoutedQueryEngine.answer"} <= set(told)


def test_a_response_with_its_decision_can_be_exported_as_json() -> None:
    with recorded() as (events, _):
        RoutedQueryEngine(plain_pipeline()).query(PORT)
    dumped = events.events[-1].model_dump_json()
    assert '"arm":"rag"' in dumped


def test_a_callback_manager_sees_the_query_and_the_synthesis() -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    manager = CallbackManager([debug])
    engine = RoutedQueryEngine(plain_pipeline(), callback_manager=manager)
    engine.query(PORT)
    assert len(debug.get_event_pairs(CBEventType.QUERY)) == 1
    assert len(debug.get_event_pairs(CBEventType.SYNTHESIZE)) == 1
    # What the package's own parts do within is told as LlamaIndex' own would tell it.
    assert len(debug.get_event_pairs(CBEventType.RETRIEVE)) == 1
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 1
    RoutedRetriever(plain_pipeline(), callback_manager=manager).retrieve(PORT)
    assert len(debug.get_event_pairs(CBEventType.RETRIEVE)) == 2


def test_an_error_ends_the_callback_events_and_spans() -> None:
    def fail() -> Exception:
        return GenerationError("down")

    pipeline = Pipeline([Arm("base", PlainGenerator("b", fail=fail))], WordRouter({}, "base"))
    with recorded() as (_, spans), pytest.raises(GenerationError, match="no fallback answered"):
        RoutedQueryEngine(pipeline).query("Who?")
    assert not spans.open_spans
    assert spans.dropped_spans


def test_routed_nodes_carry_the_decision_and_do_not_pile_up() -> None:
    retriever = RoutedRetriever(plain_pipeline())
    nodes = retriever.retrieve(QueryBundle(PORT))
    assert {node.metadata["decision"]["arm"] for node in nodes} == {"rag"}
    assert retriever.retrieve("Who are you?") == []
    engine = RetrieverQueryEngine.from_args(retriever, llm=EchoLLM())
    assert "decision" not in str(engine.query(PORT))
