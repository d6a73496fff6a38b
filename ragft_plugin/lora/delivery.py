"""Delivery: from the tokens of a row to the text that its caller sees, whole or in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from ragft_plugin.lora.rendering import Renderer
from ragft_plugin.lora.request import Row
from ragft_plugin.types import Generation, Usage


def deliver(row: Row, renderer: Renderer) -> bool:
    """Stream what is new of a row and complete it if it is finished.

    Args:
        row: with at least one token.
        renderer: decodes, and knows the end tokens.

    Returns:
        Whether it is finished.
    """
    request, options = row.request, row.request.options
    ended = row.tokens[-1] in renderer.end_ids
    finished = ended or len(row.tokens) >= options.max_new_tokens
    if not (finished or options.stop or request.emit):
        return False
    text = renderer.decode(row.tokens)
    cut = min((at for s in options.stop if (at := text.find(s)) >= 0), default=-1)
    if cut >= 0:
        text, ended, finished = text[:cut], True, True
    whole = text.strip()
    if request.emit:
        safe = whole if finished else settled(text.lstrip(), options.stop)
        if len(safe) > row.sent:
            request.emit(safe[row.sent :])
            row.sent = len(safe)
    if finished:
        request.succeed(
            Generation(
                whole,
                tuple(row.logprobs),
                tuple(row.margins),
                tuple(row.entropies),
                Usage(len(request.ids), len(row.tokens)),
                "stop" if ended else "length",
            )
        )
    return finished


def settled(text: str, stop: Sequence[str]) -> str:
    """As much of ``text`` as later tokens cannot take back.

    Example:
        >>> settled("one two EN", ["END"])
        'one two'
    """
    text = text.rstrip("\ufffd")  # half a character
    held = 0
    for string in stop:
        for size in range(min(len(string) - 1, len(text)), held, -1):
            if text.endswith(string[:size]):
                held = size
                break
    return text[: len(text) - held].rstrip()
