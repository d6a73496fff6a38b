"""LangChain's parts as parts of a pipeline."""

from datetime import date
from decimal import Decimal
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.documents.compressor import BaseDocumentCompressor
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import FakeListLLM
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
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
    pipeline_from,
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


TEAMS = [Document(f"Plan {i}.", id=str(i), metadata={"team": 1 if i == 70 else 2}) for i in range(100)]


class Heedless(VectorStore):
    """Takes a filter and never looks at it; keeps how many it was asked for."""

    def __init__(self):
        self.asked = []

    def similarity_search(self, query, k=4, **kwargs):
        self.asked.append(k)
        return TEAMS[:k]

    def max_marginal_relevance_search(self, query, k=4, fetch_k=20, lambda_mult=0.5, **kwargs):
        self.asked.append(k)
        return TEAMS[:fetch_k][:k]

    @classmethod
    def from_texts(cls, *args, **kwargs):
        raise NotImplementedError


class AnyKeywords(BaseRetriever):
    """Swallows every keyword."""

    def _get_relevant_documents(self, query, *, run_manager, **kwargs):
        return list(TEAMS)


class Unaware(BaseRetriever):
    """Knows no keyword, so LangChain drops them on the way."""

    def _get_relevant_documents(self, query, *, run_manager):
        return list(TEAMS)


class AsTheyCome(BaseDocumentCompressor):
    """Compresses nothing."""

    def compress_documents(self, documents, query, callbacks=None):
        return documents


def compressing(base):
    retrievers = pytest.importorskip("langchain_classic.retrievers")
    return retrievers.ContextualCompressionRetriever(base_compressor=AsTheyCome(), base_retriever=base)


HEEDLESS = {
    "store": Heedless,
    "retriever": lambda: Heedless().as_retriever(),
    "mmr": lambda: Heedless().as_retriever(search_type="mmr"),
    "keywords": AnyKeywords,
    "compression of what takes no keywords": lambda: compressing(Unaware()),
    "compression of a store": lambda: compressing(Heedless().as_retriever()),
    "runnable": lambda: RunnableLambda(lambda question: list(TEAMS)),
}


@pytest.mark.parametrize("source", HEEDLESS)
async def test_an_access_filter_holds_whatever_the_source_does_with_it(source):
    found = from_retriever(HEEDLESS[source]())
    # Number 70 of 100 is the only one, so a source that takes k must be asked for more than two, and then again.
    assert [[one.id for one in batch] for batch in found.retrieve(["a", "b"], 2, {"team": 1})] == [["70"], ["70"]]
    assert [[one.id for one in batch] for batch in await found.aretrieve(["a"], 2, {"team": 1})] == [["70"]]
    assert found.retrieve(["a"], 2, {"team": 3}) == [[]]
    with pytest.raises(ConfigError, match="unknown operator"):
        found.retrieve(["a"], 2, {"team": {"$like": 1}})


def test_an_answer_reads_nothing_that_its_scope_excludes():
    pipeline = pipeline_from(models=Echo(), retriever=Heedless(), router=WordRouter(otherwise="rag"), k=2)
    answer = pipeline.answer("What is planned?", scope={"team": 1})
    assert [one.id for one in answer.passages] == ["70"]
    assert answer.text == "echo read 70: What is planned?"


def test_more_is_asked_for_only_where_a_filter_leaves_too_few():
    for filter, asked in [
        ({"team": 1}, [2, 16, 128]),
        ({"team": {"$gt": 1}}, [2]),
        (None, [2]),
    ]:
        store = Heedless()
        from_retriever(store).retrieve(["a"], 2, filter)
        assert store.asked == asked
    store = Heedless()
    from_retriever(store).retrieve(["a"], 7, {"team": 1})
    assert store.asked == [7, 56, 448]


@pytest.mark.parametrize("options", [{"search_type": "mmr"}, {}])
@pytest.mark.parametrize("compressed", [False, True])
async def test_the_store_in_memory_is_told_the_filter_as_it_takes_it(options, compressed):
    retriever = a_store().as_retriever(**options)
    found = from_retriever(compressing(retriever) if compressed else retriever)
    # Told before the search: of three documents, one is asked for, and it is the one that is permitted.
    assert [one.id for one in found.retrieve(["Avel"], 1, {"land": "Esk"})[0]] == ["Esk"]
    assert [one.id for one in (await found.aretrieve(["Avel"], 1, {"land": "Esk"}))[0]] == ["Esk"]


@pytest.mark.parametrize("own", [{"land": {"$ne": "Esk"}}, lambda document: document.metadata["land"] != "Esk"])
def test_a_retrievers_own_filter_stays_in_force_beside_the_callers(own):
    found = from_retriever(a_store().as_retriever(search_kwargs={"filter": own}))
    assert [one.id for one in found.retrieve(["Avel"], 1, {"land": "Corda"})[0]] == ["Corda"]
    assert found.retrieve(["Avel"], 1, {"land": "Esk"}) == [[]]


def test_what_numpy_or_a_database_made_of_metadata_is_compared_all_the_same():
    metadata = {
        "year": np.int64(2003),
        "price": Decimal("9.5"),
        "tags": np.array(["law"]),
        "owner": UUID(int=7),
        "day": date(2024, 2, 1),
    }
    found = from_retriever(RunnableLambda(lambda question: [Document("It is.", id="1", metadata=metadata)]))
    for filter, count in [
        ({"year": {"$gte": 2003}, "price": {"$lt": 10}, "tags": {"$contains": "law"}}, 1),
        ({"owner": str(UUID(int=7)), "day": {"$gte": "2024-01-31"}}, 1),
        ({"year": 2004}, 0),
        ({"day": "2024-02-02"}, 0),
    ]:
        assert len(found.retrieve(["a"], 1, filter)[0]) == count


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
