"""What goes into a routed chain and comes out of it, whole or in parts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import (
    Any,
    NotRequired,  # pydantic cannot read typing's own before Python 3.12
)

from langchain_core.documents import Document
from langchain_core.messages import AnyMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.utils import AddableDict
from typing_extensions import TypedDict

from ragft_plugin.answer_stream import AnswerStream
from ragft_plugin.decision_record import decision_to_dict
from ragft_plugin.langchain.citation import Citation, citations
from ragft_plugin.langchain.documents import document_from
from ragft_plugin.langchain.questions import Asked, asked_from
from ragft_plugin.langchain.runs import Call
from ragft_plugin.types import Answer, Evidence


class RoutedInput(TypedDict):
    """A question, perhaps with the chat that led to it, a decision made and documents retrieved elsewhere."""

    input: str
    chat_history: NotRequired[list[AnyMessage]]
    decision: NotRequired[dict[str, Any]]
    context: NotRequired[list[Document]]


class RoutedOutput(TypedDict):
    """The answer, what was read for it, and why. The keys are those of ``create_retrieval_chain``, and ``decision``."""

    input: str
    context: list[Document]
    answer: str
    decision: dict[str, Any]
    citations: NotRequired[list[Citation]]


def output_of(asked: Asked, answer: Answer, cite: bool) -> dict[str, Any]:
    """An answer as the chain returns it."""
    assert answer.decision is not None  # a pipeline's answers are decided ones
    documents = [document_from(passage) for passage in answer.passages]
    output = {
        "input": asked.question,
        "context": documents,
        "answer": answer.text,
        "decision": decision_to_dict(answer.decision),
    }
    return {**output, "citations": citations(answer.text, documents)} if cite else output


def part_of(asked: Asked, stream: AnswerStream, piece: str, first: bool) -> AddableDict:
    """One piece of an answer as the chain streams it; the first brings all but the answer along."""
    if not first:
        return AddableDict(answer=piece)
    assert stream.routed is not None  # known from the first piece on
    decision = stream.routed.decision
    documents = [document_from(passage) for passage in stream.passages]
    return AddableDict(input=asked.question, decision=decision_to_dict(decision), context=documents, answer=piece)


def end_of(asked: Asked, stream: AnswerStream, silent: bool, cite: bool) -> Iterator[AddableDict]:
    """What follows the last piece."""
    if silent:
        yield part_of(asked, stream, "", True)
    if cite and stream.answer is not None:
        documents = [document_from(passage) for passage in stream.answer.passages]
        yield AddableDict(citations=citations(stream.answer.text, documents))


def joined(parts: list[Any]) -> Any:
    """The whole of a streamed input; parts that do not add up are followed by the last.

    Example:
        >>> joined(["Who founded", " Rome?"])
        'Who founded Rome?'
    """
    try:
        return reduce(add, parts)
    except TypeError:
        return parts[-1]


def read(
    inputs: list[Any], managers: list[Any], configs: list[RunnableConfig], isolate: bool
) -> tuple[list[Asked], list[Call], dict[int, Exception]]:
    """The questions that can be read; with ``isolate``, errors by position for those that cannot."""
    asked: list[Asked] = []
    calls: list[Call] = []
    faults: dict[int, Exception] = {}
    for i, (value, manager, config) in enumerate(zip(inputs, managers, configs, strict=True)):
        try:
            asked.append(asked_from(value))
        except Exception as error:
            if not isolate:
                raise
            faults[i] = error
        else:
            calls.append(Call.of(asked[-1].question, manager, config))
    return asked, calls, faults


def merge(made: list[Any], faults: dict[int, Exception], n: int) -> list[Any]:
    """Answers and faults in the order of the questions."""
    rest = iter(made)
    return [faults[i] if i in faults else next(rest) for i in range(n)]


def undecided(asked: list[Asked], calls: list[Call], request: dict[str, Any]) -> tuple[list[Call], list[Evidence]]:
    """The calls that come without a decision, and what is known of their questions."""
    both = [(one, call) for one, call in zip(asked, calls, strict=True) if one.decision is None]
    return [call for _, call in both], [one.evidence(call.question, request["scope"]) for one, call in both]
