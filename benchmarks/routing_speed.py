"""How fast the router decides and fits, and what memory it takes.

Run: OMP_NUM_THREADS=1 python benchmarks/routing_speed.py [--fit] [--json]

Times are medians over rounds, with the quartiles; a busy machine shows in the spread. Bars: 0.1 ms a decision from
features (about 400 of them, 4 arms), 1 ms with extraction over five passages, 10 ms for 1,000 from features, and 60 s
to fit 7,000 rows x 2 arms from features (``--fit``; also with all texts of question and five passages read).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ragft_plugin.evaluation.outcomes import Outcomes
from ragft_plugin.routing import Router
from ragft_plugin.routing.costs import Costs
from ragft_plugin.routing.deciding import decide
from ragft_plugin.routing.path import Terms
from ragft_plugin.routing.plan import learn_plan
from ragft_plugin.routing.rewards import LinearRewards, prior_means
from ragft_plugin.types import Evidence, Passage

ARMS = ("base", "rag", "adapter", "rag+adapter")


def log(n: int, seed: int = 0, arms: tuple[str, ...] = ARMS) -> Outcomes:
    """Queries of 12 words and five passages of 80, words of a vocabulary of 3,000."""
    rng = np.random.default_rng(seed)
    words = [f"w{i:04d}" for i in range(3000)]

    def text(size: int) -> str:
        return " ".join(words[i] for i in rng.zipf(1.3, size) % 3000)

    rows = []
    for i in range(n):
        topic = int(rng.integers(4))
        rows.append(
            {
                "query_id": str(i),
                "query": f"topic{topic} " + text(12),
                "passages": [{"id": str(k), "text": text(80), "score": 1.0 - 0.1 * k} for k in range(5)],
                "reward": {a: int(rng.random() < (0.8 if j == topic else 0.3)) for j, a in enumerate(arms)},
                "drafts": {"adapter": {"text": text(20)}},
                "cost": dict.fromkeys(arms, 1.0),
                "stage_cost": {"passages": 1.0, "draft": 0.0},
            }
        )
    return Outcomes.from_rows(rows, arms)


def timed(run: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Median and quartiles of wall time and the median of processor time, in milliseconds."""
    run()
    wall, cpu = [], []
    for _ in range(rounds):
        began, spent = time.perf_counter(), time.process_time()
        run()
        wall.append(1e3 * (time.perf_counter() - began))
        cpu.append(1e3 * (time.process_time() - spent))
    low, middle, high = (round(float(q), 4) for q in np.quantile(wall, [0.25, 0.5, 0.75]))
    found = {"median_ms": middle, "q25_ms": low, "q75_ms": high, "cpu_ms": round(float(np.median(cpu)), 4)}
    return {**found, "rounds": rounds}


def fit_seconds(n: int, d: int = 400) -> float:
    """CPU seconds to fit reward model, stopping and gate of one stage from features."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) / np.sqrt(d)
    reward = (rng.random((n, 2)) < 0.5 + 0.3 * np.tanh(5 * x[:, :2])).astype(float)
    fold = rng.permutation(n) % 5
    signals = np.arange(d) < 20
    began = time.process_time()
    model = LinearRewards().fit(x, reward, fold, np.ones((n, 2)), signals)
    costs = Costs(np.zeros((n, 1)), np.tile([0.0, 1.0], (n, 1, 1)))
    means = prior_means(reward, np.ones((n, 2)))
    learn_plan([model.out_of_fold_], reward, means, costs, fold, np.arange(n), gated=True, seed=0)
    return time.process_time() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="also fit 7,000 rows")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = log(600)
    router = Router().fit(rows, gate=False)
    parts = router.fitted()
    featurizer = parts.featurizer
    level = len(featurizer.stages) - 1
    width = featurizer.width(featurizer.stages[level])
    setting = router.gate(0.0)
    features = np.random.default_rng(1).normal(size=(1000, width)) * 0.1
    terms = Terms(setting, final=True)
    words = rows.rows[0]
    passages = tuple(Passage(p.id, p.text, p.score or 0.0) for p in words.passages or ())
    item = Evidence(words.query, passages=passages)
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "features": width,
        "arms": len(ARMS),
        "one_from_features": timed(lambda: decide(parts, features[:1], level, terms), 300),
        "thousand_from_features": timed(lambda: decide(parts, features, level, terms), 20),
        "one_with_five_passages": timed(lambda: router.decide([item]), 100),
    }
    if arguments.fit:
        found["fit_7000_rows_cpu_s"] = round(fit_seconds(7000), 2)
        many, began = log(7000, arms=("adapter", "rag")), time.perf_counter()
        Router().fit(many, stages=["question", "passages"])
        found["fit_7000_rows_with_texts_s"] = round(time.perf_counter() - began, 2)
    found["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        print(f"{key:<26} {value}")


if __name__ == "__main__":
    main()
