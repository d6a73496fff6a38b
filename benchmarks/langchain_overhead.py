"""A routed chain against the same chain written by hand with LangChain's RunnableBranch.

    python benchmarks/langchain_overhead.py                  # on the pocket model, with random adapters
    python benchmarks/langchain_overhead.py --base random    # on a random Llama

single   one question, both chains over the same chat models, the same retriever and the same decisions
         (wanted: at most 1.05x).
batch    64 mixed questions: the routed chain's ``batch`` against the hand-written chain in a loop (wanted: >= 5x)
         and its own ``batch`` (wanted: >= 10x). By hand, an arm calls ``generate`` of transformers after
         ``set_adapter``, under a lock, as it must be: PEFT is not safe to use from several threads.

Exactly ``--new-tokens`` tokens are written per answer. All ways are timed in turn, in one process, so that what else
the machine does falls on all of them; the ratios are of each round, their median with a 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableBranch, RunnableLambda, RunnablePassthrough
from lora_serving import WORDS, Plain, random_adapter, random_base, timed

from ragft_plugin.demo.pocket import BASE as POCKET
from ragft_plugin.langchain import ChatLora, RoutedChain
from ragft_plugin.lora import LoraModel
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.prompts import INSTRUCTION
from ragft_plugin.types import Decision, Evidence, Passage, Prompt

ARMS = ("base", "rag", "adapter:a", "adapter:b")


def question_of(number: int) -> str:
    """The question of a number; its number says which arm answers it."""
    return f"{number} " + " ".join(random.Random(number).choices(WORDS, k=6))


def arm_of(question: str) -> str:
    """The decision that both chains obey."""
    return ARMS[int(question.split()[0]) % len(ARMS)]


class NumberRouter:
    """Decides by the question's number."""

    arms = ARMS

    def next(
        self, evidence: Sequence[Evidence], *, cost_weight: float | None = None, arm: str | None = None
    ) -> list[Decision]:
        """The decisions."""
        return [Decision(e.query, arm_of(e.query), {arm_of(e.query): 1.0}) for e in evidence]


class FixedRetriever(BaseRetriever):
    """Always finds the same passage: what searching costs is no part of the comparison."""

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return [Document("the pump near the steel bridge is made in city seven by the blue river", id="1")]


def branches(arms: dict[str, Runnable[Any, Any]]) -> Runnable[Any, Any]:
    """The chain by hand: retrieve where the arm reads, then answer."""
    retriever = FixedRetriever()
    found = RunnablePassthrough.assign(context=(lambda asked: asked["input"]) | retriever)
    chains = {
        name: (found if name == "rag" else RunnablePassthrough.assign(context=lambda _: [])).assign(answer=arm)
        for name, arm in arms.items()
    }
    cases = [(lambda asked, name=name: arm_of(asked["input"]) == name, chain) for name, chain in chains.items()]
    return RunnableBranch(*cases[:-1], chains[ARMS[-1]])


def chat_arms(models: dict[str, ChatLora]) -> dict[str, Runnable[Any, Any]]:
    """Arms over chat models, as LangChain's documentation writes them."""
    closed = ChatPromptTemplate.from_messages([("human", "{input}")])
    opened = ChatPromptTemplate.from_messages([("system", INSTRUCTION + "\n\n{passages}"), ("human", "{input}")])
    listed = RunnablePassthrough.assign(
        passages=lambda asked: "\n\n".join(f"[{i}] {one.page_content}" for i, one in enumerate(asked["context"], 1))
    )
    arms: dict[str, Runnable[Any, Any]] = {name: closed | model | StrOutputParser() for name, model in models.items()}
    return {"base": arms["base"], "rag": listed | opened | models["base"] | StrOutputParser(), **arms}


def plain_arms(plain: Plain, model: LoraModel, new: int) -> dict[str, Runnable[Any, Any]]:
    """Arms over transformers and PEFT, as one would write them by hand."""
    lock = threading.Lock()

    def answer(asked: dict[str, Any], adapter: str | None) -> str:
        passages = tuple(Passage(one.id or "", one.page_content) for one in asked["context"])
        prompt = Prompt(asked["input"], passages or None)
        with lock:
            ids = plain.generate(adapter, [prompt], new)[0]
        return model.renderer.decode(ids[-new:].tolist()).strip()

    adapters = {"base": None, "rag": None, "adapter:a": "a", "adapter:b": "b"}
    return {
        name: RunnableLambda(lambda asked, adapter=adapter: answer(asked, adapter))
        for name, adapter in adapters.items()
    }


def ratio(slow: list[float], fast: list[float]) -> dict[str, Any]:
    """Median of the rounds' ratios, with a 95 % percentile-bootstrap interval."""
    ratios = np.asarray(slow) / np.asarray(fast)
    chance = np.random.default_rng(0)
    medians = np.median(chance.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return {"median": float(np.median(ratios)), "ci95": [float(low), float(high)], "rounds": len(ratios)}


def single(model: LoraModel, rounds: int, new: int, calls: int) -> dict[str, Any]:
    """One question at a time, over the same chat models."""
    models = {
        name: ChatLora(backend=model, model=name.removeprefix("adapter:"), max_tokens=new)
        for name in ("base", "adapter:a", "adapter:b")
    }
    by_hand = branches(chat_arms(models))
    routed = RoutedChain.from_parts(router=NumberRouter(), models=models, retriever=FixedRetriever())
    results = {}
    for number, arm in enumerate(ARMS):
        question = question_of(number)
        same = by_hand.invoke({"input": question})["answer"] == routed.invoke(question)["answer"]
        seconds = timed(
            {
                "by_hand": lambda question=question: [by_hand.invoke({"input": question}) for _ in range(calls)],
                "routed": lambda question=question: [routed.invoke(question) for _ in range(calls)],
            },
            rounds,
        )
        results[arm] = {
            "same_answer": same,
            "ms": {name: 1000 / calls * float(np.median(column)) for name, column in seconds.items()},
            "routed_over_by_hand": ratio(seconds["routed"], seconds["by_hand"]),
        }
    return results


def batch(model: LoraModel, plain: Plain, rounds: int, new: int) -> dict[str, Any]:
    """64 mixed questions."""
    questions = [question_of(number) for number in range(64)]
    by_hand = branches(plain_arms(plain, model, new))
    models = {
        "base": model.generator(None, max_new_tokens=new),
        **{f"adapter:{name}": model.generator(name, max_new_tokens=new) for name in "ab"},
    }
    routed = RoutedChain.from_parts(router=NumberRouter(), models=models, retriever=FixedRetriever())
    asked = [{"input": question} for question in questions]
    one, other = by_hand.batch(asked), routed.batch(questions)
    seconds = timed(
        {
            "loop": lambda: [by_hand.invoke(one) for one in asked],
            "batch": lambda: by_hand.batch(asked),
            "routed": lambda: routed.batch(questions),
        },
        rounds,
    )
    return {
        "questions": len(questions),
        "same_answers": sum(a["answer"].strip() == b["answer"].strip() for a, b in zip(one, other, strict=True)),
        "seconds": {name: float(np.median(column)) for name, column in seconds.items()},
        "times_the_loop": ratio(seconds["loop"], seconds["routed"]),
        "times_the_batch": ratio(seconds["batch"], seconds["routed"]),
    }


def main() -> None:
    """Run both parts and print a report in JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=str(POCKET), help="folder of a base, or 'random'")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=12)
    parser.add_argument("--calls", type=int, default=10, help="single calls per round")
    parser.add_argument("--parts", nargs="+", default=["single", "batch"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, quiet():
        root = Path(scratch)
        base = random_base(root / "base", hidden=256, layers=4) if args.base == "random" else Path(args.base)
        adapters = {name: random_adapter(base, root / name, seed=seed, r=8) for seed, name in enumerate("ab", 1)}
        with LoraModel.load(base, device="cpu") as model:
            for name, folder in adapters.items():
                model.load_adapter(name, folder)
            model.renderer.end_ids = (-1,)  # write exactly as many tokens as by hand
            parts: dict[str, Callable[[], Any]] = {
                "single": lambda: single(model, args.rounds, args.new_tokens, args.calls),
                "batch": lambda: batch(model, Plain(base, adapters, model), args.rounds, args.new_tokens),
            }
            report = {
                "date": datetime.now(UTC).date().isoformat(),
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
                "base": base.name if args.base == "random" else args.base,
                "new_tokens": args.new_tokens,
                **{part: parts[part]() for part in args.parts},
            }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
