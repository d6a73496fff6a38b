"""Measure a task beyond short answers on the pocket model: scripts/measure_tasks.py long-form|extraction [SEED]."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from ragft_plugin.demo.task_trial import TASKS, measure_task


def main() -> None:
    """Train, measure, and show the table with one answer."""
    began = time.perf_counter()
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as folder:
        result = measure_task(TASKS[sys.argv[1]], Path(folder), seed=seed)
    print(result)
    for way, answers in result.answers.items():
        print(f"{way}: {answers[0]!r}")
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
