"""Code as LangChain's documentation teaches it, with the one documented line changed."""

import warnings

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_stubs import DOCUMENTS, ListRetriever, ReadingChatModel, ScriptedBackend, WordRouter

from ragft_plugin.langchain import ChatLora, RoutedChain, RoutedRetriever, RoutingMiddleware, pipeline_from

PROMPT = ChatPromptTemplate.from_messages([("system", "Use the context.\n\n{context}"), ("human", "{input}")])
ROUTER = WordRouter(("capital", "rag"))


def a_store():
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=6))
    store.add_documents(DOCUMENTS)
    return store


def test_a_retriever_in_an_expression_language_chain():
    retriever = a_store().as_retriever()
    retriever = RoutedRetriever.from_retriever(retriever, router=ROUTER)  # the changed line

    def format_docs(docs: list[Document]) -> str:
        return "\n\n".join(doc.page_content for doc in docs)

    chain = (
        {"context": retriever | format_docs, "input": RunnablePassthrough()}
        | PROMPT
        | ReadingChatModel()
        | StrOutputParser()
    )
    assert chain.invoke("the capital of Avel") == "Brin it is [1]"
    assert next(chain.stream("the capital of Esk")) == "Fars"
    assert chain.invoke("Hello") == "I do not know."


def test_create_retrieval_chain_around_a_routed_retriever():
    chains = pytest.importorskip("langchain_classic.chains")
    combine = pytest.importorskip("langchain_classic.chains.combine_documents")
    retriever = a_store().as_retriever()
    retriever = RoutedRetriever.from_retriever(retriever, router=ROUTER)  # the changed line
    combine_docs_chain = combine.create_stuff_documents_chain(ReadingChatModel(), PROMPT)
    chain = chains.create_retrieval_chain(retriever, combine_docs_chain)
    answer = chain.invoke({"input": "the capital of Avel"})
    assert answer["answer"] == "Brin it is [1]"
    assert answer["context"][0].metadata["decision"]["arm"] == "rag"
    assert chain.invoke({"input": "Hello"})["context"] == []


def test_a_routed_chain_in_place_of_create_retrieval_chain():
    combine = pytest.importorskip("langchain_classic.chains.combine_documents")
    retriever = a_store().as_retriever()
    combine_docs_chain = combine.create_stuff_documents_chain(ReadingChatModel(), PROMPT)
    chain = RoutedChain.from_parts(  # was: create_retrieval_chain(retriever, combine_docs_chain)
        router=ROUTER, retriever=retriever, models=combine_docs_chain
    )
    answer = chain.invoke({"input": "the capital of Avel"})
    assert answer["answer"] == "Brin it is [1]"
    assert {one.id for one in answer["context"]} <= {one.id for one in DOCUMENTS}
    assert list(answer)[:3] == ["input", "context", "answer"]


def test_an_ensemble_retriever_is_routed():
    retrievers = pytest.importorskip("langchain_classic.retrievers")
    ensemble = retrievers.EnsembleRetriever(retrievers=[ListRetriever(), a_store().as_retriever()], weights=[0.5, 0.5])
    retriever = RoutedRetriever.from_retriever(ensemble, router=ROUTER)  # was: ensemble
    assert retriever.invoke("the capital of Avel")[0].id == "Avel"
    assert retriever.invoke("Hello") == []


def test_a_routed_retriever_takes_part_in_an_ensemble():
    retrievers = pytest.importorskip("langchain_classic.retrievers")
    routed = RoutedRetriever.from_retriever(ListRetriever(), router=ROUTER)
    ensemble = retrievers.EnsembleRetriever(retrievers=[routed, a_store().as_retriever()], weights=[0.5, 0.5])
    assert len(ensemble.invoke("Hello")) == 3


def test_a_runnable_branch_becomes_a_routed_chain():
    legal, general = ReadingChatModel(name="legal"), ReadingChatModel(name="general")
    branch = RunnableBranch((lambda asked: "law" in asked["input"], PROMPT | legal), PROMPT | general)
    router = WordRouter(("law", "adapter:legal"))
    routed = RoutedChain.from_parts(  # was: RunnableBranch((condition, legal), general)
        router=router, models={"base": general, "adapter:legal": legal}
    )
    for question in ("a law", "a cake"):
        before = branch.invoke({"input": question, "context": ""}).text
        assert before == "I do not know."  # its prompt always has a context
        assert (
            routed.invoke({"input": question})["answer"] == ("legal" if "law" in question else "general") + " guesses"
        )


def test_chains_of_a_branch_can_be_arms_as_they_are():
    legal = PROMPT | ReadingChatModel() | StrOutputParser()
    general = RunnableLambda(lambda asked: f"general: {asked['input']}")
    routed = RoutedChain.from_parts(
        router=WordRouter(("law", "adapter:legal")), models={"base": general, "adapter:legal": legal}
    )
    assert [one["answer"] for one in routed.batch(["a law", "a cake"])] == ["I do not know.", "general: a cake"]


def test_an_agent_with_a_retrieval_tool():
    agents = pytest.importorskip("langchain.agents")
    call = '<tool_call>{"name": "search", "arguments": {"query": "the capital of Esk"}}</tool_call>'
    model = ChatLora(backend=ScriptedBackend(call, "Fars."))
    retriever = RoutedRetriever.from_retriever(a_store().as_retriever(), router=ROUTER)  # the changed line
    search = create_retriever_tool(retriever, "search", "Search.", response_format="content_and_artifact")
    state = agents.create_agent(model, [search]).invoke({"messages": [("human", "capital of Esk?")]})
    assert state["messages"][-1].text == "Fars."
    assert state["messages"][2].artifact[0].metadata["decision"]["arm"] == "rag"


def test_an_agent_gets_a_middleware():
    agents = pytest.importorskip("langchain.agents")
    pipeline = pipeline_from(router=ROUTER, models=ReadingChatModel(), retriever=a_store())
    agent = agents.create_agent(ReadingChatModel(), [], middleware=[RoutingMiddleware(pipeline)])  # the added argument
    assert agent.invoke({"messages": [("human", "the capital of Avel")]})["decision"]["arm"] == "rag"


def test_langchain_communitys_faiss_is_a_retriever():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package warns that it is sunset
        stores = pytest.importorskip("langchain_community.vectorstores")
        pytest.importorskip("faiss")
        store = stores.FAISS.from_documents(
            DOCUMENTS, DeterministicFakeEmbedding(size=6), normalize_L2=True, ids=[one.id for one in DOCUMENTS]
        )
    chain = RoutedChain.from_parts(router=ROUTER, models=ReadingChatModel(), retriever=store)
    question = DOCUMENTS[1].page_content.replace("The capital", "the capital")
    answer = chain.invoke(question.replace("Brin", ""), k=2, filter={"land": "Corda"})
    assert [one.id for one in answer["context"]] == ["Corda"]
    assert isinstance(answer["context"][0].metadata["relevance_score"], float)
