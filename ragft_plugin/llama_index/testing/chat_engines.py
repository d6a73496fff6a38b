"""What every chat engine does."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.prompts.mixin import PromptMixin

from ragft_plugin.llama_index.testing.probes import (
    DELAY,
    PATIENCE,
    assert_prompts_can_be_replaced,
    longest_stall,
)


class ChatEngineConformance:
    """Subclass and implement ``component``.

    Attributes:
        turns: what the user says, in order.
    """

    turns: ClassVar[tuple[str, ...]] = ("Where is Brelkon?", "And its relay?")

    def component(self, *, delay: float = 0.0) -> BaseChatEngine:
        """Make a fresh engine with an empty memory."""
        raise NotImplementedError

    def test_is_a_chat_engine(self) -> None:
        """The base class is in the MRO."""
        assert "BaseChatEngine" in [base.__name__ for base in type(self.component()).__mro__]

    def test_all_ways_of_talking_agree(self) -> None:
        """Sync, async and streamed turns say and remember the same."""
        told = {way: talk(self.component(), self.turns) for way, talk in _WAYS.items()}
        said, remembered = told["chat"]
        assert [m.content for m in remembered][::2] == list(self.turns)
        assert [m.content for m in remembered][1::2] == said
        for way, (texts, history) in told.items():
            assert texts == said, way
            assert [(m.role, m.content) for m in history] == [(m.role, m.content) for m in remembered], way

    def test_reset_forgets(self) -> None:
        """After a reset there is no history, and the first turn is answered as at first."""
        engine = self.component()
        first = str(engine.chat(self.turns[0]))
        engine.reset()
        assert engine.chat_history == []
        assert str(engine.chat(self.turns[0])) == first

    def test_a_given_history_replaces_the_memory(self) -> None:
        """``chat_history`` counts for its turn."""
        engine = self.component()
        engine.chat(self.turns[0])
        with_memory = str(engine.chat(self.turns[1]))
        other = self.component()
        assert str(other.chat(self.turns[1], chat_history=engine.chat_history[:2])) == with_memory

    def test_prompts_can_be_seen_and_replaced(self) -> None:
        """What ``get_prompts`` shows, where there is one, ``update_prompts`` replaces."""
        engine = self.component()
        if isinstance(engine, PromptMixin):
            assert_prompts_can_be_replaced(engine)

    def test_does_not_hold_the_event_loop(self) -> None:
        """Other tasks run while an answer is awaited, streamed or not."""

        async def whole() -> None:
            await self.component(delay=DELAY).achat(self.turns[0])

        async def stream() -> None:
            async for _ in (await self.component(delay=DELAY).astream_chat(self.turns[0])).async_response_gen():
                pass

        for name, call in {"achat": whole, "astream_chat": stream}.items():
            stall = longest_stall(call)
            assert stall < PATIENCE, f"{name} held the event loop for {stall * 1000:.0f} ms"


def _chat(engine: BaseChatEngine, turns: tuple[str, ...]) -> tuple[list[str], list[Any]]:
    return [str(engine.chat(turn)) for turn in turns], engine.chat_history


def _stream(engine: BaseChatEngine, turns: tuple[str, ...]) -> tuple[list[str], list[Any]]:
    return ["".join(engine.stream_chat(turn).response_gen) for turn in turns], engine.chat_history


def _achat(engine: BaseChatEngine, turns: tuple[str, ...]) -> tuple[list[str], list[Any]]:
    async def talk() -> list[str]:
        return [str(await engine.achat(turn)) for turn in turns]

    return asyncio.run(talk()), engine.chat_history


def _astream(engine: BaseChatEngine, turns: tuple[str, ...]) -> tuple[list[str], list[Any]]:
    async def talk() -> list[str]:
        said = []
        for turn in turns:
            response = await engine.astream_chat(turn)
            said.append("".join([piece async for piece in response.async_response_gen()]))
        return said

    return asyncio.run(talk()), engine.chat_history


_WAYS = {"chat": _chat, "stream_chat": _stream, "achat": _achat, "astream_chat": _astream}
