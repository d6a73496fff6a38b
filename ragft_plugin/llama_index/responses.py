"""Chat messages of LlamaIndex -> prompts, generations -> responses, and back: one function per direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LogProb,
    MessageRole,
    TextBlock,
)

from ragft_plugin.errors import DataError
from ragft_plugin.types import Generation, Prompt, Usage

# Every other role speaks to the model, as a user does.
_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}


def prompt_from(messages: Sequence[ChatMessage]) -> Prompt:
    """A prompt of chat messages: the last is the question, those before it are its turns.

    Raises:
        DataError: if there is no message, the last is the model's own, or one holds more than text.

    Example:
        >>> said = [("user", "Who founded Rome?"), ("assistant", "Romulus."), ("user", "When?")]
        >>> prompt_from([ChatMessage(role=role, content=text) for role, text in said]).question
        'When?'
    """
    merged: list[tuple[str, str]] = []
    for message in messages:
        role, text = _ROLES.get(message.role, "user"), _text(message)
        # Chat templates want the roles to take turns.
        if merged and merged[-1][0] == role:
            merged[-1] = (role, f"{merged[-1][1]}\n\n{text}")
        else:
            merged.append((role, text))
    if not merged or merged[-1][0] != "user":
        raise DataError("the last message must be a user's or a tool's; there is nothing to answer")
    *said, (_, question) = merged
    return Prompt(question, turns=tuple(said))


def completion_from(made: Generation) -> CompletionResponse:
    """A completion of a generation, with token counts and log-probabilities."""
    usage = _told(made)
    raw = {"usage": usage, "finish_reason": made.finish_reason}
    return CompletionResponse(text=made.text, additional_kwargs=usage, raw=raw, logprobs=_logprobs(made))


def chat_from(made: Generation) -> ChatResponse:
    """A chat response of a generation, with token counts and log-probabilities."""
    usage = _told(made)
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=made.text),
        additional_kwargs=usage,
        raw={"usage": usage, "finish_reason": made.finish_reason},
        logprobs=_logprobs(made),
    )


def generation_from(response: ChatResponse | CompletionResponse) -> Generation:
    """A generation of a response; what the model does not tell is None or 0.

    Example:
        >>> generation_from(completion_from(Generation("Rome.", logprobs=(-0.25,), margins=(0.5,)))).margins
        (0.5,)
    """
    text = response.text if isinstance(response, CompletionResponse) else response.message.content
    # For each token LlamaIndex lists the likeliest ones, best first; greedy decoding takes the first.
    listed = [alternatives for alternatives in response.logprobs or () if alternatives]
    raw = response.raw
    finished = raw.get("finish_reason") if isinstance(raw, Mapping) else getattr(raw, "finish_reason", None)
    return Generation(
        text=text or "",
        logprobs=tuple(alternatives[0].logprob for alternatives in listed) or None,
        margins=_margins(listed),
        usage=_usage(response),
        finish_reason="length" if finished == "length" else "stop",
    )


def _text(message: ChatMessage) -> str:
    for block in message.blocks:
        if not isinstance(block, TextBlock):
            raise DataError(f"this model reads text only; a message holds a block of type {block.block_type!r}")
    return message.content or ""


def _told(made: Generation) -> dict[str, int]:
    return {"prompt_tokens": made.usage.prompt_tokens, "completion_tokens": made.usage.completion_tokens}


def _logprobs(made: Generation) -> list[list[LogProb]] | None:
    """For each token its log-probability, and the runner-up's where the margin is known."""
    if made.logprobs is None:
        return None
    if made.margins is None:
        return [[LogProb(logprob=chosen)] for chosen in made.logprobs]
    both = zip(made.logprobs, made.margins, strict=True)
    return [[LogProb(logprob=chosen), LogProb(logprob=chosen - margin)] for chosen, margin in both]


def _margins(listed: Sequence[Sequence[LogProb]]) -> tuple[float, ...] | None:
    if not listed or any(len(alternatives) < 2 for alternatives in listed):
        return None
    return tuple(first.logprob - second.logprob for first, second, *_ in listed)


def _usage(response: ChatResponse | CompletionResponse) -> Usage:
    raw = response.raw
    told = raw.get("usage") if isinstance(raw, Mapping) else getattr(raw, "usage", None)
    counts = told if isinstance(told, Mapping) else getattr(told, "__dict__", None) or response.additional_kwargs
    return Usage(int(counts.get("prompt_tokens") or 0), int(counts.get("completion_tokens") or 0))
