"""Serving many adapters from one base: throughput, latency, equality, shared prompts.

    python benchmarks/lora_serving.py                                   # all parts, on a small random Llama
    python benchmarks/lora_serving.py --base ragft_plugin/demo/pocket/base
    python benchmarks/lora_serving.py --device cuda --base random-llama-100m --parts throughput latency prefix
    python benchmarks/lora_serving.py --parts compile                   # is torch.compile worth it?

Adapters are random, of rank 8 over all linear layers.

throughput  64 mixed requests that come singly from 64 threads, in groups by adapter and in mixed batches, against one
            call of plain ``generate`` per request with ``set_adapter`` (wanted: >= 5x), and against one hand-made batch
            per adapter (wanted: >= 0.9x). Tokens per second and peak memory.
latency     one request alone, against plain ``generate`` (wanted: within 5 %).
equality    64 threads, 3 adapters and the base, 2,000 requests: every answer must be the serial one, save where the
            serial run's two best tokens tie (1e-4). Then again with a tenth cancelled and one in fifty poisoned.
prefix      64 requests with the same eight examples before the question, with and without reading those once.
compile     one step of 16 rows with an adapter, compiled with static shapes, against the same as it is.

All ways are timed in turn, several times, in one process, so that what else the machine does falls on all of them.
Besides the clock the processor time of the process is counted, which leaves out what other processes take.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from serving_setup import BASES, Plain, few_shot_prompt, prompt_of, random_adapter, random_base

from ragft_plugin.errors import GenerationError
from ragft_plugin.lora import LoraModel
from ragft_plugin.lora.options import Options
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.lora.request import Request
from ragft_plugin.types import Generation, Prompt

ARMS: list[str | None] = [None, "a", "b", "c"]
TIE = 1e-4
NEW = 24  # tokens of each answer

Times = dict[str, list[float]]


def timed(ways: dict[str, Callable[[], Any]], rounds: int) -> tuple[Times, Times]:
    """Seconds and processor seconds of each way, in turn, ``rounds`` times after one to warm up."""
    wall: Times = {name: [] for name in ways}
    cpu: Times = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, way in ways.items():
            started, spent = time.perf_counter(), time.process_time()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - spent)
    return wall, cpu


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Median of the paired ratios, and their range."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def compared(seconds: tuple[Times, Times], slow: str, fast: str) -> dict[str, Any]:
    """How many times as fast, by the clock and in processor time."""
    return {kind: ratio(s[slow], s[fast]) for kind, s in zip(("clock", "processor"), seconds, strict=True)}


@contextmanager
def without_end(model: LoraModel) -> Iterator[None]:
    """Answers of full length, as ``min_new_tokens`` makes them."""
    before, model.renderer.end_ids = model.renderer.end_ids, (-1,)
    try:
        yield
    finally:
        model.renderer.end_ids = before


class Crowd:
    """64 threads that ask at once, each its own request."""

    def __init__(self, model: LoraModel, jobs: list[tuple[str | None, Prompt]]) -> None:
        self._generators = {arm: model.generator(arm, max_new_tokens=NEW) for arm in ARMS}
        self._jobs = jobs
        self._pool = ThreadPoolExecutor(len(jobs))
        self._gate = threading.Barrier(len(jobs) + 1)

    def __call__(self) -> list[str]:
        """Ask all at once; returns the answers in the order of the jobs."""
        futures = [self._pool.submit(self._ask, *job) for job in self._jobs]
        self._gate.wait()
        return [future.result().text for future in futures]

    def _ask(self, arm: str | None, prompt: Prompt) -> Generation:
        self._gate.wait()
        return self._generators[arm].generate([prompt])[0]


def throughput(model: LoraModel, plain: Plain, args: argparse.Namespace) -> dict[str, Any]:
    """64 mixed requests, in the four ways."""
    jobs = [(ARMS[n % 4], prompt_of(n)) for n in range(64)]
    crowd = Crowd(model, jobs)
    chosen = model.worker._mixed

    def grouped() -> None:
        model.worker.set_mixed(False)
        crowd()

    def mixed() -> None:
        model.worker.set_mixed(True)
        crowd()

    def loop() -> None:
        for arm, prompt in jobs:
            plain.generate(arm, [prompt], NEW)

    def by_hand() -> None:
        for arm in ARMS:
            plain.generate(arm, [p for a, p in jobs if a == arm], NEW)

    ways = {"by_hand": by_hand, "grouped": grouped, "mixed": mixed, "loop": loop}
    with without_end(model):
        seconds = timed(ways, args.rounds)
    model.worker.set_mixed(chosen)
    best = "mixed" if chosen else "grouped"
    return {
        "requests": 64,
        "new_tokens": NEW,
        "chosen": best,
        "seconds": {name: statistics.median(s) for name, s in seconds[0].items()},
        "tokens_per_second": {name: 64 * NEW / statistics.median(s) for name, s in seconds[0].items()},
        "chosen_over_loop": compared(seconds, "loop", best),
        "chosen_over_by_hand": compared(seconds, "by_hand", best),
        "grouped_over_mixed": compared(seconds, "mixed", "grouped"),
    }


def latency(model: LoraModel, plain: Plain, args: argparse.Namespace) -> dict[str, Any]:
    """One request alone, through the worker and by plain ``generate``."""
    prompt = prompt_of(1)
    results = {}
    for arm in (None, "a"):
        generator = model.generator(arm, max_new_tokens=NEW)
        ways: dict[str, Callable[[], Any]] = {
            "worker": lambda generator=generator: generator.generate([prompt]),
            "plain": lambda arm=arm: plain.generate(arm, [prompt], NEW),
        }
        with without_end(model):
            seconds = timed(ways, args.rounds * 8)
        results[str(arm)] = {
            "seconds": {name: statistics.median(s) for name, s in seconds[0].items()},
            "worker_over_plain": compared(seconds, "worker", "plain"),
        }
    return results


def equality(model: LoraModel, plain: Plain, args: argparse.Namespace) -> dict[str, Any]:
    """What became of many requests, undisturbed and under cancellations and faults, counted."""
    kinds = 125
    jobs = [(ARMS[n % 4], n // 4 % kinds) for n in range(args.requests)]
    serial = {
        (arm, n): model.generator(arm, max_new_tokens=4 + n % 16).generate([prompt_of(n)])[0]
        for arm, n in sorted(set(jobs), key=str)
    }
    forward = model.worker._forward

    def poisoned(rows: Any, **inputs: Any) -> Any:
        if any(row.request.ids[-1] == 0 for row in rows):
            raise RuntimeError("poison")
        return forward(rows, **inputs)

    def judge(got: Generation, arm: str | None, n: int) -> str:
        wanted = serial[arm, n]
        if got.text == wanted.text:
            return "equal"
        if tied(got, wanted):
            return "near tie"
        others = [serial[other, n].text for other in ARMS if other != arm]
        return "of a wrong adapter" if got.text in others else "different"

    def job(number: int, *, disturbed: bool) -> str:
        arm, n = jobs[number]
        poison, leaves = disturbed and number % 50 == 0, disturbed and number % 10 == 5
        ids = [5, 0] if poison else model.renderer.render(prompt_of(n))
        request = Request(ids, arm, Options(max_new_tokens=4 + n % 16))
        model.worker.submit([request])
        if leaves:
            time.sleep(random.Random(number).random() * 0.05)
            request.future.cancel()
        try:
            return judge(request.future.result(600), arm, n)
        except CancelledError:
            return "cancelled"
        except GenerationError:
            return "poisoned" if poison else "failed"

    def crowd(*, disturbed: bool) -> dict[str, int]:
        with ThreadPoolExecutor(64) as pool:
            outcomes = list(pool.map(lambda number: job(number, disturbed=disturbed), range(args.requests)))
        return {kind: outcomes.count(kind) for kind in sorted(set(outcomes))}

    calm = crowd(disturbed=False)
    model.worker._forward = poisoned  # type: ignore[method-assign]
    try:
        return {"requests": args.requests, "undisturbed": calm, "disturbed": crowd(disturbed=True)}
    finally:
        model.worker._forward = forward  # type: ignore[method-assign]


def tied(got: Generation, wanted: Generation) -> bool:
    """Whether the serial run's two best tokens tie where the two part, or before that is seen."""
    mine, theirs = got.logprobs or (), wanted.logprobs or ()
    apart = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if abs(a - b) > 1e-3), len(theirs) - 1)
    return min((wanted.margins or (1.0,))[: apart + 1]) < TIE


def prefix(model: LoraModel, plain: Plain, args: argparse.Namespace) -> dict[str, Any]:
    """64 requests with the same examples before the question."""
    crowd = Crowd(model, [(ARMS[n % 4], few_shot_prompt(n)) for n in range(64)])
    network = model.worker._network
    texts: dict[bool, list[str]] = {}

    def ask(shares: bool) -> None:
        network.shares = shares
        texts[shares] = crowd()

    with without_end(model):
        seconds = timed({"each": lambda: ask(False), "once": lambda: ask(True)}, args.rounds)
    network.shares = True
    return {
        "prompt_tokens": len(model.renderer.render(few_shot_prompt(0))),
        "seconds": {name: statistics.median(s) for name, s in seconds[0].items()},
        "times_as_fast": compared(seconds, "each", "once"),
        "equal_answers": sum(a == b for a, b in zip(texts[True], texts[False], strict=True)),
    }


def compile_(model: LoraModel, plain: Plain, args: argparse.Namespace) -> dict[str, Any]:
    """One pass over 16 rows with one token each, compiled and not."""
    plain.peft.set_adapter("a", inference_mode=True)
    compiled = torch.compile(plain.peft.forward, dynamic=False)
    ids = torch.ones(16, 1, dtype=torch.long, device=plain.peft.device)

    def run(forward: Callable[..., Any]) -> None:
        with torch.inference_mode():
            for _ in range(10):
                forward(input_ids=ids, use_cache=False)

    started = time.perf_counter()
    run(compiled)
    first = time.perf_counter() - started
    seconds = timed({"as_it_is": lambda: run(plain.peft.forward), "compiled": lambda: run(compiled)}, args.rounds)
    return {"seconds_to_compile": first, "times_as_fast": compared(seconds, "as_it_is", "compiled")}


PARTS: dict[str, Callable[[LoraModel, Plain, argparse.Namespace], dict[str, Any]]] = {
    "throughput": throughput,
    "latency": latency,
    "equality": equality,
    "prefix": prefix,
    "compile": compile_,
}


def main() -> None:
    """Run the parts and print a report in JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="random-llama", help=f"folder of a base, or one of {', '.join(BASES)}")
    parser.add_argument("--hidden", type=int, help="width of the random base, instead of its own")
    parser.add_argument("--layers", type=int, help="layers of the random base, instead of its own")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--batching", default="auto", choices=["auto", "grouped", "mixed"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--parts", nargs="+", default=[p for p in PARTS if p != "compile"], choices=list(PARTS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, quiet():
        root = Path(scratch)
        base = Path(args.base)
        if args.base in BASES:
            hidden, layers = BASES[args.base]
            base = random_base(root / "base", hidden=args.hidden or hidden, layers=args.layers or layers)
        adapters = {n: random_adapter(base, root / n, seed=i, r=8) for i, n in enumerate("abc", 1)}
        with LoraModel.load(base, device=args.device, batching=args.batching) as model:
            for name, folder in adapters.items():
                model.load_adapter(name, folder)
            plain = Plain(base, adapters, model)
            network = model.base.model
            cuda = network.device.type == "cuda"
            machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
            report = {
                "date": datetime.now(UTC).date().isoformat(),
                "machine": machine + (f", {torch.cuda.get_device_name()}" if cuda else ""),
                "dtype": str(network.dtype),
                "parameters": sum(p.numel() for n, p in network.named_parameters() if "lora" not in n),
                **{part: PARTS[part](model, plain, args) for part in args.parts},
            }
            peak = (
                torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            )
            report["peak_memory_mb"] = round(peak / 1e6)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
