"""Batches of the chat model: one generation, a run for each input, and the same answers as one by one."""

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_stubs import Echo, EchoBackend, ScriptedBackend

from ragft_plugin.errors import DataError
from ragft_plugin.langchain import ChatLora, RoutedChain, from_chat_model
from ragft_plugin.langchain.chat_messages import messages_from, prompt_from
from ragft_plugin.types import Passage, Prompt

ASKED = ["Who?", "Where?", "When?"]


class Listener(BaseCallbackHandler):
    """Writes down what it is told."""

    def __init__(self):
        self.told = []

    def on_chat_model_start(self, serialized, messages, *, run_id, parent_run_id=None, tags=None, **kwargs):
        self.told.append(("start", messages[0][-1].text, run_id, kwargs["metadata"].get("ls_model_name"), tags))

    def on_llm_end(self, response, *, run_id, **kwargs):
        self.told.append(("end", response.generations[0][0].text, run_id, None, None))

    def on_llm_error(self, error, *, run_id, **kwargs):
        self.told.append(("error", str(error), run_id, None, None))


async def test_a_batch_is_one_generation():
    for_sync, for_async = EchoBackend(), EchoBackend()
    said = ChatLora(backend=for_sync, model="legal").batch(ASKED)
    awaited = await ChatLora(backend=for_async, model="legal").abatch(ASKED)
    assert [one.text for one in said] == [one.text for one in awaited]
    assert [one.text for one in said] == [f"legal read nothing: {question}" for question in ASKED]
    assert for_sync.made["legal"].batches == for_async.made["legal"].batches == [3]
    assert len({one.id for one in said}) == 3


async def test_every_input_of_a_batch_is_a_run_with_its_own_configuration():
    chat = ChatLora(backend=EchoBackend(), tags=["own"], callbacks=[own := Listener()])
    for asynchronous in (False, True):
        listeners = [Listener(), Listener()]
        configs = [{"callbacks": [one], "tags": [tag]} for one, tag in zip(listeners, "ab", strict=True)]
        if asynchronous:
            await chat.abatch(ASKED[:2], configs, model="legal")
        else:
            chat.batch(ASKED[:2], configs, model="legal")
        for listener, question, tag in zip(listeners, ASKED, "ab", strict=False):
            (start, asked, run, model, tags), (end, answer, same_run, _, _) = listener.told
            assert (start, asked, model) == ("start", question, "legal")
            assert (end, answer) == ("end", f"legal read nothing: {question}")
            assert run == same_run
            assert {tag, "own"} <= set(tags)
    assert len(own.told) == 8


async def test_a_batch_that_fails_ends_every_run_with_the_error():
    chat = ChatLora(backend=EchoBackend(fails=True))
    one, other = Listener(), Listener()
    with pytest.raises(RuntimeError, match="out of order"):
        chat.batch(ASKED, {"callbacks": [one]})
    with pytest.raises(RuntimeError, match="out of order"):
        await chat.abatch(ASKED, {"callbacks": [other]})
    for listener in (one, other):
        assert [kind for kind, *_ in listener.told] == ["start"] * 3 + ["error"] * 3


async def test_errors_that_are_to_be_returned_are_returned_one_by_one():
    class Picky(Echo):
        def generate(self, prompts, **options):
            if any(prompt.question == "Where?" for prompt in prompts):
                raise RuntimeError("not there")
            return super().generate(prompts, **options)

    chat = ChatLora(backend=lambda adapter: Picky("picky"))
    for said in (chat.batch(ASKED, return_exceptions=True), await chat.abatch(ASKED, return_exceptions=True)):
        assert [type(one).__name__ for one in said] == ["AIMessage", "RuntimeError", "AIMessage"]


def test_settings_of_a_batch_reach_the_backend():
    backend = EchoBackend()
    ChatLora(backend=backend, stop=["."]).batch(ASKED, stop=["!"], max_tokens=3)
    assert backend.made[None].options == [{"max_new_tokens": 3, "stop": ["!"]}]


def test_a_cache_is_used_in_a_batch():
    backend = EchoBackend()
    chat = ChatLora(backend=backend, cache=InMemoryCache())
    assert [one.text for one in chat.batch(ASKED)] == [one.text for one in chat.batch(ASKED)]
    assert sum(backend.made[None].batches) == 3
    assert chat.batch([]) == []


async def test_tool_calls_are_found_in_a_batch():
    def called(n):
        return f'<tool_call>{{"name": "add", "arguments": {{"a": {n}}}}}</tool_call>'

    def add(a: int) -> int:
        """Add."""
        return a

    chat = ChatLora(backend=ScriptedBackend(called(1), called(2), called(3), called(4))).bind_tools([add])
    said = [*chat.batch(["1", "2"]), *(await chat.abatch(["3", "4"]))]
    assert [one.tool_calls[0]["args"] for one in said] == [{"a": 1}, {"a": 2}, {"a": 3}, {"a": 4}]


# ------------------------------------------------------------------------------- passages reach the base's own template


def test_prompts_survive_being_messages():
    for passages in (None, (), (Passage("1", "In Rome.", 0.5, {"source": "a.md"}),)):
        prompt = Prompt("Where?", passages, (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello.")))
        assert prompt_from(messages_from(prompt)) == prompt


def test_passages_that_are_none_are_refused():
    with pytest.raises(DataError, match="passages"):
        prompt_from([HumanMessage("Where?", additional_kwargs={"passages": [{"name": "x"}]})])


def test_a_chat_model_over_adapters_reads_passages_as_its_generator_does():
    backend = EchoBackend()
    prompt = Prompt("Where?", (Passage("7", "In Rome."),))
    through = from_chat_model(ChatLora(backend=backend, model="legal")).generate([prompt])[0]
    assert through.text == backend.generator("legal").generate([prompt])[0].text == "legal read 7: Where?"
    chain = RoutedChain.from_parts(models=ChatLora(backend=backend).with_config(tags=["x"]))
    assert chain.invoke("Where?")["answer"] == "base read nothing: Where?"
