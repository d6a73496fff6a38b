"""Training: what the checks and the watching cost over plain transformers.

    python benchmarks/lora_training.py

tuning      20 steps of ``tune`` against the same 20 steps of a plain Trainer over PEFT (wanted: <= 1.3 times).
checking    10,000 rows read from a file and checked (wanted: <= 10 s).

Processor time is given beside wall time, because it does not count what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lora_serving import WORDS, random_base
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ragft_plugin.lora import check_rows, read_rows
from ragft_plugin.lora.base import load_base
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.lora.recipe import Recipe, linear_modules
from ragft_plugin.lora.tuning import tune


def write_rows(path: Path, n: int) -> Path:
    """A file of random questions and answers."""
    chance = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            question = " ".join(chance.choices(WORDS, k=12)) + f" {i}?"
            file.write(json.dumps({"question": question, "answer": " ".join(chance.choices(WORDS, k=4))}) + "\n")
    return path


def timed(way: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - wall, time.process_time() - cpu


def spread(values: list[float]) -> dict[str, float]:
    """Median, least, most and number."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def main() -> None:
    """Run both parts and print a report in JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, quiet():
        root = Path(scratch)
        folder = random_base(root / "base", hidden=256, layers=4)
        path = write_rows(root / "rows.jsonl", 10_000)
        renderer = load_base(folder, device="cpu").renderer
        checking = [timed(lambda: check_rows(read_rows(path), renderer, max_length=256)) for _ in range(3)]
        rows = check_rows(read_rows(path)[:160], renderer, max_length=256)[0]
        recipe = Recipe(r=16, max_steps=20, batch_size=8, learning_rate=1e-3)

        def ours(number: int) -> None:
            base = load_base(folder, device="cpu", dtype="float32")
            tune(
                base, rows, [], recipe, root / f"o{number}", identity="", resume=False, max_seconds=None, progress=None
            )

        def plain(number: int) -> None:
            base = load_base(folder, device="cpu", dtype="float32")
            config = LoraConfig(r=16, lora_alpha=32, target_modules=linear_modules(base.model), task_type="CAUSAL_LM")
            model = get_peft_model(base.model, config)
            trainer = Trainer(
                model=model,
                args=TrainingArguments(
                    output_dir=str(root / f"p{number}"), max_steps=20, per_device_train_batch_size=8, use_cpu=True,
                    learning_rate=1e-3, report_to=[], disable_tqdm=True, remove_unused_columns=False,
                ),
                train_dataset=[{"input_ids": r.ids, "labels": r.labels} for r in rows],
                data_collator=DataCollatorForSeq2Seq(base.tokenizer, label_pad_token_id=-100),
            )  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            model.save_pretrained(str(root / f"p{number}" / "final"))

        pairs = []
        for n in range(args.rounds + 1):  # the first one warms up; who goes first changes from round to round
            first, second = (ours, plain) if n % 2 else (plain, ours)
            times = [timed(lambda way=way, n=n: way(n)) for way in (first, second)]
            pairs.append(tuple(times if n % 2 else times[::-1]))
        pairs = pairs[1:]
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "rounds": args.rounds,
        "checking_10000_rows_wall_seconds": spread([wall for wall, _ in checking]),
        "checking_10000_rows_cpu_seconds": spread([cpu for _, cpu in checking]),
        "tuning_over_plain_wall": spread([a[0] / b[0] for a, b in pairs]),
        "tuning_over_plain_cpu": spread([a[1] / b[1] for a, b in pairs]),
        "plain_wall_seconds": spread([b[0] for _, b in pairs]),
        "tuning_wall_seconds": spread([a[0] for a, _ in pairs]),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
