from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ragft_plugin.lora import LoraModel
from ragft_plugin.lora.batch import Batch, portions
from ragft_plugin.lora.options import Options
from ragft_plugin.lora.request import Request, Row
from ragft_plugin.lora.sampling import extend

START = [7 + n % 90 for n in range(0, 180, 3)]  # 60 tokens that prompts have in common
ENDS = [[5, 6], [9], [30, 31, 32, 33, 34, 8], [5, 9, 12]]


def row(ids: list[int], adapter: str | None = None) -> Row:
    return Row.of(Request(ids, adapter, Options(max_new_tokens=8)), adapter)


class Counting:
    """The worker's forward pass, which notes the shape of what it read."""

    def __init__(self, model: LoraModel) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self._worker = model.worker

    def __call__(self, rows: Any, **inputs: Any) -> Any:
        self.shapes.append(tuple(inputs["input_ids"].shape))
        return self._worker._forward(rows, **inputs)


def written(model: LoraModel, groups: list[list[list[int]]], adapter: str | None, steps: int = 6) -> Any:
    """Groups of prompts read one after another into one batch, then written together: rows, and shapes of passes."""
    inner = model._set.resolve(adapter)
    forward = Counting(model)
    batch = Batch(model.worker._network, forward)

    def run() -> list[Row]:
        with torch.inference_mode():
            for prompts in groups:
                rows = [row(ids, inner) for ids in prompts]
                extend(rows, batch.add(rows))
            for _ in range(steps):
                extend(batch.rows, batch.step())
        return batch.rows

    return model.worker.call(run), forward.shapes


@pytest.mark.parametrize("adapter", [None, "red"])
def test_what_prompts_have_in_common_is_read_once_and_answered_as_alone(model: LoraModel, adapter: str | None) -> None:
    prompts = [START + end for end in ENDS]
    # Into an empty batch, and to join rows under way.
    for groups in ([prompts], [[[11, 12, 13]], prompts], [prompts, [START[:5], START]]):
        rows, shapes = written(model, groups, adapter)
        assert (1, 60) in shapes
        assert (4, 6) in shapes
        for got in rows:
            (alone,), _ = written(model, [[got.request.ids]], adapter)
            assert got.tokens[: len(alone.tokens)] == alone.tokens[: len(got.tokens)]
            n = min(len(got.logprobs), len(alone.logprobs))
            assert got.logprobs[:n] == pytest.approx(alone.logprobs[:n], abs=1e-4)


def test_little_in_common_and_different_adapters_are_read_apart(model: LoraModel) -> None:
    _, shapes = written(model, [[START[:20] + end for end in ENDS]], None, steps=1)
    assert shapes == [(4, 26), (4, 1)]  # 3 times 20 tokens are not worth a pass
    _, shapes = written(model, [[[*START, 5], [*START, 6]]], None, steps=1)
    assert shapes == [(2, 61), (2, 1)]
    inner = model._set.resolve("red")
    batch = Batch(model.worker._network, Counting(model))
    rows = [row(START + end, adapter) for end, adapter in zip(ENDS, [None, inner] * 2, strict=True)]
    assert batch._shared(rows) == 0
    assert batch._shared([row(START, None)] * 4) == 59  # equal prompts: each still reads its last token


def test_portions_hold_rows_of_like_length() -> None:
    rows = [row([1] * n) for n in (50, 3, 48, 5, 4, 49)]
    made = portions(rows, most=1000, overhead=16)
    assert [[r.length for r in portion] for portion in made] == [[3, 4, 5], [48, 49, 50]]
    # 3 rows wait for one that is 43 longer: 129 tokens of padding, cheaper than a pass of 200.
    made = portions(rows, most=1000, overhead=200)
    assert [[r.length for r in portion] for portion in made] == [[3, 4, 5, 48, 49, 50]]
    made = portions(rows, most=100, overhead=200)
    assert [[r.length for r in portion] for portion in made] == [[3, 4, 5], [48, 49], [50]]
    assert [[r.length for r in portion] for portion in portions([row([1] * 70)], most=10, overhead=0)] == [[70]]


def test_rows_that_are_written_mixed_are_read_by_adapter(base_folder: Path, adapter_folders: dict[str, Path]) -> None:
    passes: list[tuple[int, tuple[int, ...]]] = []
    with LoraModel.load(base_folder, batching="mixed") as model:
        for name in ("red", "green"):
            model.load_adapter(name, adapter_folders[name])
        forward = model.worker.forward

        def counting(adapters: Any, **inputs: Any) -> Any:
            passes.append((len(set(adapters)), tuple(inputs["input_ids"].shape)))
            return forward(adapters, **inputs)

        model.worker.forward = counting  # type: ignore[method-assign]
        options = Options(max_new_tokens=4)
        requests = [Request(START + end, name, options) for name in ("red", "green") for end in ENDS]
        few = [Request([9, 8, 7], None, options), Request([9, 8], "red", options)]
        model.worker.submit([*requests, few[0]])
        for request in (*requests, few[0]):
            request.future.result(60)
        assert passes[:5] == [(1, (1, 60)), (1, (4, 6)), (1, (1, 60)), (1, (4, 6)), (1, (1, 3))]
        assert (3, (9, 1)) in passes[5:]
        passes.clear()
        model.worker.submit([Request([9, 8, 7], None, options), few[1]])  # too few for passes of their own
        few[1].future.result(60)
        assert passes[0] == (2, (2, 3))
