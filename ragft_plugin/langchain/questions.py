"""What a chain may be asked: a string, a dict, messages; and a chat condensed to one standalone question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, convert_to_messages, get_buffer_string
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable

from ragft_plugin.arms import Arm
from ragft_plugin.course import Course, Generate, Routed
from ragft_plugin.decision_record import decision_from_dict
from ragft_plugin.errors import DataError
from ragft_plugin.langchain.documents import passage_from
from ragft_plugin.langchain.generators import from_chat_model, model_in
from ragft_plugin.langchain.runs import Call, parents
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.prompts import check_question
from ragft_plugin.types import Decision, Evidence, Filter, Generation, Prompt

QUESTION_KEYS = ("input", "question", "query")
CONDENSE = (
    "Rewrite the last question of this chat so that it can be understood without the chat. Do not answer it; return "
    "it as it is if it already can.\n\n{chat}\n\nLast question: {question}\n\nStandalone question:"
)


@dataclass(frozen=True, slots=True)
class ChatPrompt(Prompt):
    """A prompt to condense a chat, and what it was made of."""

    last: str = ""
    history: tuple[BaseMessage, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it came in.

    Attributes:
        question: what to answer, stripped.
        history: earlier messages of the chat, oldest first.
        decision: a decision made elsewhere, in whatever form, or None.
        context: documents retrieved elsewhere; none of them means that retrieval is still to be done.
    """

    question: str
    history: tuple[BaseMessage, ...] = ()
    decision: Any = None
    context: tuple[Document, ...] = ()

    def evidence(self, question: str, scope: Filter | None) -> Evidence:
        """What is known of the question, in its standalone form, before anything is done."""
        passages = tuple(passage_from(one, score=1.0 / rank) for rank, one in enumerate(self.context, 1))
        return Evidence(question, scope=scope, passages=passages or None)

    def condensing(self) -> ChatPrompt:
        """The prompt whose answer is the question, understandable without the chat."""
        chat = get_buffer_string(list(self.history))
        asked = CONDENSE.format(chat=chat, question=self.question)
        return ChatPrompt(asked, last=self.question, history=self.history)


def asked_from(value: Any) -> Asked:
    """Read what a chain was called with.

    Args:
        value: a question; a list of messages or a prompt value, whose last message is the question; or a dict with
            ``input`` (or ``question``, ``query``, ``messages``), and perhaps ``chat_history``, ``decision`` and
            ``context``: documents to read instead of retrieving.

    Raises:
        DataError: if there is no question in it.

    Example:
        >>> asked_from([("human", "Who founded Rome?"), ("ai", "Romulus."), ("human", "When?")]).question
        'When?'
    """
    if isinstance(value, str):
        return Asked(check_question(value))
    if isinstance(value, PromptValue):
        return _from_messages(value.to_messages())
    if isinstance(value, BaseMessage):
        return _from_messages([value])
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if isinstance(value, Sequence):
        return _from_messages(value)
    raise DataError(f"expected a question, a dict or messages, not {type(value).__name__}")


def routed_from(value: object, evidence: Evidence) -> Routed:
    """A query whose decision is already made, in whatever form it was passed on.

    Args:
        value: a ``Routed``, a ``Decision``, or the dict of one.
        evidence: what is known of the query; its passages are those that the decided arm shall read.

    Raises:
        DataError: if it is none of these.
    """
    if isinstance(value, Routed):
        return value
    if isinstance(value, Mapping):
        value = decision_from_dict(value)
    if not isinstance(value, Decision):
        raise DataError(f"a decision is a Decision, its dict or a Routed, not {type(value).__name__}")
    return Routed(evidence, value, reader=None if evidence.passages is None else value.arm)


def condenser(given: Runnable[Any, Any] | None, pipeline: Pipeline) -> Arm:
    """What condenses chats: the given model or chain, or else the generator of the pipeline's first closed-book arm.

    A model is given one message with the chat in it, a chain ``{"input", "chat_history"}``.
    """
    if given is None:
        arms = list(pipeline.arms.values())
        return next((arm for arm in arms if not arm.retrieves), arms[0])
    return Arm(
        "condense",
        from_chat_model(given) if model_in(given) is not None else from_chat_model(given, render=_chat_inputs),
    )


def standalone(
    asked: Sequence[Asked], calls: Sequence[Call], arm: Arm, options: Mapping[str, Any]
) -> Course[list[Call]]:
    """The calls with chats condensed, all together, to one question each."""
    chats = [i for i, one in enumerate(asked) if one.history]
    if not chats:
        return list(calls)
    prompts: list[Prompt] = [asked[i].condensing() for i in chats]
    with parents([replace(calls[i], question=prompt.question) for i, prompt in zip(chats, prompts, strict=True)]):
        made: list[Generation] = yield Generate(arm, prompts, options)
    found = {i: generation.text.strip() for i, generation in zip(chats, made, strict=True)}
    return [replace(call, question=found.get(i) or call.question) for i, call in enumerate(calls)]


def _chat_inputs(prompt: Prompt) -> dict[str, Any]:
    chat = cast(ChatPrompt, prompt)
    return {"input": chat.last, "chat_history": list(chat.history)}


def _from_mapping(value: Mapping[str, Any]) -> Asked:
    found = next((value[key] for key in (*QUESTION_KEYS, "messages") if value.get(key) is not None), None)
    if found is None:
        raise DataError(
            f"there is no question: expected one of the keys {', '.join(QUESTION_KEYS)} or messages, "
            f"got {', '.join(map(str, value)) or 'an empty dict'}"
        )
    inner = asked_from(found)
    history = convert_to_messages(value.get("chat_history") or [])
    return Asked(
        inner.question,
        (*history, *inner.history),
        value.get("decision"),
        tuple(value.get("context") or ()),
    )


def _from_messages(value: Sequence[Any]) -> Asked:
    messages = convert_to_messages(value)
    if not messages:
        raise DataError("the list of messages is empty; its last message must be the question")
    *history, last = messages
    if last.type != "human":
        raise DataError(f"the last message must be the question of a human, not of type {last.type!r}")
    return Asked(check_question(str(last.text)), tuple(message for message in history if message.type != "system"))
