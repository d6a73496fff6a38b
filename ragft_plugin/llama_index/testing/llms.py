"""What every LLM does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, ClassVar

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms import LLM

from ragft_plugin.llama_index.testing.probes import DELAY, PATIENCE, longest_stall, recorded


class LLMConformance:
    """Subclass and implement ``component``, with an LLM that answers alike each time.

    Attributes:
        prompt: for completion.
        messages: for chat.
    """

    prompt: ClassVar[str] = "Where is Brelkon?"
    messages: ClassVar[tuple[ChatMessage, ...]] = (ChatMessage(role="user", content="Where is Brelkon?"),)

    def component(self, *, delay: float = 0.0) -> LLM:
        """Make a fresh LLM."""
        raise NotImplementedError

    def test_is_an_llm(self) -> None:
        """The base class is in the MRO."""
        assert "LLM" in [base.__name__ for base in type(self.component()).__mro__]

    def test_completions_agree(self) -> None:
        """Sync, async and streamed completion give the same text; deltas add up to it."""
        llm = self.component()
        whole = llm.complete(self.prompt).text
        assert _run(llm.acomplete(self.prompt)).text == whole
        pieces = list(llm.stream_complete(self.prompt))
        assert ("".join(p.delta or "" for p in pieces), pieces[-1].text) == (whole, whole)
        apieces = _drained(llm.astream_complete(self.prompt))
        assert ("".join(p.delta or "" for p in apieces), apieces[-1].text) == (whole, whole)

    def test_chats_agree(self) -> None:
        """Sync, async and streamed chat give the same message; deltas add up to it."""
        llm = self.component()
        whole = llm.chat(self.messages).message.content
        assert _run(llm.achat(self.messages)).message.content == whole
        pieces = list(llm.stream_chat(self.messages))
        assert ("".join(p.delta or "" for p in pieces), pieces[-1].message.content) == (whole, whole)
        apieces = _drained(llm.astream_chat(self.messages))
        assert ("".join(p.delta or "" for p in apieces), apieces[-1].message.content) == (whole, whole)

    def test_says_what_it_is(self) -> None:
        """Window and output are positive, the name is there, the class has a name of its own."""
        llm = self.component()
        assert llm.metadata.context_window > 0
        assert llm.metadata.num_output != 0
        assert llm.metadata.model_name
        assert llm.class_name() not in ("base_component", "custom_llm")

    def test_does_not_hold_the_event_loop(self) -> None:
        """Other tasks run while any of the async methods waits."""
        llm = self.component(delay=DELAY)
        calls = {
            "acomplete": lambda: llm.acomplete(self.prompt),
            "achat": lambda: llm.achat(self.messages),
            "astream_complete": lambda: _drain(llm.astream_complete(self.prompt)),
            "astream_chat": lambda: _drain(llm.astream_chat(self.messages)),
        }
        for name, call in calls.items():
            stall = longest_stall(call)
            assert stall < PATIENCE, f"{name} held the event loop for {stall * 1000:.0f} ms"

    def test_events_are_in_order(self) -> None:
        """Start comes before end, once each; every span is closed."""
        llm = self.component()
        calls = {
            "LLMCompletion": (lambda: llm.complete(self.prompt), lambda: _run(llm.acomplete(self.prompt))),
            "LLMChat": (lambda: llm.chat(self.messages), lambda: _run(llm.achat(self.messages))),
        }
        for kind, ways in calls.items():
            for call in ways:
                with recorded() as (events, spans):
                    call()
                events.assert_pair(kind)
                assert not spans.open_spans
                assert not spans.dropped_spans


def _run(call: Awaitable[Any]) -> Any:
    async def run() -> Any:
        return await call

    return asyncio.run(run())


async def _drain(opening: Awaitable[AsyncIterator[Any]]) -> list[Any]:
    return [piece async for piece in await opening]


def _drained(opening: Awaitable[AsyncIterator[Any]]) -> list[Any]:
    return asyncio.run(_drain(opening))
