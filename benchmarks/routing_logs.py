"""What the router earns on public outcome logs, beside every fixed arm, plain methods and the oracle.

Run: OMP_NUM_THREADS=1 python benchmarks/routing_logs.py [--logs NAME ...] [--seeds 3] [--json]

The logs are read from the folder in RAGFT_BENCH_DATA (default ../shared/bench); those that are not there are skipped
and named. Figures are nested: every query is decided by a router fitted, gated and calibrated without it. Each is a
mean over seeds of the folds, with the smallest and the largest; the queries are the same, so this spread is that of
fitting alone, and ``gain_ci95`` says what other queries might have shown.
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
    """Figures over seeds: means with the smallest and the largest, and lists with one entry per seed."""
    outcomes = read_outcomes(DATA / f"{task.log}.jsonl.gz")
    runs = [
        cross_validate(outcomes, 5, seed, stages=task.stages, frontier=task.frontier_cost is not None, baselines=True)
        for seed in range(seeds)
    ]
    row: dict[str, Any] = {
        "log": task.log,
        "n": len(outcomes),
        "stages": runs[0]["stages"],
        "draft_arm": runs[0]["draft_arm"],
        "policies": policies(runs),
        "gate": [run["gate"] for run in runs],
        "gates_open_of_5": [run["gates_open"] for run in runs],
        "gain": [run["gain"] for run in runs],
        "gain_ci95": [run["gain_ci95"] for run in runs],
    }
    for key in ("headroom_captured", "mean_cost_ungated", "ece", "brier", "base_brier"):
        row[key] = spread([run[key] for run in runs])
    for suffix in ("", "_ungated"):
        for test in ("calibration_p", "spiegelhalter_p"):
            row[test + suffix] = [round(run[test + suffix], 3) for run in runs]
    if task.frontier_cost is not None:
        fixed = fixed_points(outcomes.reward, outcomes.cost, outcomes.arms)
        curves = [[Point(p["cost"], p["reward"]) for p in run["frontier"]] for run in runs]
        for cost in (1.0, 1.5, task.frontier_cost, 3.0):
            row[f"reward_at_cost_{cost}"] = spread([reward_at(curve, cost) for curve in curves])
        row["least_height_above_fixed_arms"] = spread([margin(curve, fixed) for curve in curves])
    return row


def policies(runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Everything that could have answered, on the same queries and features: mean reward, smallest, largest."""
    first = runs[0]
    table = {f"always {arm}": spread([run["fixed"][arm]["reward"] for run in runs]) for arm in first["fixed"]}
    table["random"] = spread([run["random_reward"] for run in runs])
    for name in first["baselines"]:
        table[name] = spread([run["baselines"][name] for run in runs])
    table["router, ungated"] = spread([run["reward_ungated"] for run in runs])
    table["router"] = spread([run["reward"] for run in runs])
    table["oracle"] = spread([run["oracle_reward"] for run in runs])
    return table


def spread(values: list[float]) -> list[float]:
    """Mean, smallest and largest."""
    return [round(float(f(values)), 4) for f in (np.mean, np.min, np.max)]


def show(row: dict[str, Any]) -> None:
    """Print figures for people."""
    for key, value in row.items():
        if key == "policies":
            for name, figures in value.items():
                print(f"    {name:<28} {figures[0]:.4f}  [{figures[1]:.4f}, {figures[2]:.4f}]")
        else:
            print(f"  {key:<30} {value}")
    print(flush=True)


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
            show(rows[-1])
    if arguments.json:
        stamp = {"date": datetime.now(UTC).date().isoformat(), "machine": platform.machine(), "seeds": arguments.seeds}
        print(json.dumps({**stamp, "logs": rows}, indent=2))


if __name__ == "__main__":
    main()
