"""A routed chain against the same chain written by hand with LangChain's RunnableBranch.

    python benchmarks/langchain_overhead.py

Both run the demo: the pocket model, its two adapters, its knowledge base, its questions; arms ``base``, ``rag``,
``adapter:facts``, ``adapter:tickets`` and ``rag+adapter:tickets``; and obey the same decision, looked up by the kind of
the question. So what is compared is the chain around the model, not the router in it.

single   one question at a time, over the same chat models and the same retriever (wanted: at most 1.05x).
batch    64 mixed questions: the routed chain's ``batch`` against the hand-written chain in a loop (wanted: >= 5x) and
         its own ``batch`` (wanted: >= 10x). By hand, an arm calls ``generate`` of transformers after PEFT's
         ``set_adapter``, under a lock, as it must be: PEFT is not safe to use from several threads. Beside it, for what
         the chain alone is worth: the hand-written chain over this package's chat models.

Answers end where the model ends them, and both sides must give the same ones. All ways are timed in turn, in one
process, so that what else the machine does falls on all of them; the ratios are of each round, their median with a 95 %
bootstrap interval.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableBranch, RunnableLambda, RunnablePassthrough
from lora_serving import Plain, timed

from ragft_plugin.demo.pocket import ADAPTERS, BASE
from ragft_plugin.demo.questions import documents, questions
from ragft_plugin.langchain import ChatLora, KnowledgeBaseVectorStore, RoutedChain
from ragft_plugin.langchain.chat_messages import messages_from
from ragft_plugin.langchain.documents import passage_from
from ragft_plugin.lora import LoraModel
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.retrieval import KnowledgeBase
from ragft_plugin.types import Decision, Evidence, Prompt

K = 3
ARMS = ("base", "rag", "adapter:facts", "adapter:tickets", "rag+adapter:tickets")
ARM_OF_KIND = {
    "adapter only": "adapter:facts",
    "documents only": "rag",
    "changed": "rag",
    "both": "adapter:facts",
    "unknown": "base",
    "plain ticket": "adapter:tickets",
    "lookup ticket": "rag+adapter:tickets",
}
ASKED = {question.query: ARM_OF_KIND[question.kind] for question in questions("test")}


class TableRouter:
    """Looks the decision up."""

    arms = ARMS

    def next(
        self, evidence: Sequence[Evidence], *, cost_weight: float | None = None, arm: str | None = None
    ) -> list[Decision]:
        """The decisions."""
        return [Decision(e.query, ASKED[e.query], {ASKED[e.query]: 1.0}) for e in evidence]


class ByHand(Plain):
    """transformers and PEFT as anyone would use them; answers end where the model ends them."""

    def answer(self, adapter: str | None, prompt: Prompt, new: int) -> list[int]:
        """Ids of one answer."""
        ids = torch.tensor([self.render(prompt)])
        settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new, "do_sample": False}
        with torch.inference_mode():
            if adapter is None:
                with self.peft.disable_adapter():
                    made = self.peft.generate(input_ids=ids, **settings)
            else:
                self.peft.set_adapter(adapter, inference_mode=True)
                made = self.peft.generate(input_ids=ids, **settings)
        return list(made[0, ids.shape[1] :].tolist())


def adapter_of(arm: str) -> str | None:
    """The adapter of an arm; None for the base."""
    return arm.rpartition("adapter:")[2] if "adapter:" in arm else None


def prompt_of(asked: dict[str, Any]) -> Prompt:
    """The question, with the documents found for it if its arm reads."""
    passages = asked.get("context")
    return Prompt(asked["input"], None if passages is None else tuple(map(passage_from, passages)))


def branches(retriever: BaseRetriever, arms: dict[str, Runnable[Any, Any]]) -> Runnable[Any, Any]:
    """The chain by hand: retrieve where the arm reads, then answer."""
    found = RunnablePassthrough.assign(context=(lambda asked: asked["input"]) | retriever)
    chains = {
        name: found.assign(answer=arm) if name.startswith("rag") else RunnablePassthrough.assign(answer=arm)
        for name, arm in arms.items()
    }
    *first, last = chains.items()
    return RunnableBranch(*((lambda asked, n=n: ASKED[asked["input"]] == n, chain) for n, chain in first), last[1])


def chat_arms(models: dict[str | None, ChatLora]) -> dict[str, Runnable[Any, Any]]:
    """Arms over chat models."""
    prompt = RunnableLambda(lambda asked: messages_from(prompt_of(asked)))
    return {arm: prompt | models[adapter_of(arm)] | StrOutputParser() for arm in ARMS}


def plain_arms(plain: ByHand, model: LoraModel, new: int) -> dict[str, Runnable[Any, Any]]:
    """Arms over transformers and PEFT, as one would write them by hand."""
    lock = threading.Lock()

    def answer(asked: dict[str, Any], adapter: str | None) -> str:
        with lock:
            ids = plain.answer(adapter, prompt_of(asked), new)
        return model.renderer.decode(ids).strip()

    adapters = {arm: adapter_of(arm) for arm in ARMS}
    return {arm: RunnableLambda(lambda asked, arm=arm: answer(asked, adapters[arm])) for arm in ARMS}


def ratio(slow: list[float], fast: list[float]) -> dict[str, Any]:
    """Median of the rounds' ratios, with a 95 % percentile-bootstrap interval."""
    ratios = np.asarray(slow) / np.asarray(fast)
    chance = np.random.default_rng(0)
    medians = np.median(chance.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return {"median": float(np.median(ratios)), "ci95": [float(low), float(high)], "rounds": len(ratios)}


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> int:
    """How many answers are equal, and what was read for them."""

    def read(answer: dict[str, Any]) -> list[str | None]:
        found: list[Document] = answer.get("context") or []
        return [document.id for document in found]

    return sum(a["answer"] == b["answer"] and read(a) == read(b) for a, b in zip(one, other, strict=True))


def main() -> None:
    """Run both parts and print a report in JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=64, help="at most so many tokens are written")
    parser.add_argument("--singles", type=int, default=5, help="questions per arm and round, one at a time")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as scratch,
        quiet(),
        KnowledgeBase.create(Path(scratch) / "kb") as knowledge_base,
        LoraModel.load(BASE, device="cpu") as model,
    ):
        knowledge_base.add(documents())
        for name, folder in ADAPTERS.items():
            model.load_adapter(name, folder)
        retriever = KnowledgeBaseVectorStore(knowledge_base).as_retriever(search_kwargs={"k": K})
        models = {
            name: ChatLora(backend=model, model=name or "base", max_tokens=args.new_tokens)
            for name in (None, *ADAPTERS)
        }
        by_hand = branches(retriever, chat_arms(models))
        plain = branches(retriever, plain_arms(ByHand(BASE, ADAPTERS, model), model, args.new_tokens))
        named = {"base" if name is None else f"adapter:{name}": chat for name, chat in models.items()}
        routed = RoutedChain.from_parts(router=TableRouter(), models=named, retriever=retriever, k=K)

        drawn = list(ASKED)[:64]
        asked = [{"input": question} for question in drawn]
        answers = routed.batch(drawn)
        report: dict[str, Any] = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
            "arms": {arm: sum(ASKED[question] == arm for question in drawn) for arm in ARMS},
            "same_answers": {
                "of": len(drawn),
                "by hand over transformers": same(answers, plain.batch(asked)),
                "by hand over the same chat models": same(answers, by_hand.batch(asked)),
                "routed, one at a time": same(answers, [routed.invoke(question) for question in drawn]),
            },
            "single": {},
        }
        for arm in ARMS:
            some = [question for question in drawn if ASKED[question] == arm][: args.singles]
            seconds, _ = timed(
                {
                    "by_hand": lambda some=some: [by_hand.invoke({"input": question}) for question in some],
                    "routed": lambda some=some: [routed.invoke(question) for question in some],
                    "plain": lambda some=some: [plain.invoke({"input": question}) for question in some],
                },
                args.rounds,
            )
            report["single"][arm] = {
                "ms": {name: 1000 / len(some) * float(np.median(column)) for name, column in seconds.items()},
                "routed_over_by_hand": ratio(seconds["routed"], seconds["by_hand"]),
                "routed_over_plain": ratio(seconds["routed"], seconds["plain"]),
            }
        seconds, _ = timed(
            {
                "routed": lambda: routed.batch(drawn),
                "loop": lambda: [plain.invoke(one) for one in asked],
                "batch": lambda: plain.batch(asked),
                "loop_same_models": lambda: [by_hand.invoke(one) for one in asked],
                "batch_same_models": lambda: by_hand.batch(asked),
            },
            args.rounds,
        )
        report["batch"] = {
            "questions": len(drawn),
            "seconds": {name: float(np.median(column)) for name, column in seconds.items()},
            **{f"times_the_{way}": ratio(seconds[way], seconds["routed"]) for way in seconds if way != "routed"},
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
