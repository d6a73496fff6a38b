"""What a chat model returns: generations of the package as LangChain's results and chunks."""

from __future__ import annotations

import json
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from ragft_plugin.langchain.chat_messages import message_from
from ragft_plugin.types import Generation


def facts_of(name: str) -> dict[str, Any]:
    """Which model answered, in the words that LangChain's tracers look for."""
    return {"model_name": name, "model_provider": "ragft_plugin"}


def result_from(made: Generation, name: str, *, tools: bool = False, logprobs: bool = False) -> ChatResult:
    """A generation as a chat result.

    Args:
        made: what the model wrote.
        name: of the model: the adapter's, or "base".
        tools: take tool calls out of the text.
        logprobs: put the tokens' log-probabilities into the message's metadata.
    """
    facts: dict[str, Any] = {**facts_of(name), "finish_reason": made.finish_reason}
    if logprobs and made.logprobs is not None:
        facts["logprobs"] = {"content": _tokens(made)}
    usage = usage_of(made.usage.prompt_tokens, made.usage.completion_tokens)
    message = message_from(made.text, tools=tools, usage_metadata=usage, response_metadata=facts)
    return ChatResult(generations=[ChatGeneration(message=message, generation_info=facts)])


def chunk_from(result: ChatResult) -> ChatGenerationChunk:
    """A whole message as the one chunk of a stream: tool calls are only known at the end."""
    message = result.generations[0].message
    assert isinstance(message, AIMessage)
    calls = [
        tool_call_chunk(name=one["name"], args=json.dumps(one["args"]), id=one["id"], index=i)
        for i, one in enumerate(message.tool_calls)
    ]
    calls += [
        tool_call_chunk(name=one["name"], args=one["args"], id=one["id"], index=len(calls) + i)
        for i, one in enumerate(message.invalid_tool_calls)
    ]
    return ChatGenerationChunk(
        message=AIMessageChunk(
            content=message.content,
            tool_call_chunks=calls,
            usage_metadata=message.usage_metadata,
            response_metadata=message.response_metadata,
            chunk_position="last",
        )
    )


def usage_of(read: int, written: int) -> UsageMetadata:
    """Tokens that one answer read and wrote."""
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)


def _tokens(made: Generation) -> list[dict[str, Any]]:
    """Log-probabilities in the form that OpenAI's interface gave to the field; margins and entropies beside them."""
    logprobs = made.logprobs or ()
    nothing = (None,) * len(logprobs)
    rows = zip(logprobs, made.margins or nothing, made.entropies or nothing, strict=True)
    return [
        {"token": None, "logprob": logprob, "top_logprobs": [], "margin": margin, "entropy": entropy}
        for logprob, margin, entropy in rows
    ]
