"""Serving many adapters from one base: throughput, latency and equality.

    python benchmarks/lora_serving.py                    # all parts, on a random Llama
    python benchmarks/lora_serving.py --base FOLDER      # on a base of one's own (adapters are random)
    python benchmarks/lora_serving.py --parts throughput latency

throughput  64 mixed requests that come singly from 64 threads, against one call of plain ``generate`` per request
            with ``set_adapter`` (wanted: >= 5x), and against one hand-made batch per adapter (wanted: >= 0.9x).
latency     one request alone, against plain ``generate`` (wanted: within 5 %).
equality    64 threads, 3 adapters and the base, 2,000 requests, a tenth of them cancelled and one in fifty poisoned:
            every answer that is left must be the serial one, save where the serial run's two best tokens tie (1e-4).

All ways are timed in turn, several times, in one process, so that what else the machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ragft_plugin.errors import GenerationError
from ragft_plugin.lora import LoraModel
from ragft_plugin.lora.options import Options
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.lora.request import Request
from ragft_plugin.prompts import closed_book, open_book
from ragft_plugin.types import Generation, Passage, Prompt

ARMS: list[str | None] = [None, "a", "b", "c"]
WORDS = "the pump site river is made in city by which year manager who where near blue steel bridge north seven".split()
TIE = 1e-4


def random_base(folder: Path, *, hidden: int, layers: int) -> Path:
    """A random Llama with a byte-level tokenizer of some 1,300 tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    chance = random.Random(0)
    made = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 6))) for _ in range(1500)]
    bpe.train_from_iterator(
        [" " + " ".join(WORDS + made)] * 3,
        trainers.BpeTrainer(
            vocab_size=1300,
            special_tokens=["<pad>", "<|end|>", "<|user|>", "<|assistant|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<|end|>")
    tokenizer.chat_template = (
        "{% for d in documents or [] %}{{ d['text'] }}\n{% endfor %}"
        "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=hidden * 5 // 2, num_hidden_layers=layers,
        num_attention_heads=max(2, hidden // 64), num_key_value_heads=max(2, hidden // 64),
        max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.1,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_adapter(base: Path, folder: Path, *, seed: int, r: int) -> Path:
    """A random adapter over all linear layers."""
    torch.manual_seed(seed)
    from transformers import AutoModelForCausalLM

    from ragft_plugin.lora.recipe import linear_modules

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft = get_peft_model(model, LoraConfig(r=r, target_modules=linear_modules(model), task_type="CAUSAL_LM"))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    peft.save_pretrained(str(folder))
    return folder


def prompt_of(number: int) -> Prompt:
    """The prompt of a number: short, half of them with a passage."""
    chance = random.Random(number)
    question = " ".join(chance.choices(WORDS, k=chance.randint(4, 10)))
    if number % 2:
        return closed_book(question)
    return open_book(question, [Passage("1", " ".join(chance.choices(WORDS, k=30)))])


class Plain:
    """transformers and PEFT as anyone would use them."""

    def __init__(self, base: Path, adapters: dict[str, Path], model: LoraModel) -> None:
        from transformers import AutoModelForCausalLM

        first, *others = adapters
        peft: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        peft = PeftModel.from_pretrained(peft, adapters[first], adapter_name=first)
        for name in others:
            peft.load_adapter(adapters[name], adapter_name=name)
        self.peft = peft.eval()
        self.pad = model.renderer.tokenizer.pad_token_id
        self.render = model.renderer.render

    def generate(self, arm: str | None, prompts: list[Prompt], new: int) -> torch.Tensor:
        """One call of ``generate`` over all prompts, padded on the left."""
        rows = [self.render(prompt) for prompt in prompts]
        width = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (width - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
        settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
        with torch.inference_mode():
            if arm is None:
                with self.peft.disable_adapter():
                    return self.peft.generate(input_ids=ids, attention_mask=mask, **settings)
            self.peft.set_adapter(arm, inference_mode=True)
            return self.peft.generate(input_ids=ids, attention_mask=mask, **settings)


def timed(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, in turn, ``rounds`` times after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Median of the paired ratios, and their range."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def throughput(model: LoraModel, plain: Plain, rounds: int) -> dict[str, Any]:
    """64 mixed requests, in the three ways."""
    new = 24
    jobs = [(ARMS[n % 4], prompt_of(n)) for n in range(64)]
    generators = {arm: model.generator(arm, max_new_tokens=new) for arm in ARMS}
    pool = ThreadPoolExecutor(64)
    gate = threading.Barrier(65)
    before, model.renderer.end_ids = model.renderer.end_ids, (-1,)  # as min_new_tokens does

    def single(job: tuple[str | None, Prompt]) -> Generation:
        gate.wait()
        return generators[job[0]].generate([job[1]])[0]

    def worker() -> None:
        futures = [pool.submit(single, job) for job in jobs]
        gate.wait()
        for future in futures:
            future.result()

    def loop() -> None:
        for arm, prompt in jobs:
            plain.generate(arm, [prompt], new)

    def by_hand() -> None:
        for arm in ARMS:
            plain.generate(arm, [p for a, p in jobs if a == arm], new)

    seconds = timed({"worker": worker, "loop": loop, "by_hand": by_hand}, rounds)
    model.renderer.end_ids = before
    pool.shutdown()
    return {
        "requests": 64,
        "new_tokens": new,
        "seconds": {name: statistics.median(s) for name, s in seconds.items()},
        "times_the_loop": ratio(seconds["loop"], seconds["worker"]),
        "times_by_hand": ratio(seconds["by_hand"], seconds["worker"]),
    }


def latency(model: LoraModel, plain: Plain, rounds: int) -> dict[str, Any]:
    """One request alone, through the worker and by plain ``generate``."""
    new = 24
    generators = {arm: model.generator(arm, max_new_tokens=new) for arm in ARMS}
    before, model.renderer.end_ids = model.renderer.end_ids, (-1,)
    prompt = prompt_of(1)
    results = {}
    for arm in (None, "a"):
        seconds = timed(
            {
                "worker": lambda arm=arm: generators[arm].generate([prompt]),
                "plain": lambda arm=arm: plain.generate(arm, [prompt], new),
            },
            rounds * 8,
        )
        results[str(arm)] = {
            "seconds": {name: statistics.median(s) for name, s in seconds.items()},
            "worker_over_plain": ratio(seconds["worker"], seconds["plain"]),
        }
    model.renderer.end_ids = before
    return results


def equality(model: LoraModel, requests: int) -> dict[str, Any]:
    """What became of many requests under cancellations and faults, counted."""
    kinds = 125
    jobs = [(ARMS[n % 4], n // 4 % kinds) for n in range(requests)]
    serial = {
        (arm, n): model.generator(arm, max_new_tokens=4 + n % 16).generate([prompt_of(n)])[0] for arm, n in set(jobs)
    }
    forward = model.worker._forward

    def poisoned(rows: Any, **inputs: Any) -> Any:
        if any(row.request.ids[-1] == 0 for row in rows):
            raise RuntimeError("poison")
        return forward(rows, **inputs)

    model.worker._forward = poisoned  # type: ignore[method-assign]

    def job(number: int) -> str:
        arm, n = jobs[number]
        chance = random.Random(number)
        request = Request(
            model.renderer.render(prompt_of(n)) if number % 50 else [5, 0],
            arm,
            Options(max_new_tokens=4 + n % 16),
        )
        model.worker.submit([request])
        if number % 10 == 5:
            time.sleep(chance.random() * 0.05)
            request.future.cancel()
        try:
            got = request.future.result(600)
        except CancelledError:
            return "cancelled"
        except GenerationError:
            return "poisoned" if number % 50 == 0 else "failed"
        wanted = serial[arm, n]
        if got.text == wanted.text:
            return "equal"
        if any(got.text == serial[other, n].text for other in ARMS if (other, n) in serial):
            return "of a wrong adapter"
        return "near tie" if min(wanted.margins or [1.0]) < TIE else "different"

    with ThreadPoolExecutor(64) as pool:
        outcomes = list(pool.map(job, range(requests)))
    model.worker._forward = forward  # type: ignore[method-assign]
    return {kind: outcomes.count(kind) for kind in sorted(set(outcomes))}


def main() -> None:
    """Run the parts and print a report in JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="folder of a base; a random Llama without it")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batching", default="auto", choices=["auto", "grouped", "mixed"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--parts", nargs="+", default=["throughput", "latency", "equality"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, quiet():
        root = Path(scratch)
        base = args.base or random_base(root / "base", hidden=args.hidden, layers=args.layers)
        adapters = {n: random_adapter(base, root / n, seed=i, r=8) for i, n in enumerate("abc", 1)}
        with LoraModel.load(base, device="cpu", batching=args.batching) as model:
            for name, folder in adapters.items():
                model.load_adapter(name, folder)
            plain = Plain(base, adapters, model)
            parts: dict[str, Callable[[], Any]] = {
                "throughput": lambda: throughput(model, plain, args.rounds),
                "latency": lambda: latency(model, plain, args.rounds),
                "equality": lambda: equality(model, args.requests),
            }
            report = {
                "mixed": model.worker._mixed,
                "date": datetime.now(UTC).date().isoformat(),
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
                "parameters": sum(p.numel() for n, p in model.base.model.named_parameters() if "lora" not in n),
                **{part: parts[part]() for part in args.parts},
            }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
