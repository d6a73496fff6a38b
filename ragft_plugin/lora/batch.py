"""Batches: rows that are written together, one token a step, with one cache of keys and values.

Rows are padded on the left, so that their newest tokens stand in one column. New rows are read (prefilled) among
themselves and then joined to the rows under way; finished rows leave at once and take their columns along. What new
rows have in common at their start (instructions, examples, the same passages) is read once for all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ragft_plugin.lora.request import Row

Forward = Callable[..., Any]
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


class Network:
    """What a batch must know of a model: how to call it, and whether caches of several rows can be joined.

    Args:
        model: a Hugging Face causal language model.
        pad_id: fills the columns left of short rows; any valid id does, they are masked.
    """

    def __init__(self, model: Any, *, pad_id: int) -> None:
        self.pad_id = pad_id
        self.device = model.get_input_embeddings().weight.device
        taken = inspect.signature(model.forward).parameters
        # Recurrent models name their state otherwise.
        self.cache = "past_key_values" if "past_key_values" in taken else "cache_params"
        self.takes_positions = "position_ids" in taken
        self.keep = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}
        # What one more pass costs, in tokens: Python and, on an accelerator, an idle device.
        self.overhead = 64 if self.device.type == "cpu" else 1024
        kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
        # Padding behind shared columns would count as distance in a sliding window.
        windows = kinds - {"full_attention"} or (not kinds and getattr(model.config, "sliding_window", None))
        # Recurrent layers keep a state instead of columns: their rows are written one by one.
        self.joins = kinds <= _ATTENTION and not getattr(model, "_is_stateful", False)
        self.shares = self.joins and self.takes_positions and not windows


class Batch:
    """Rows under way in one cache.

    Args:
        network: the model's shape.
        forward: runs the model; called as ``forward(rows, **inputs)``, so that it can choose adapters.
    """

    def __init__(self, network: Network, forward: Callable[..., Any]) -> None:
        self.rows: list[Row] = []
        self._network = network
        self._forward = forward
        self._cache: Any = None
        self._padding: list[int] = []  # masked columns left of each row

    def add(self, rows: Sequence[Row]) -> Tensor:
        """Read new rows and join them; returns the logits of their first token, shape (new rows, vocabulary).

        If it raises, the batch is as it was.
        """
        width = max(row.length for row in rows)
        padding = [width - row.length for row in rows]
        shared = self._shared(rows)
        cache = self._read_once(rows, shared) if shared else DynamicCache() if self._network.joins else None
        ids = torch.tensor(
            [[self._network.pad_id] * p + r.request.ids[shared:] for p, r in zip(padding, rows, strict=True)]
        )
        positions = torch.tensor([[0] * p + list(range(shared, width - p)) for p in padding])
        output = self._run(rows, ids, positions, cache, padding, width, shared)
        cache = getattr(output, self._network.cache)
        if shared:
            _move_padding(cache, padding, shared)
        if self.rows:
            self._join(cache, padding)
        else:
            self._cache, self._padding = cache, padding
        self.rows.extend(rows)
        logits: Tensor = output.logits[:, -1]
        return logits

    def step(self) -> Tensor:
        """Read the newest token of every row; returns the logits of the next, shape (rows, vocabulary)."""
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows])
        positions = torch.tensor([[row.length] for row in self.rows])
        width = self._padding[0] + self.rows[0].length + 1
        output = self._run(self.rows, ids, positions, self._cache, self._padding, width)
        self._cache = getattr(output, self._network.cache)
        for row in self.rows:
            row.length += 1
        logits: Tensor = output.logits[:, -1]
        return logits

    def drop(self, gone: set[Row]) -> None:
        """Let rows leave."""
        if not gone:
            return
        kept = [i for i, row in enumerate(self.rows) if row not in gone]
        self.rows = [self.rows[i] for i in kept]
        self._padding = [self._padding[i] for i in kept]
        if not kept:
            self._cache = None
        elif self._network.joins:
            index = torch.tensor(kept, device=self._network.device)
            spare = min(self._padding)  # columns that no row needs any more
            for layer in self._cache.layers:
                layer.keys = layer.keys[index, :, spare:]
                layer.values = layer.values[index, :, spare:]
            self._padding = [p - spare for p in self._padding]

    def _shared(self, rows: Sequence[Row]) -> int:
        """How many tokens at the start of all rows to read once; 0 if that would save nothing."""
        if not self._network.shares or len({row.adapter for row in rows}) > 1:
            return 0
        most = min(row.length for row in rows) - 1  # every row reads a token of its own
        first, last = (f(row.request.ids for row in rows) for f in (min, max))  # in the order of words in a book
        shared = next((i for i in range(most) if first[i] != last[i]), most)
        return shared if shared * (len(rows) - 1) > 2 * self._network.overhead else 0

    def _read_once(self, rows: Sequence[Row], shared: int) -> Any:
        """A cache in which every row has read its first ``shared`` tokens, which were computed for one."""
        ids = torch.tensor([rows[0].request.ids[:shared]])
        output = self._run(rows[:1], ids, torch.arange(shared)[None], DynamicCache(), [0], shared)
        cache = getattr(output, self._network.cache)
        for layer in cache.layers:
            layer.keys = layer.keys.expand(len(rows), -1, -1, -1)
            layer.values = layer.values.expand(len(rows), -1, -1, -1)
        return cache

    def _run(
        self,
        rows: Sequence[Row],
        ids: Tensor,
        positions: Tensor,
        cache: Any,
        padding: list[int],
        width: int,
        shared: int = 0,
    ) -> Any:
        device = self._network.device
        inputs: dict[str, Any] = {"input_ids": ids.to(device), "use_cache": True}
        if cache is not None:
            inputs[self._network.cache] = cache
        if self._network.takes_positions:
            inputs["position_ids"] = positions.to(device)
        # Without padding the model's own causal mask is right, and faster.
        if any(padding) or not self._network.takes_positions:
            columns, left = torch.arange(width)[None], torch.tensor(padding)[:, None]
            seen = (columns < shared) | (columns >= shared + left)  # padding stands behind what is shared
            inputs["attention_mask"] = seen.long().to(device)
        return self._forward(rows, **inputs, **self._network.keep)

    def _join(self, cache: Any, padding: list[int]) -> None:
        old, new = self._cache.layers[0].keys.shape[-2], cache.layers[0].keys.shape[-2]
        width = max(old, new)
        for mine, theirs in zip(self._cache.layers, cache.layers, strict=True):
            mine.keys = torch.cat([_widen(mine.keys, width), _widen(theirs.keys, width)])
            mine.values = torch.cat([_widen(mine.values, width), _widen(theirs.values, width)])
        self._padding = [p + width - old for p in self._padding] + [p + width - new for p in padding]


def portions(rows: Sequence[Row], *, most: int, overhead: int) -> list[list[Row]]:
    """Rows of like length together, so that few tokens are padding.

    Args:
        rows: to be read.
        most: padded tokens in one portion, unless one row alone has more.
        overhead: tokens of padding that are cheaper than one more portion.
    """
    made: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.length):
        if made:
            last = made[-1]
            padding = len(last) * (row.length - last[-1].length)
            if padding <= overhead and (len(last) + 1) * row.length <= most:
                last.append(row)
                continue
        made.append([row])
    return made


def _move_padding(cache: Any, padding: list[int], shared: int) -> None:
    """Bring the padding behind the shared columns before them, where every other row has it."""
    if not any(padding):
        return
    width = cache.layers[0].keys.shape[-2]
    orders = []
    for p in padding:
        orders.append([*range(shared, shared + p), *range(shared), *range(shared + p, width)])
    order = torch.tensor(orders, device=cache.layers[0].keys.device)[:, None, :, None]
    for layer in cache.layers:
        layer.keys = layer.keys.take_along_dim(order, dim=2)
        layer.values = layer.values.take_along_dim(order, dim=2)


def _widen(columns: Tensor, width: int) -> Tensor:
    """Pad keys or values, shape (rows, heads, columns, size), on the left with zeros."""
    missing = width - columns.shape[-2]
    return torch.nn.functional.pad(columns, (0, 0, missing, 0)) if missing else columns
