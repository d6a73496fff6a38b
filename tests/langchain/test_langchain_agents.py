"""Routing in agents and graphs."""

from typing import Any

import pytest

pytest.importorskip("langchain.agents")

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langchain_stubs import ListRetriever, ReadingChatModel, ScriptedBackend, WordRouter
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from ragft_plugin.errors import ConfigError
from ragft_plugin.langchain import (
    ChatLora,
    RoutedChain,
    RoutingMiddleware,
    answer_node,
    answer_tool,
    arm_edge,
    pipeline_from,
    route_node,
)


def a_pipeline(**models):
    router = WordRouter(("look", "rag"), ("skill", "adapter:skills"))
    return pipeline_from(
        router=router,
        models={"base": ReadingChatModel(name="base"), "adapter:skills": ReadingChatModel(name="skills"), **models},
        retriever=ListRetriever(),
    )


def asked(text):
    return {"messages": [HumanMessage(text)]}


@pytest.mark.parametrize("per", ["run", "call"])
@pytest.mark.parametrize(
    ("question", "arm", "said"),
    [
        ("look: the capital of Avel", "rag", "Brin it is [1]"),
        ("which skill", "adapter:skills", "skills guesses"),
        ("Who?", "base", "base guesses"),
    ],
)
async def test_an_agents_question_goes_to_the_chosen_arm(per, question, arm, said):
    pipeline = a_pipeline()
    agent = create_agent(ReadingChatModel(name="agent"), [], middleware=[RoutingMiddleware(pipeline, per=per)])
    for state in (agent.invoke(asked(question)), await agent.ainvoke(asked(question))):
        assert state["messages"][-1].text == said
        assert state["decision"]["arm"] == arm
        assert len(state["context"]) == (3 if arm == "rag" else 0)
    assert len(pipeline.router.decided) == 2


async def test_tokens_are_streamed_through_the_middleware():
    agent = create_agent(ReadingChatModel(name="agent"), [], middleware=[RoutingMiddleware(a_pipeline())])
    pieces = [
        message.text
        async for message, _ in agent.astream(asked("look: the capital of Esk"), stream_mode="messages")
        if message.text
    ]
    assert pieces == ["Fars", " it", " is", " [1]"]


def test_the_agents_tools_and_system_prompt_stay():
    @tool
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    call = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
    backend = ScriptedBackend(call, "Five.")
    pipeline = a_pipeline(**{"base": ChatLora(backend=backend)})
    agent = create_agent(
        ReadingChatModel(name="agent"), [add], system_prompt="Be kind.", middleware=[RoutingMiddleware(pipeline)]
    )
    state = agent.invoke(asked("look: 2 + 3?"))
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert state["messages"][2].text == "5"
    assert state["messages"][-1].text == "Five."
    assert pipeline.router.decided == ["look: 2 + 3?"]
    system = backend.prompts[0].turns[0][1]
    assert "Be kind." in system
    assert "[1] The capital of Avel is Brin." in system
    assert '"name": "add"' in system


def test_arms_without_a_chat_model_keep_the_agents():
    pipeline = pipeline_from(router=WordRouter(otherwise="rag"), retriever=ListRetriever())
    agent = create_agent(ReadingChatModel(name="agent"), [], middleware=[RoutingMiddleware(pipeline)])
    assert agent.invoke(asked("the capital of Corda"))["messages"][-1].text == "Delo it is [1]"


def test_models_can_be_given_by_arm():
    middleware = RoutingMiddleware(a_pipeline(), models={"base": ReadingChatModel(name="mine")})
    agent = create_agent(ReadingChatModel(name="agent"), [], middleware=[middleware])
    assert agent.invoke(asked("Who?"))["messages"][-1].text == "mine guesses"
    with pytest.raises(ConfigError, match="models are given for nonsense"):
        RoutingMiddleware(a_pipeline(), models={"nonsense": ReadingChatModel()})


def test_every_question_of_a_thread_is_decided_anew_and_kept_by_the_checkpointer():
    agent = create_agent(
        ReadingChatModel(name="agent"), [], middleware=[RoutingMiddleware(a_pipeline())], checkpointer=InMemorySaver()
    )
    thread = {"configurable": {"thread_id": "1"}}
    assert agent.invoke(asked("look: the capital of Avel"), thread)["decision"]["arm"] == "rag"
    assert agent.invoke(asked("Who?"), thread)["decision"]["arm"] == "base"
    assert agent.get_state(thread).values["decision"]["arm"] == "base"


# ------------------------------------------------------------------------------------------------------------- graphs


class State(MessagesState, total=False):
    decision: dict[str, Any]
    context: list[Any]
    answer: str


async def test_a_graph_decides_in_one_node_and_answers_in_another_but_decides_and_retrieves_once():
    retriever = ListRetriever()
    pipeline = pipeline_from(
        router=WordRouter(("look", "rag")), models=ReadingChatModel(name="base"), retriever=retriever
    )
    graph = StateGraph(State)
    graph.add_node("route", route_node(pipeline))
    graph.add_node("answer", answer_node(RoutedChain(pipeline=pipeline)))
    graph.add_node("chat", lambda state: {"messages": [AIMessage("Hello.")]})
    graph.add_edge(START, "route")
    graph.add_conditional_edges("route", arm_edge, {"rag": "answer", "base": "chat"})
    graph.add_edge("answer", END)
    compiled = graph.compile()
    for state in (compiled.invoke(asked("look: Corda")), await compiled.ainvoke(asked("look: Corda"))):
        assert state["messages"][-1].text == state["answer"] == "Delo it is [1]"
        assert state["messages"][-1].response_metadata["decision"] == state["decision"]
    assert compiled.invoke(asked("Hi"))["messages"][-1].text == "Hello."
    assert pipeline.router.decided == ["look: Corda", "look: Corda", "Hi"]
    assert retriever.asked == ["look: Corda", "look: Corda"]


async def test_a_chain_is_a_node_by_itself():
    graph = StateGraph(State)
    graph.add_node("answer", answer_node(RoutedChain(pipeline=a_pipeline())))
    graph.add_edge(START, "answer")
    pieces = [
        message.text async for message, _ in graph.compile().astream(asked("which skill"), stream_mode="messages")
    ]
    assert "skills guesses" in pieces


class TestAnswerToolUnit(ToolsUnitTests):
    @property
    def tool_constructor(self):
        return answer_tool(RoutedChain(pipeline=a_pipeline()))

    @property
    def tool_invoke_params_example(self) -> dict:
        return {"question": "which skill"}


class TestAnswerToolIntegration(ToolsIntegrationTests):
    @property
    def tool_constructor(self):
        return answer_tool(RoutedChain(pipeline=a_pipeline()))

    @property
    def tool_invoke_params_example(self) -> dict:
        return {"question": "which skill"}


async def test_the_tools_artifact_is_the_whole_output():
    made = answer_tool(RoutedChain(pipeline=a_pipeline()), name="ask")
    call = {"name": "ask", "args": {"question": "which skill"}, "id": "1", "type": "tool_call"}
    message = await made.ainvoke(call)
    assert message.content == "skills guesses"
    assert message.artifact["decision"]["arm"] == "adapter:skills"
