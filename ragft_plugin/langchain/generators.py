"""LangChain's chat models, language models and chains as generators of the pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import BaseMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableSequence, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import DynamicRunnable

from ragft_plugin.errors import ConfigError, GenerationError
from ragft_plugin.langchain.chat_lora import ChatLora
from ragft_plugin.langchain.chat_messages import messages_from
from ragft_plugin.langchain.deadline import each_within, within
from ragft_plugin.langchain.documents import document_from
from ragft_plugin.langchain.runs import configs_of
from ragft_plugin.prompts import messages
from ragft_plugin.types import Generation, Generator, Prompt, Usage

# The generator's words -> those of LangChain's standard model parameters.
OPTION_NAMES: Mapping[str, str] = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "stop": "stop",
    "seed": "seed",
}
Render = Callable[[Prompt], Any]


def from_chat_model(
    model: Runnable[Any, Any] | Generator,
    *,
    render: Render | None = None,
    option_names: Mapping[str, str] = OPTION_NAMES,
) -> Generator:
    """A chat model, a language model or a chain of LangChain's, as a generator of the pipeline.

    Args:
        model: what writes the answer; a generator of the pipeline is returned as it is.
        render: makes the model's input of a ``Prompt``. By default a model is given chat messages, with the passages
            in a system message (``ChatLora`` beside the question, for its base's own template); any other Runnable
            ``{"input": question, "context": documents}``, as by ``create_retrieval_chain``.
        option_names: how the model names ``max_new_tokens``, ``temperature``, ``stop`` and ``seed``. They reach
            models only; a chain keeps its own settings. ``timeout`` is kept here, for both.

    Raises:
        ConfigError: if ``model`` is no Runnable.

    Example:
        >>> from langchain_core.runnables import RunnableLambda
        >>> from_chat_model(RunnableLambda(lambda asked: asked["input"].upper())).generate([Prompt("Where?")])[0].text
        'WHERE?'
    """
    if isinstance(model, Runnable):
        return ChatModelGenerator(model, render=render, option_names=option_names)
    if isinstance(model, Generator):
        return model
    raise ConfigError(
        f"{type(model).__name__} writes no answers: give a LangChain chat model or Runnable, or an object with the "
        "methods generate(prompts) and stream(prompt)"
    )


class ChatModelGenerator:
    """A Runnable that answers, as a generator; async where the Runnable is, streaming where it streams.

    Args: as of ``from_chat_model``.
    """

    def __init__(
        self,
        model: Runnable[Any, Any],
        *,
        render: Render | None = None,
        option_names: Mapping[str, str] = OPTION_NAMES,
    ) -> None:
        self.model = model
        found = model_in(model)
        self._to_model = found is not None
        self._render = render or _rendering(found)
        self._option_names = option_names

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """Answer each prompt through ``batch``.

        Raises:
            GenerationError: if the model returns nothing.
            TimeoutError: if ``timeout`` seconds pass.
        """
        seconds, call = self._call(options)
        inputs, configs = self._asked(prompts)
        replies = within(seconds, lambda: self.model.batch(inputs, configs, **call))
        return [self._generation(reply) for reply in replies]

    async def agenerate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        """As ``generate``, through ``abatch``."""
        seconds, call = self._call(options)
        inputs, configs = self._asked(prompts)
        async with asyncio.timeout(seconds):
            replies = await self.model.abatch(inputs, configs, **call)
        return [self._generation(reply) for reply in replies]

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """Yield pieces of one answer.

        Raises:
            GenerationError: if the model ends without a word.
            TimeoutError: if ``timeout`` seconds pass before the end.
        """
        seconds, call = self._call(options)
        (asked,), configs = self._asked([prompt])
        empty = True
        for chunk in each_within(seconds, lambda: self.model.stream(asked, configs and configs[0], **call)):
            if piece := text_of(chunk):
                empty = False
                yield piece
        self._refuse(empty)

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[str]:
        """As ``stream``, through the model's ``astream``."""
        seconds, call = self._call(options)
        (asked,), configs = self._asked([prompt])
        loop = asyncio.get_running_loop()
        end = None if seconds is None else loop.time() + seconds
        empty = True
        chunks = self.model.astream(asked, configs and configs[0], **call)
        try:
            while True:
                # Not around the yield: the time-out would strike the task that reads the stream.
                async with asyncio.timeout_at(end):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                if piece := text_of(chunk):
                    empty = False
                    yield piece
        finally:
            await _close(chunks)
        self._refuse(empty)

    def _asked(self, prompts: Sequence[Prompt]) -> tuple[list[Any], Any]:
        return [self._render(prompt) for prompt in prompts], configs_of([prompt.question for prompt in prompts])

    def _call(self, options: Mapping[str, Any]) -> tuple[float | None, dict[str, Any]]:
        given = {name: value for name, value in options.items() if value is not None}
        seconds = given.pop("timeout", None)
        if not self._to_model:
            return seconds, {}
        return seconds, {self._option_names.get(name, name): value for name, value in given.items()}

    def _generation(self, reply: object) -> Generation:
        text = text_of(reply)
        self._refuse(not text)
        if not isinstance(reply, BaseMessage):
            return Generation(text)
        facts = reply.response_metadata
        return Generation(text, **_logprobs(facts), usage=_usage(reply), finish_reason=_finish_reason(facts))

    def _refuse(self, empty: bool) -> None:
        if empty:
            raise GenerationError(f"{self.model.get_name()} returned an empty answer")


def text_of(reply: object) -> str:
    """The text of what a Runnable returned: a string, a message, a dict with ``answer``, or nothing.

    Raises:
        GenerationError: if it is something else.
    """
    if isinstance(reply, str):
        return reply
    if isinstance(reply, BaseMessage):
        return str(reply.text)
    if isinstance(reply, Mapping):
        return text_of(reply.get("answer"))
    if reply is None:
        return ""
    raise GenerationError(f"expected a string, a message or a dict with 'answer', not {type(reply).__name__}")


def model_in(model: Runnable[Any, Any]) -> BaseLanguageModel[Any] | None:
    """The language model that is given the input, looking through what wraps it; None if another Runnable is."""
    if isinstance(model, BaseLanguageModel):
        return model
    if isinstance(model, RunnableBindingBase):
        return model_in(model.bound)
    if isinstance(model, RunnableWithFallbacks):
        return model_in(model.runnable)
    if isinstance(model, DynamicRunnable):
        return model_in(model.default)
    return model_in(model.first) if isinstance(model, RunnableSequence) else None


def _rendering(model: BaseLanguageModel[Any] | None) -> Render:
    if model is None:
        return _inputs
    return messages_from if isinstance(model, ChatLora) else _messages


def _messages(prompt: Prompt) -> list[BaseMessage]:
    return convert_to_messages(messages(prompt))


def _inputs(prompt: Prompt) -> dict[str, Any]:
    return {"input": prompt.question, "context": [document_from(passage) for passage in prompt.passages or ()]}


def _usage(reply: BaseMessage) -> Usage:
    found = getattr(reply, "usage_metadata", None)
    return Usage(found["input_tokens"], found["output_tokens"]) if found else Usage()


def _finish_reason(facts: Mapping[str, Any]) -> Literal["stop", "length"]:
    said = facts.get("finish_reason") or facts.get("stop_reason") or facts.get("done_reason")
    return "length" if said in {"length", "max_tokens", "MAX_TOKENS"} else "stop"


def _logprobs(facts: Mapping[str, Any]) -> dict[str, tuple[float, ...] | None]:
    """Log-probabilities, margins and entropies, from the form that OpenAI's interface gave to the field.

    ``top_logprobs`` give the margins; ``margin`` and ``entropy`` beside a token are the package's own.
    """
    tokens = (facts.get("logprobs") or {}).get("content") or ()
    columns = {
        "logprobs": [token["logprob"] for token in tokens],
        "margins": [_margin(token) for token in tokens],
        "entropies": [token.get("entropy") for token in tokens],
    }
    return {
        name: tuple(map(float, column)) if column and None not in column else None for name, column in columns.items()
    }


def _margin(token: Mapping[str, Any]) -> float | None:
    others = [other["logprob"] for other in token.get("top_logprobs", ()) if other["token"] != token["token"]]
    return token["logprob"] - max(others) if others else token.get("margin")


async def _close(chunks: AsyncIterator[Any]) -> None:
    if (close := getattr(chunks, "aclose", None)) is not None:
        await close()
