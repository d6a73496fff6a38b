"""Open-book and closed-book prompts: the same functions for training and for answering.

A chat template that knows transformers' ``documents`` argument gets the passages that way. Any other model gets
them in a system message. So a question is rendered in one place, whoever answers it, and training on one shape
while answering in another cannot happen.
"""

from __future__ import annotations

from collections.abc import Sequence

from ragft_plugin.errors import DataError
from ragft_plugin.types import Passage, Prompt

MAX_QUESTION_CHARACTERS = 20_000
INSTRUCTION = "Answer from these passages, briefly. If they do not hold the answer, say: I do not know."


def closed_book(question: str) -> Prompt:
    """A prompt without passages."""
    return Prompt(check_question(question))


def open_book(question: str, passages: Sequence[Passage]) -> Prompt:
    """A prompt with passages, best first."""
    return Prompt(check_question(question), tuple(passages))


def check_question(question: str) -> str:
    """Return the question stripped of surrounding space.

    Raises:
        DataError: if it is empty, not valid Unicode, or longer than ``MAX_QUESTION_CHARACTERS``.
    """
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the question is not valid Unicode (character {error.start}: {error.reason}); decode it as UTF-8 first"
        ) from error
    stripped = question.strip()
    if not stripped:
        raise DataError("the question is empty; pass at least one word")
    if len(stripped) > MAX_QUESTION_CHARACTERS:
        raise DataError(
            f"the question has {len(stripped):,} characters, at most {MAX_QUESTION_CHARACTERS:,} are "
            "taken; put long material into the knowledge base and ask about it"
        )
    return stripped


def messages(prompt: Prompt) -> list[dict[str, str]]:
    """The prompt as chat messages, passages in a system message; a system message of the chat is put before them.

    Example:
        >>> messages(Prompt("Where?", (Passage("1", "In Rome."),)))[0]["content"].splitlines()[-1]
        '[1] In Rome.'
    """
    turns = [{"role": role, "content": text} for role, text in (*prompt.turns, ("user", prompt.question))]
    if prompt.passages:
        listed = "\n\n".join(f"[{i}] {p.text}" for i, p in enumerate(prompt.passages, 1))
        own = [turns.pop(0)["content"]] if turns[0]["role"] == "system" else []
        turns.insert(0, {"role": "system", "content": "\n\n".join([*own, INSTRUCTION, listed])})
    return turns


def documents(prompt: Prompt) -> list[dict[str, str]] | None:
    """The passages as transformers' ``documents`` (title, text), or None for closed-book."""
    if prompt.passages is None:
        return None
    return [
        {"title": str(p.metadata.get("title") or p.metadata.get("source") or p.id), "text": p.text}
        for p in prompt.passages
    ]
