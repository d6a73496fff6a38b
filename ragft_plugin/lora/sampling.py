"""Sampling: from logits to the next token of every row, with its log-probability, margin and entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ragft_plugin.lora.request import Row


def extend(rows: Sequence[Row], logits: Tensor) -> None:
    """Append one token to every row.

    Log-probability, margin and entropy are those of the model itself (temperature 1), so that they mean the same
    for greedy and for sampled answers.

    Args:
        rows: n rows.
        logits: shape (n, vocabulary).
    """
    logits = logits.float()
    logprobs = torch.log_softmax(logits, dim=-1)
    best = logits.argmax(dim=-1)
    chosen = best
    if any(row.draws is not None for row in rows):
        chosen = torch.stack([_draw(row, logits[i], best[i]) for i, row in enumerate(rows)])
    top = logprobs.topk(2, dim=-1).values
    got = logprobs.gather(-1, chosen[:, None])[:, 0]
    runner_up = torch.where(chosen == best, top[:, 1], top[:, 0])
    entropy = torch.special.entr(logprobs.exp()).sum(-1)
    numbers = torch.stack([got, got - runner_up, entropy]).tolist()
    for row, token, logprob, margin, spread in zip(rows, chosen.tolist(), *numbers, strict=True):
        row.tokens.append(token)
        row.logprobs.append(logprob)
        row.margins.append(margin)
        row.entropies.append(spread)


def _draw(row: Row, logits: Tensor, best: Tensor) -> Tensor:
    if row.draws is None:
        return best
    # Inverse of the cumulative distribution at a number of the request's own: one number a token, whatever
    # stands beside it in the batch.
    at = torch.rand((), generator=row.draws, dtype=torch.float64)
    shares = torch.softmax(logits.double() / row.request.options.temperature, dim=-1).cumsum(-1)
    token = torch.searchsorted(shares, at.to(shares) * shares[-1], right=True)
    return token.clamp(max=len(logits) - 1)
