"""The chat model over one base with many adapters."""

import asyncio

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_stubs import EchoBackend, ScriptedBackend, WordRouter
from pydantic import BaseModel, ValidationError

from ragft_plugin.errors import DataError
from ragft_plugin.langchain import ChatLora, RoutedChain, from_chat_model
from ragft_plugin.prompts import messages
from ragft_plugin.types import Prompt


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Site(BaseModel):
    """A site."""

    name: str
    wells: int


async def test_the_adapter_is_chosen_per_call():
    chat = ChatLora(backend=EchoBackend(), model="legal")
    assert chat.invoke("Who?").text == "legal read nothing: Who?"
    assert chat.invoke("Who?", model="base").text == "base read nothing: Who?"
    assert (await chat.ainvoke("Who?", model="medical")).response_metadata["model_name"] == "medical"
    assert chat.bind(model="medical").invoke("Who?").text == "medical read nothing: Who?"


def test_a_function_of_the_adapter_is_a_backend():
    chat = ChatLora(backend=EchoBackend().generator)
    assert chat.invoke("Who?", model="legal").text == "legal read nothing: Who?"
    assert chat.invoke("Who?").text == "base read nothing: Who?"


def test_options_reach_the_backend_under_its_own_names():
    backend = EchoBackend()
    chat = ChatLora(backend=backend, max_tokens=7, temperature=0.0, seed=3, stop=["."], timeout=9.0)
    chat.invoke("Who?", stop=["!"], max_tokens=5)
    assert backend.made[None].options == [
        {"max_new_tokens": 5, "temperature": 0.0, "stop": ["!"], "seed": 3, "timeout": 9.0}
    ]


def test_a_chat_becomes_turns_with_roles_that_alternate():
    backend = ScriptedBackend("Six.")
    chat = [
        SystemMessage("Be brief."),
        HumanMessage("Hello"),
        HumanMessage("you"),
        AIMessage("Hi."),
        HumanMessage("n?"),
    ]
    ChatLora(backend=backend).invoke(chat)
    (prompt,) = backend.prompts
    assert prompt == Prompt("n?", None, (("system", "Be brief."), ("user", "Hello\n\nyou"), ("assistant", "Hi.")))
    assert messages(prompt)[-1] == {"role": "user", "content": "n?"}


@pytest.mark.parametrize(
    "bad", [[AIMessage("Hm.")], [HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])]]
)
def test_what_cannot_be_answered_is_refused(bad):
    with pytest.raises(DataError, match=r"last message|text only"):
        ChatLora(backend=EchoBackend()).invoke(bad)


def test_an_unknown_argument_is_refused():
    with pytest.raises(ValidationError, match="adaptor"):
        ChatLora(backend=EchoBackend(), adaptor="legal")


def test_tool_calls_are_read_from_the_text():
    backend = ScriptedBackend('Let me see.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>')
    reply = ChatLora(backend=backend).bind_tools([add], tool_choice="any").invoke("1 + 2?")
    assert [(one["name"], one["args"]) for one in reply.tool_calls] == [("add", {"a": 1, "b": 2})]
    assert reply.text == "Let me see."
    told = backend.prompts[0].turns[0]
    assert told[0] == "system"
    assert '"name": "add"' in told[1]
    assert "You must call a function." in told[1]


def test_a_tools_answer_is_shown_to_the_model():
    backend = ScriptedBackend("3")
    call = {"name": "add", "args": {"a": 1, "b": 2}, "id": "c1", "type": "tool_call"}
    chat = [HumanMessage("1 + 2?"), AIMessage("", tool_calls=[call]), ToolMessage("3", tool_call_id="c1")]
    ChatLora(backend=backend).invoke(chat)
    (prompt,) = backend.prompts
    assert prompt.question == "<tool_response>\n3\n</tool_response>"
    assert prompt.turns[1] == (
        "assistant",
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>',
    )


def test_a_call_that_is_no_json_comes_back_as_invalid():
    reply = ChatLora(backend=ScriptedBackend("<tool_call>{add}</tool_call>")).bind_tools([add]).invoke("1 + 2?")
    assert reply.tool_calls == []
    assert "JSONDecodeError" in reply.invalid_tool_calls[0]["error"]


def test_tool_calls_are_streamed_as_chunks():
    backend = ScriptedBackend('<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>')
    (chunk,) = [one for one in ChatLora(backend=backend).bind_tools([add]).stream("1 + 2?") if one.tool_call_chunks]
    assert chunk.tool_calls[0]["args"] == {"a": 1, "b": 2}


def test_structured_output_is_a_tool_call_and_a_model_may_decline():
    backend = ScriptedBackend(
        '<tool_call>{"name": "Site", "arguments": {"name": "Sulm", "wells": 4}}</tool_call>', "I do not know."
    )
    structured = ChatLora(backend=backend).with_structured_output(Site)
    assert structured.invoke("Tell me about Sulm") == Site(name="Sulm", wells=4)
    assert structured.invoke("Tell me about Norden") is None


def test_a_cache_tells_adapters_apart():
    backend = EchoBackend()
    chat = ChatLora(backend=backend, cache=InMemoryCache())
    assert chat.invoke("Who?").text == chat.invoke("Who?").text == "base read nothing: Who?"
    assert chat.invoke("Who?", model="legal").text == "legal read nothing: Who?"
    assert backend.made[None].batches == [1]


# ------------------------------------------------------------------------------------ over a real base with adapters


async def test_invoke_ainvoke_stream_and_batch_agree_for_base_and_adapters(lora_model):
    chat = ChatLora(backend=lora_model, max_tokens=8)
    for name in ("base", "red", "green"):
        said = chat.invoke("which pump", model=name)
        streamed = [chunk async for chunk in chat.astream("which pump", model=name)]
        assert (await chat.ainvoke("which pump", model=name)).text == said.text
        assert "".join(chunk.text for chunk in chat.stream("which pump", model=name)) == said.text
        assert "".join(chunk.text for chunk in streamed) == said.text
        assert chat.batch(["which pump", "who"], model=name)[0].text == said.text
        assert said.usage_metadata["output_tokens"] > 0
        assert streamed[-1].usage_metadata["input_tokens"] == said.usage_metadata["input_tokens"]
    assert len({chat.invoke("which pump", model=name).text for name in ("base", "red", "green")}) == 3


async def test_many_adapters_at_once_never_mix(lora_model):
    chat = ChatLora(backend=lora_model, max_tokens=6)
    names = ["base", "red", "green"]
    expected = {name: chat.invoke("steel bridge", model=name).text for name in names}
    said = await asyncio.gather(*(chat.ainvoke("steel bridge", model=names[i % 3]) for i in range(100)))
    assert [one.text for one in said] == [expected[names[i % 3]] for i in range(100)]


async def test_logprobs_are_the_backends_and_come_back_through_the_converter(lora_model):
    direct = lora_model.generator("red").generate([Prompt("which pump")], max_new_tokens=5)[0]
    chat = ChatLora(backend=lora_model, model="red", logprobs=True)
    through = from_chat_model(chat).generate([Prompt("which pump")], max_new_tokens=5)[0]
    assert through == direct


async def test_cancelling_a_call_leaves_the_worker_free(lora_model):
    chat = ChatLora(backend=lora_model, max_tokens=400)
    task = asyncio.create_task(chat.ainvoke("which pump"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    said = await asyncio.wait_for(chat.ainvoke("who", max_tokens=2), timeout=10)
    assert said.usage_metadata["output_tokens"] <= 2


def test_chat_models_of_one_base_are_the_arms_of_a_chain(lora_model):
    models = {"base": ChatLora(backend=lora_model), "adapter:red": ChatLora(backend=lora_model, model="red")}
    chain = RoutedChain.from_parts(
        router=WordRouter(("pump", "adapter:red")), models=models, options={"max_new_tokens": 6}
    )
    first, second = chain.batch(["which pump", "which river"])
    assert first["answer"] == models["adapter:red"].invoke("which pump", max_tokens=6).text
    assert second["answer"] == models["base"].invoke("which river", max_tokens=6).text
