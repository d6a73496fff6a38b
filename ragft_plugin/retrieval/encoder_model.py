"""A sentence-transformers model: loaded, trained on pairs and triplets, and named by its weights."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ragft_plugin.errors import MissingExtraError


def train_model(
    model: Any,
    pairs: Sequence[tuple[str, str, str | None]],
    work: Path,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Train in place, with sentence-transformers' trainer and its multiple negatives ranking loss.

    Args:
        model: a SentenceTransformer.
        pairs: query, positive text, and negative text or None.
        work: folder for what the trainer writes.
        epochs: times every pair is seen.
        batch_size: pairs per step.
        learning_rate: the highest.
        seed: of order and dropout.
        progress: called with (steps done, steps in all).

    Raises:
        MissingExtraError: if the package that holds the data is not installed.
    """
    try:
        from datasets import Dataset
    except ImportError as error:
        raise MissingExtraError("datasets", "train") from error
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    with quiet():  # version 6 has them in other modules, and still says so of the old ones
        from sentence_transformers.losses import MultipleNegativesRankingLoss
        from sentence_transformers.training_args import BatchSamplers
    from transformers import PrinterCallback, TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if progress is not None:
                progress(state.global_step, state.max_steps)

    # A column is there for all rows or for none: pairs without a hard negative train by themselves.
    sets = {
        "triplets": [{"anchor": q, "positive": p, "negative": n} for q, p, n in pairs if n is not None],
        "pairs": [{"anchor": q, "positive": p} for q, p, n in pairs if n is None],
    }
    with quiet():
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=str(work),
                num_train_epochs=epochs,
                per_device_train_batch_size=batch_size,
                learning_rate=learning_rate,
                warmup_steps=0.1,
                batch_sampler=BatchSamplers.NO_DUPLICATES,
                seed=seed,
                data_seed=seed,
                use_cpu=model.device.type == "cpu",
                dataloader_pin_memory=False,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset={name: Dataset.from_list(rows) for name, rows in sets.items() if rows},
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[Progress()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def load_model(model: Any) -> Any:
    """A model of one's own: a copy of the object, or read from its folder or by its name.

    Raises:
        MissingExtraError: if sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError("sentence-transformers", "sentence-transformers") from error

    if not isinstance(model, str | Path):
        return copy.deepcopy(model)
    with quiet():
        return SentenceTransformer(str(model), local_files_only=Path(model).exists())


def weights_fingerprint(model: Any) -> str:
    """Name and checksum of the weights, so that vectors of another training are never compared with these."""
    whole = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        whole.update(name.encode())
        whole.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()).tobytes())
    return f"tuned-{whole.hexdigest()[:16]}"


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar and no warning about what sentence-transformers itself will change."""
    from transformers.utils import logging as messages

    spoke = messages.is_progress_bar_enabled()
    messages.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if spoke:
            messages.enable_progress_bar()
