"""What the router earns on public outcome logs, beside every fixed arm, plain methods and the oracle.

Run: OMP_NUM_THREADS=1 python benchmarks/routing_logs.py [--logs NAME ...] [--seeds 3] [--json]

The logs are read from the folder in RAGFT_BENCH_DATA (default ../shared/bench); those that are not there are skipped
and named. Figures are nested: every query is decided by a router fitted, gated and calibrated without it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ragft_plugin.evaluation.frontier import Point, fixed_points, margin, reward_at
from ragft_plugin.evaluation.outcomes import read_outcomes
from ragft_plugin.routing.crossval import cross_validate
from ragft_plugin.types import Stage

DATA = Path(os.environ.get("RAGFT_BENCH_DATA", "../shared/bench"))


@dataclass(frozen=True)
class Task:
    """A log and how it is used."""

    log: str
    stages: tuple[Stage, ...] | None
    frontier_cost: float | None = None


TASKS = (
    Task("gorilla_torchhub", ("question", "passages")),
    Task("gorilla_tensorflowhub", ("question", "passages", "draft")),
    Task("mirage_gpt35", ("question",)),
    Task("adarague_dev", None, 2.2),
)


def measure(task: Task, seeds: int) -> dict[str, Any]:
    """Mean figures over seeds."""
    outcomes = read_outcomes(DATA / f"{task.log}.jsonl.gz")
    runs = [
        cross_validate(outcomes, 5, seed, stages=task.stages, frontier=task.frontier_cost is not None, baselines=True)
        for seed in range(seeds)
    ]
    keys = ("reward", "reward_ungated", "gain", "oracle_reward", "ece", "brier", "base_brier", "mean_cost")
    row: dict[str, Any] = {key: round(float(np.mean([run[key] for run in runs])), 4) for key in keys}
    row |= {
        "log": task.log,
        "n": len(outcomes),
        "stages": runs[0]["stages"],
        "fixed": {arm: round(f["reward"], 4) for arm, f in runs[0]["fixed"].items()},
        "best_arm_reward": round(runs[0]["best_arm_reward"], 4),
        "gain_ci95": [run["gain_ci95"] for run in runs],
        "gate": [run["gate"] for run in runs],
        "calibration_p": [run["calibration_p"] for run in runs],
        "baselines": {
            name: round(float(np.mean([run["baselines"][name] for run in runs])), 4) for name in runs[0]["baselines"]
        },
    }
    if task.frontier_cost is not None:
        fixed = fixed_points(outcomes.reward, outcomes.cost, outcomes.arms)
        curves = [[Point(p["cost"], p["reward"]) for p in run["frontier"]] for run in runs]
        row[f"reward_at_cost_{task.frontier_cost}"] = [round(reward_at(c, task.frontier_cost), 4) for c in curves]
        row["least_height_above_fixed_arms"] = [round(margin(c, fixed), 4) for c in curves]
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logs", nargs="*", default=[task.log for task in TASKS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for task in TASKS:
        if task.log not in arguments.logs:
            continue
        if not (DATA / f"{task.log}.jsonl.gz").exists():
            print(f"skipped {task.log}: not in {DATA} (set RAGFT_BENCH_DATA)")
            continue
        rows.append(measure(task, arguments.seeds))
        if not arguments.json:
            for key, value in rows[-1].items():
                print(f"  {key:<30} {value}")
            print()
    if arguments.json:
        stamp = {"date": datetime.now(UTC).date().isoformat(), "machine": platform.machine(), "seeds": arguments.seeds}
        print(json.dumps({**stamp, "logs": rows}, indent=2))


if __name__ == "__main__":
    main()
