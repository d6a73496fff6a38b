"""Retrieval and fine-tuning side by side, measured on the demo's world.

    ragft demo && python benchmarks/retrieval_and_tuning.py [ragft-demo] [--json FILE]

Quality is the reward of each arm on the demo's test questions; the rest is timed here: one answer at a time, and the
time until a new fact is answered (add a passage and ask; an adapter has to be trained anew, its manifest tells how
long that took).
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ragft_plugin.assembly import Project
from ragft_plugin.config import Config, read_config
from ragft_plugin.demo.questions import documents
from ragft_plugin.demo.world import draw_site, passage, question
from ragft_plugin.evaluation.intervals import bootstrap_mean
from ragft_plugin.evaluation.outcomes import Outcomes, read_outcomes
from ragft_plugin.lora.manifest import Manifest
from ragft_plugin.retrieval import KnowledgeBase
from ragft_plugin.types import Passage, Prompt

# What is asked -> (kind of the demo's questions, the arm that tuning offers for it).
QUALITY = {
    "static facts, in documents and training": ("both", "adapter:facts"),
    "facts that changed since training": ("changed", "adapter:facts"),
    "rare facts, in the documents only": ("documents only", "adapter:facts"),
    "tacit facts, in the training only": ("adapter only", "adapter:facts"),
    "nobody knows: says so": ("unknown", "adapter:facts"),
    "a fixed format": ("plain ticket", "adapter:tickets"),
    "a fixed format that needs looking up": ("lookup ticket", "adapter:tickets"),
}


def quality(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Mean reward with interval per kind: retrieval, tuning, both together, and n."""
    column = {arm: i for i, arm in enumerate(outcomes.arms)}
    group = np.array([row.group for row in outcomes.rows])
    rows = []
    for label, (kind, adapter) in QUALITY.items():
        at = group == kind
        arms = ("rag", adapter, f"rag+{adapter}")
        rows.append({"what": label, "n": int(at.sum()), **{a: _mean(outcomes.reward[at, column[a]]) for a in arms}})
    return rows


def _mean(values: np.ndarray) -> dict[str, float]:
    interval = bootstrap_mean(values)
    return {"mean": round(interval.value, 3), "low": round(interval.low, 3), "high": round(interval.high, 3)}


def latency(project: Project, queries: list[str]) -> dict[str, dict[str, float]]:
    """Seconds and tokens of one answer, median with the middle half, each arm asked in turn."""
    pipeline = project.pipeline()
    found: dict[str, dict[str, float]] = {}
    arms = ("rag", "adapter:facts")
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    tokens: dict[str, list[int]] = {arm: [] for arm in arms}
    for query in queries:
        for arm in arms:
            began = time.perf_counter()
            answer = pipeline.answer(query, arm=arm)
            seconds[arm].append(time.perf_counter() - began)
            tokens[arm].append(answer.usage.prompt_tokens + answer.usage.completion_tokens)
    for arm in arms:
        low, middle, high = np.quantile(seconds[arm], [0.25, 0.5, 0.75]).tolist()
        found[arm] = {
            "ms": round(1e3 * middle, 1),
            "ms_q1": round(1e3 * low, 1),
            "ms_q3": round(1e3 * high, 1),
            "tokens": round(float(np.mean(tokens[arm])), 1),
        }
    return found


def fresh_fact(config: Config, project: Project, repeats: int = 10) -> dict[str, Any]:
    """Seconds from a new document to the answer, by retrieval, on a knowledge base like the demo's."""
    rng = random.Random(5)
    taken: list[float] = []
    right = 0
    arm = next(arm for arm in project.arms() if arm.name == "rag")
    with (
        tempfile.TemporaryDirectory() as folder,
        KnowledgeBase.create(Path(folder) / "kb", encoder=config.encoder) as base,  # type: ignore[arg-type]
    ):
        base.add(documents())
        for number in range(repeats):
            site = draw_site(rng, held_out=True)
            text, asked = passage(rng, site, ["city", "product"]), question(rng, site, "city")
            began = time.perf_counter()
            base.add([Passage(f"new-{number}", text)])
            (found,) = base.retrieve([asked], config.k)
            (made,) = arm.generator.generate([Prompt(asked, tuple(found))])
            taken.append(time.perf_counter() - began)
            right += made.text == site.facts["city"]
    return {"seconds": round(float(np.median(taken)), 3), "right": right, "n": repeats}


def _span(x: dict[str, float]) -> str:
    return f"{x['mean']:.2f} ({x['low']:.2f}-{x['high']:.2f})"


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", nargs="?", default="ragft-demo", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--questions", type=int, default=40)
    args = parser.parse_args(argv)
    config = read_config(args.project)
    outcomes = Outcomes.from_rows(read_outcomes(args.project / "outcomes-test.jsonl").rows)
    manifests = {name: Manifest.read(config.path(folder)) for name, folder in config.adapters.items()}
    training = {
        name: {"rows": m.data.rows, "seconds": m.metrics.get("seconds")}
        for name, m in manifests.items()
        if m is not None
    }
    queries = [row.query for row in outcomes.rows if row.group in ("both", "changed")][: args.questions]
    with Project(config) as project:
        result: dict[str, Any] = {
            "machine": f"{platform.machine()}, CPU",
            "passages": len(documents()),
            "training": training,
            "quality": quality(outcomes),
            "latency": latency(project, queries),
            "fresh": fresh_fact(config, project),
        }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    rows = [["", "retrieval (`rag`)", "fine-tuning (`adapter:...`)", "both (`rag+adapter:...`)"]]
    for row in result["quality"]:
        adapter = next(key for key in row if key.startswith("adapter:"))
        rows.append([row["what"], _span(row["rag"]), _span(row[adapter]), _span(row[f"rag+{adapter}"])])
    rag, tuned = result["latency"]["rag"], result["latency"]["adapter:facts"]
    facts, fresh = result["training"]["facts"], result["fresh"]
    data = ", ".join(f"{name} {made['rows']:,}" for name, made in result["training"].items())
    cost = ", ".join(f"{name} {made['seconds'] / 60:.1f} min" for name, made in result["training"].items())
    rows += [
        ["tokens per answer, read and written", f"{rag['tokens']:.0f}", f"{tuned['tokens']:.0f}", ""],
        ["time per answer, one at a time", f"{rag['ms']:.0f} ms", f"{tuned['ms']:.0f} ms", ""],
        ["data", f"{result['passages']} passages", f"rows: {data}", ""],
        ["training", "none", cost, ""],
        ["time until a new fact is answered", f"{fresh['seconds']:.2f} s", f"{facts['seconds'] / 60:.0f} min", ""],
    ]
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
