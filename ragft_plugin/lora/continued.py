"""Continued pretraining: an adapter that reads documents, word after word, before it is ever asked.

Texts are joined, each closed by the end token, and cut into blocks of equal length, so that no token is spent on
padding (packing). The loss is on every token. Evaluation is the perplexity of held-out documents, exactly

    exp( - sum log p(token | those before it in the block) / number of such tokens )

computed by the code that serves the adapter. Facts that are only read are learnt far less well than facts that are
asked about: generate questions as well (``question_generation``).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ragft_plugin.errors import DataError
from ragft_plugin.lora.base import load_base
from ragft_plugin.lora.fingerprints import digest
from ragft_plugin.lora.manifest import TrainedOn
from ragft_plugin.lora.model import LoraModel
from ragft_plugin.lora.names import check_name
from ragft_plugin.lora.policy import settings_of
from ragft_plugin.lora.publication import Origin, publish
from ragft_plugin.lora.recipe import Recipe
from ragft_plugin.lora.rendering import Renderer, TrainingIds
from ragft_plugin.lora.tuning import tune
from ragft_plugin.types import Passage

_COVERED = 2_000  # texts in the coverage index, evenly chosen


@dataclass(frozen=True, slots=True)
class ReadingReport:
    """What a continued pretraining did.

    Attributes:
        name, version, folder: the adapter, and where it lies.
        steps: optimiser steps made.
        seconds: wall time of the steps.
        tokens: tokens of the training texts.
        blocks: blocks they were packed into.
        losses: (step, training loss in nats per token).
        perplexity_before, perplexity_after: of the held-out texts, or None.
    """

    name: str
    version: str
    folder: Path
    steps: int
    seconds: float
    tokens: int
    blocks: int
    losses: tuple[tuple[int, float], ...]
    perplexity_before: float | None
    perplexity_after: float | None


def train_on_documents(
    base: LoraModel | str | Path,
    documents: Sequence[Passage],
    out: str | Path,
    *,
    name: str,
    eval_documents: Sequence[Passage] = (),
    block: int | None = None,
    recipe: Recipe | None = None,
    resume: bool = False,
    promote: bool = True,
    max_seconds: float | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> ReadingReport:
    """Train an adapter on the text of documents and put it into a registry.

    Args:
        base: a folder, a name on the hub, or a loaded model (its files are loaded afresh for training).
        documents: texts, as ``read_document`` or a knowledge base gives them.
        out: folder of the registry.
        name: of the adapter.
        eval_documents: held-out texts; one that is a training text too is refused.
        block: tokens per block; None is the base's context, at most 1,024.
        recipe: the settings.
        resume: go on from the last checkpoint of an interrupted training, if there is one.
        promote: let the new version answer at once.
        max_seconds: stop after so long and keep what there is.
        device: "auto", "cpu", "cuda", ...
        progress: called with (steps done, steps in all).

    Raises:
        DataError: if there is no text, or a held-out text is a training text.

    Example:
        >>> report = train_on_documents(base, kb.get(kb.ids()), "adapters", name="manuals")  # doctest: +SKIP
        >>> report.perplexity_after < report.perplexity_before  # doctest: +SKIP
        True
    """
    check_name(name)
    recipe = recipe or Recipe()
    if isinstance(base, LoraModel):
        label, device = str(base.base.folder), str(base.base.model.device)
    else:
        label = str(base)
    seen = {_key(d) for d in documents}
    both = [d.id for d in eval_documents if _key(d) in seen]
    if both:
        raise DataError(f"{len(both)} held-out texts are training texts too (first: {both[0]!r}); hold out others")
    loaded = load_base(label, device=device, dtype="float32")
    length = min(block or 1024, loaded.context)
    blocks = pack(documents, loaded.renderer, length)
    held = pack(eval_documents, loaded.renderer, length) if eval_documents else []
    origin = Origin.of(loaded, label)
    data = TrainedOn(
        rows=len(blocks),
        sha256=digest(repr(blocks).encode()),
        eval_rows=len(held),
        passages={d.id: digest(d.text.encode()) for d in documents},
    )
    work = Path(out) / f".training-{name}"
    tuned = tune(
        loaded,
        [_row(ids) for ids in blocks],
        [_row(ids) for ids in held],
        recipe,
        work,
        identity=f"continued {origin.fingerprints.model_dump_json()} {data.model_dump_json()} {recipe!r}",
        resume=resume,
        max_seconds=max_seconds,
        progress=progress,
    )
    del loaded
    chosen = documents[:: math.ceil(len(documents) / _COVERED)]
    version, before, after = publish(
        origin,
        work / "final",
        out,
        name=name,
        method="continued" if recipe.method == "lora" else f"continued+{recipe.method}",
        settings=settings_of(recipe, block=length),
        data=data,
        metrics={"steps": float(tuned.steps), "seconds": round(tuned.seconds, 3)},
        measure=lambda served, adapter: {"perplexity": perplexity(served, adapter, held)} if held else {},
        questions=[d.text for d in chosen],
        promote=promote,
    )
    shutil.rmtree(work, ignore_errors=True)
    return ReadingReport(
        name=name,
        version=version.version,
        folder=version.folder,
        steps=tuned.steps,
        seconds=tuned.seconds,
        tokens=sum(map(len, blocks)),
        blocks=len(blocks),
        losses=tuned.losses,
        perplexity_before=before.get("perplexity"),
        perplexity_after=after.get("perplexity"),
    )


def pack(documents: Sequence[Passage], renderer: Renderer, length: int) -> list[list[int]]:
    """Token ids of the texts, joined and cut into blocks.

    Args:
        documents: texts; special tokens in them are broken, so that none can end a text.
        renderer: of the base.
        length: tokens per block; the last one is shorter, and a rest of one token is left out.

    Raises:
        DataError: if there is no text.
    """
    ids: list[int] = []
    for document in documents:
        if text := document.text.strip():
            # A space before the first word: a word has the same token there as anywhere else.
            ids += [*renderer.encode(" " + renderer.escape(text)), renderer.end_ids[0]]
    blocks = [ids[i : i + length] for i in range(0, len(ids), length)]
    blocks = [b for b in blocks if len(b) > 1]  # one token predicts nothing
    if not blocks:
        raise DataError("the documents hold no text to learn from; check what was read from them")
    return blocks


def perplexity(model: LoraModel, adapter: str | None, blocks: Sequence[Sequence[int]]) -> float:
    """Perplexity of blocks of token ids under a served adapter, or under the base (None)."""
    logprobs = [p for ids in blocks for p in model.logprobs(ids, 1, adapter=adapter)]
    return math.exp(-sum(logprobs) / len(logprobs))


def _row(ids: list[int]) -> TrainingIds:
    return TrainingIds(ids, list(ids), ended=False)


def _key(document: Passage) -> str:
    return " ".join(document.text.split())
