"""Chat messages of LangChain -> prompts of the package, tools included; and back from text to tool calls.

Tools are told to the model in a system message and called in ``<tool_call>`` tags, the convention of the Hermes and
Qwen families, which other instructed models follow by example.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    InvalidToolCall,
    ToolCall,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.messages.tool import invalid_tool_call, tool_call
from langchain_core.utils.uuid import uuid7

from ragft_plugin.decision_record import passage_to_dict
from ragft_plugin.errors import DataError
from ragft_plugin.types import Passage, Prompt

# Where passages stand beside a message.
PASSAGES = "passages"
ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "user", "function": "user", "chat": "user"}
TOOLS = (
    "You may call functions. Their signatures stand in <tools></tools>:\n<tools>\n{tools}\n</tools>\n"
    'For each call, write: <tool_call>\n{{"name": <name>, "arguments": <arguments as JSON>}}\n</tool_call>{must}'
)
_CHOICES: Mapping[Any, str | None] = {True: "any", "required": "any", "auto": None, False: None, "none": None}
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
_READABLE = {"text", "thinking", "reasoning", "tool_use", "tool_call", "non_standard"}


def prompt_from(
    messages: Sequence[BaseMessage], *, tools: Sequence[Mapping[str, Any]] = (), tool_choice: str | None = None
) -> Prompt:
    """A prompt of chat messages: the last is the question, those before it are its turns.

    Args:
        messages: at least one; the last not of the model itself.
        tools: functions that may be called, in OpenAI's form.
        tool_choice: name of the function that must be called, "any" for any of them, None to leave it open.

    Passages to read may stand in ``additional_kwargs["passages"]`` of the last message, as ``{"id", "text"}``.

    Raises:
        DataError: if there is no message, the last is the model's own, or one holds more than text.

    Example:
        >>> from langchain_core.messages import HumanMessage
        >>> prompt_from([HumanMessage("Who founded Rome?"), AIMessage("Romulus."), HumanMessage("When?")]).question
        'When?'
    """
    turns = [(ROLES.get(message.type, "user"), _text(message)) for message in messages]
    if tools:
        turns.insert(0, ("system", _told(tools, tool_choice)))
    merged: list[tuple[str, str]] = []
    for role, text in turns:
        # Chat templates want the roles to take turns.
        if merged and merged[-1][0] == role:
            merged[-1] = (role, f"{merged[-1][1]}\n\n{text}")
        else:
            merged.append((role, text))
    if not messages or merged[-1][0] != "user":
        raise DataError("the last message must be a human's or a tool's; there is nothing to answer")
    *said, (_, question) = merged
    return Prompt(question, _passages(messages[-1]), tuple(said))


def messages_from(prompt: Prompt) -> list[BaseMessage]:
    """The chat messages of a prompt; ``prompt_from`` is the inverse.

    Passages go beside the last message, not into it: how they are best shown is known to the model's own template.

    Example:
        >>> asked = Prompt("Where?", (Passage("1", "In Rome."),))
        >>> prompt_from(messages_from(asked)) == asked
        True
    """
    beside = {} if prompt.passages is None else {PASSAGES: [passage_to_dict(passage) for passage in prompt.passages]}
    return [*convert_to_messages(prompt.turns), HumanMessage(prompt.question, additional_kwargs=beside)]


def choice_of(tool_choice: str | bool | Mapping[str, Any] | None) -> str | None:
    """Which tool must be called, in all the ways that models are told: a name, "any", or None to leave it open.

    Example:
        >>> choice_of({"type": "function", "function": {"name": "add"}}), choice_of(True), choice_of("auto")
        ('add', 'any', None)
    """
    if isinstance(tool_choice, Mapping):
        return str(tool_choice["function"]["name"])
    return _CHOICES.get(tool_choice, tool_choice)  # type: ignore[arg-type]


def message_from(text: str, *, tools: bool = False, **fields: Any) -> AIMessage:
    """The message of a generated text; with ``tools``, its tool calls are taken out of the text.

    A call that is not JSON of the agreed form comes back as an invalid tool call, with the reason.

    Example:
        >>> made = message_from('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', tools=True)
        >>> made.tool_calls[0]["name"], made.tool_calls[0]["args"], made.content
        ('add', {'a': 1}, '')
    """
    if not tools:
        return AIMessage(text, **fields)
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for written in _CALL.findall(text):
        try:
            found = json.loads(written)
            calls.append(tool_call(name=found["name"], args=dict(found.get("arguments") or {}), id=f"call_{uuid7()}"))
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            invalid.append(invalid_tool_call(name=None, args=written, id=f"call_{uuid7()}", error=reason))
    return AIMessage(_CALL.sub("", text).strip(), tool_calls=calls, invalid_tool_calls=invalid, **fields)


def _passages(message: BaseMessage) -> tuple[Passage, ...] | None:
    rows = message.additional_kwargs.get(PASSAGES)
    if rows is None:
        return None
    try:
        return tuple(Passage(**row) for row in rows)
    except TypeError as error:
        raise DataError(
            f"additional_kwargs[{PASSAGES!r}] of the last message must be a list of dicts with id and text ({error})"
        ) from error


def _told(tools: Sequence[Mapping[str, Any]], tool_choice: str | None) -> str:
    must = {None: "", "any": "\nYou must call a function."}.get(
        tool_choice, f"\nYou must call the function {tool_choice}."
    )
    return TOOLS.format(tools="\n".join(json.dumps(tool) for tool in tools), must=must)


def _text(message: BaseMessage) -> str:
    blocks = message.content if isinstance(message.content, list) else []
    for block in blocks:
        kind = block.get("type") if isinstance(block, dict) else "text"
        if kind not in _READABLE:
            raise DataError(f"this model reads text only; a message holds a block of type {kind!r}")
    text = str(message.text)
    if isinstance(message, ToolMessage):
        return f"<tool_response>\n{text}\n</tool_response>"
    if isinstance(message, AIMessage) and message.tool_calls:
        calls = [
            f"<tool_call>\n{json.dumps({'name': one['name'], 'arguments': one['args']})}\n</tool_call>"
            for one in message.tool_calls
        ]
        return "\n".join([*([text] if text else []), *calls])
    return text
