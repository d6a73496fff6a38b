"""LangChain's parts as parts of a pipeline."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import FakeListLLM
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_stubs import DOCUMENTS, Echo, ListRetriever, ReadingChatModel, WordRouter

from ragft_plugin.errors import ConfigError
from ragft_plugin.langchain import (
    RoutedRetriever,
    decision_from_dict,
    decision_to_dict,
    document_from,
    from_chat_model,
    from_retriever,
    passage_from,
)
from ragft_plugin.types import Decision, Passage, Prompt

json_values = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
passages = st.builds(
    Passage,
    id=st.text(min_size=1, max_size=8),
    text=st.text(max_size=20),
    score=st.floats(allow_nan=False, allow_infinity=False),
    metadata=st.dictionaries(st.sampled_from(["source", "page", "title"]), json_values),
)


@given(passages)
@settings(deadline=None, derandomize=True, max_examples=50)
def test_a_passage_survives_being_a_document(passage):
    assert passage_from(document_from(passage)) == passage


@given(
    st.dictionaries(st.text(min_size=1, max_size=5), st.floats(0, 1), min_size=1, max_size=4),
    st.lists(st.text(max_size=9), max_size=3),
)
@settings(deadline=None, derandomize=True, max_examples=50)
def test_a_decision_survives_being_a_dict(propensities, reasons):
    decision = Decision("d", next(iter(propensities)), propensities, reasons=tuple(reasons), fallback="base")
    assert decision_from_dict(decision_to_dict(decision)) == decision


def test_a_document_without_an_id_gets_the_same_one_every_time():
    one, other = (passage_from(Document("In Rome.", metadata={"source": "a.md"})) for _ in range(2))
    assert one.id == other.id
    assert one.id != passage_from(Document("In Rome.", metadata={"source": "b.md"})).id


def a_store():
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=6))
    store.add_documents(DOCUMENTS)
    return store


async def test_a_vector_store_gives_its_scores_best_first():
    store = a_store()
    expected = [(one.id, score) for one, score in store.similarity_search_with_score("Avel", k=2)]
    for source in (store, store.as_retriever()):
        found = from_retriever(source)
        assert [(one.id, one.score) for one in found.retrieve(["Avel"], 2)[0]] == expected
        assert [(one.id, one.score) for one in (await found.aretrieve(["Avel"], 2))[0]] == expected


async def test_a_store_that_tells_relevance_is_asked_for_it():
    class Store(VectorStore):
        """Measures distances, and knows what they are worth."""

        def similarity_search_with_score(self, query, k=4, **kwargs):
            return [(DOCUMENTS[0], 0.25)]

        def _select_relevance_score_fn(self):
            return lambda distance: 1.0 - distance

        def similarity_search(self, query, k=4, **kwargs):
            raise NotImplementedError

        @classmethod
        def from_texts(cls, *args, **kwargs):
            raise NotImplementedError

    found = from_retriever(Store())
    assert found.retrieve(["q"], 3)[0][0].score == 0.75
    assert (await found.aretrieve(["q"], 3))[0][0].score == 0.75


def test_a_filter_is_obeyed_by_every_kind_of_source():
    for source in (a_store(), a_store().as_retriever(), ListRetriever(), RunnableLambda(lambda _: DOCUMENTS)):
        found = from_retriever(source).retrieve(["Avel"], 3, {"land": {"$in": ["Corda", "Esk"]}})
        assert {one.id for one in found[0]} == {"Corda", "Esk"}


def test_the_callers_filter_holds_for_a_routed_retriever():
    retriever = RoutedRetriever.from_retriever(a_store(), router=WordRouter(otherwise="rag"), filter={"land": "Corda"})
    assert [one.id for one in retriever.invoke("Avel")] == ["Corda"]
    assert [one.id for one in retriever.invoke("Avel", filter={"land": "Esk"})] == ["Esk"]


def test_k_is_handed_over_or_cut():
    assert len(from_retriever(a_store()).retrieve(["q"], 1)[0]) == 1
    assert len(from_retriever(ListRetriever(k=3)).retrieve(["q"], 2)[0]) == 2
    found = from_retriever(RunnableLambda(lambda _: DOCUMENTS)).retrieve(["q"], 2)[0]
    assert [one.score for one in found] == [1.0, 0.5]


def test_a_routed_retriever_is_unwrapped():
    inner = RoutedRetriever.from_retriever(ListRetriever(), router=WordRouter(otherwise="rag"))
    assert from_retriever(inner) is inner.pipeline.retriever


@pytest.mark.parametrize("convert", [from_retriever, from_chat_model])
def test_what_is_no_part_is_refused(convert):
    with pytest.raises(ConfigError, match="str"):
        convert("my-model")


PROMPT = Prompt("What is the capital of Avel?", (Passage("1", "The capital of Avel is Brin."),))


@pytest.mark.parametrize(
    "model",
    [
        ReadingChatModel(),
        ReadingChatModel().bind(seed=1),
        ReadingChatModel().with_config(tags=["x"]),
        ReadingChatModel().with_fallbacks([ReadingChatModel()]),
        ReadingChatModel().with_retry(),
        ReadingChatModel().configurable_fields(delay=ConfigurableField(id="delay")),
        ReadingChatModel() | StrOutputParser(),
        FakeListLLM(responses=["Brin it is [1]"]),
        RunnablePassthrough.assign(context=lambda asked: asked["context"][0].page_content)
        | ChatPromptTemplate.from_messages([("system", "{context}"), ("human", "{input}")])
        | ReadingChatModel()
        | StrOutputParser(),
        RunnableLambda(lambda asked: {"answer": "Brin it is [1]"}),
    ],
)
async def test_whatever_answers_in_langchain_is_a_generator(model):
    generator = from_chat_model(model)
    assert generator.generate([PROMPT])[0].text == "Brin it is [1]"
    assert (await generator.agenerate([PROMPT]))[0].text == "Brin it is [1]"
    assert "".join(generator.stream(PROMPT)) == "Brin it is [1]"
    assert "".join([piece async for piece in generator.astream(PROMPT)]) == "Brin it is [1]"


def test_usage_and_logprobs_come_along():
    made = from_chat_model(ReadingChatModel()).generate([Prompt("Who?")])[0]
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (7, 2)
    assert made.logprobs == (-0.1, -0.2)
    # chosen minus the best of the others: -0.1 - -3 and -0.2 - -2
    assert made.margins == pytest.approx((2.9, 1.8))


def test_options_are_translated_for_models_and_absent_ones_left_out():
    model = ReadingChatModel()
    from_chat_model(model).generate([Prompt("Who?")], max_new_tokens=5, temperature=None, seed=1, stop=["."])
    assert {name: value for name, value in model.calls[0].items() if name != "messages"} == {
        "max_tokens": 5,
        "seed": 1,
        "stop": ["."],
    }
    from_chat_model(model, option_names={"max_new_tokens": "num_predict"}).generate([Prompt("?")], max_new_tokens=5)
    assert model.calls[1]["num_predict"] == 5


def test_a_generator_of_the_package_stays_what_it_is():
    echo = Echo()
    assert from_chat_model(echo) is echo
