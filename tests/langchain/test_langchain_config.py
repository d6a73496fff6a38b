"""The chain as LangChain handles it: configurable fields, schemas, graph, serialisation, composition."""

import json

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumpd, dumps
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableGenerator, RunnableLambda, RunnablePassthrough
from langchain_stubs import Echo, ListRetriever, ReadingChatModel, WordRouter
from pydantic import ValidationError

from ragft_plugin.langchain import RoutedChain, RoutedRetriever, load


def a_chain(**options):
    models = {"base": ReadingChatModel(), "adapter:x": Echo("x")}
    return RoutedChain.from_parts(
        router=WordRouter(("look", "rag"), ("x", "adapter:x")), models=models, retriever=ListRetriever(), **options
    )


FIELDS = {
    "cost_weight": ConfigurableField(id="cost_weight"),
    "arm": ConfigurableField(id="arm"),
    "k": ConfigurableField(id="k"),
}


async def test_cost_weight_arm_and_k_are_configurable():
    chain = a_chain()
    configurable = chain.configurable_fields(**FIELDS)
    config = {"configurable": {"arm": "rag", "k": 1, "cost_weight": 0.25}}
    for answer in (
        configurable.invoke("Who?", config),
        await configurable.ainvoke("Who?", config),
        configurable.with_config(config).batch(["Who?", "Why?"])[1],
        *list(configurable.stream("Who?", config))[:1],
    ):
        assert (answer["decision"]["arm"], answer["decision"]["forced"], len(answer["context"])) == ("rag", True, 1)
    assert chain.pipeline.router.calls[0]["cost_weight"] == 0.25
    assert configurable.invoke("Who?")["decision"]["arm"] == "base"
    assert {spec.id for spec in configurable.config_specs} == {"cost_weight", "arm", "k"}


def test_a_routed_retriever_is_configurable_too():
    retriever = RoutedRetriever.from_retriever(ListRetriever(), router=WordRouter())
    configurable = retriever.configurable_fields(**FIELDS)
    assert configurable.invoke("Who?") == []
    assert len(configurable.invoke("Who?", {"configurable": {"arm": "rag", "k": 2}})) == 2


def test_configurable_fields_of_the_parts_are_those_of_the_chain():
    model = ReadingChatModel(knows={"Avel": "Brin"}).configurable_fields(knows=ConfigurableField(id="knows"))
    chain = RoutedChain.from_parts(router=WordRouter(), models=model)
    assert [spec.id for spec in chain.config_specs] == ["knows"]
    assert chain.invoke("Avel", {"configurable": {"knows": {"Avel": "Delo"}}})["answer"] == "Delo"
    answers = chain.batch(["Avel", "Avel?"], [{"configurable": {"knows": {"Avel": "Delo"}}}, {}])
    assert [one["answer"] for one in answers] == ["Delo", "Brin"]


def test_schemas_say_what_goes_in_and_comes_out():
    chain = a_chain()
    said = chain.get_output_jsonschema()["$defs"]["RoutedOutput"]
    assert set(said["required"]) == {"input", "context", "answer", "decision"}
    chain.input_schema.model_validate("Who?")
    chain.input_schema.model_validate({"input": "Who?", "chat_history": []})
    chain.input_schema.model_validate([HumanMessage("Who?")])
    with pytest.raises(ValidationError):
        chain.input_schema.model_validate(7)
    chain.output_schema.model_validate(chain.invoke("look"))


def test_the_graph_shows_every_arm():
    drawn = a_chain().get_graph().draw_mermaid()
    for name in ("route", "rag", "adapter:x", "retrieve"):
        assert name in drawn
    edges = {(edge.source, edge.target) for edge in a_chain().get_graph().edges}
    assert {("input", "route"), ("route", "rag: retrieve"), ("rag: retrieve", "rag"), ("rag", "output")} <= edges
    assert ("route", "adapter:x") in edges
    (a_chain() | RunnableLambda(lambda answer: answer["answer"])).get_graph().draw_mermaid()


def test_what_is_dumped_is_loaded_with_a_pipeline():
    chain = a_chain(k=2, arm="rag", filter={"land": "Esk"}, cite=True, options={"seed": 1})
    data = json.loads(dumps(chain))
    assert "ReadingChatModel" not in json.dumps(data)
    again = load(data, pipeline=chain.pipeline)
    assert again == chain
    assert again.invoke("the capital of Esk")["citations"][0]["source"] == "Esk.md"


def test_a_composed_chain_is_dumped_and_loaded():
    prompt = ChatPromptTemplate.from_messages([("human", "look: {land}")])
    composed = prompt | a_chain()
    again = load(dumpd(composed), pipeline=composed.last.pipeline)
    assert again.invoke({"land": "Avel"})["answer"] == "Brin it is [1]"


def test_a_class_that_is_not_allowed_is_not_loaded():
    data = dumpd(a_chain())
    data["id"] = ["os", "path", "join"]
    with pytest.raises(ValueError, match="not allowed"):
        load(data, pipeline=a_chain().pipeline)


def test_the_chain_composes_like_any_runnable():
    prompt = ChatPromptTemplate.from_messages([("human", "look: the capital of {land}")])
    chain = prompt | a_chain().pick("answer") | StrOutputParser()
    assert chain.invoke({"land": "Avel"}) == "Brin it is [1]"
    assert list(chain.stream({"land": "Avel"})) == ["Brin", " it", " is", " [1]"]
    both = RunnablePassthrough.assign(routed=lambda asked: asked["q"]) | (lambda asked: asked["routed"]) | a_chain()
    assert both.batch([{"q": "look Avel"}, {"q": "x"}])[1]["answer"] == "x read nothing: x"


def test_streamed_input_is_waited_for():
    def words(_):
        yield from ["look: ", "the capital ", "of Esk"]

    upstream = RunnableGenerator(words)
    assert "".join((upstream | a_chain().pick("answer")).stream("")) == "Fars it is [1]"


def test_citations_name_the_documents_that_the_answer_refers_to():
    chain = RoutedChain.from_parts(
        router=WordRouter(otherwise="rag"),
        models=RunnableLambda(lambda asked: "Both [2, 1]. And [9]. Again [1]."),
        retriever=ListRetriever(),
        cite=True,
    )
    expected = [
        {"number": 2, "id": "Corda", "source": "Corda.md", "start": 5},
        {"number": 1, "id": "Avel", "source": "Avel.md", "start": 5},
    ]
    assert chain.invoke("Avel")["citations"] == expected
    assert list(chain.stream("Avel"))[-1] == {"citations": expected}


def test_with_fallbacks_retry_and_config_still_work():
    chain = a_chain()
    assert chain.with_retry().invoke("x")["answer"] == "x read nothing: x"
    assert chain.with_fallbacks([RunnableLambda(lambda _: {"answer": "sorry"})]).invoke("") == {"answer": "sorry"}
    assert chain.with_config(tags=["t"]).batch(["x", "x y"])[1]["input"] == "x y"
    assert chain.bind(arm="adapter:x").invoke("look")["decision"]["forced"]


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValidationError, match="cost_wieght"):
        RoutedChain(pipeline=a_chain().pipeline, cost_wieght=0.1)
    with pytest.raises(TypeError, match="tempo"):
        a_chain().invoke("x", tempo=1)


def test_documents_of_the_answer_are_documents():
    (first, *_) = a_chain().invoke("look: Avel")["context"]
    assert isinstance(first, Document)
    assert first.metadata == {"source": "Avel.md", "land": "Avel", "relevance_score": 1.0}
