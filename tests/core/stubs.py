"""Small parts for testing what is built over them: a router with a script, generators and retrievers that count."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from ragft_plugin.types import Decision, Evidence, Filter, Gather, Generation, Passage, Prompt, Usage


class Echo:
    """Answers with its name, the question and the number of passages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.batches: list[int] = []

    def text(self, prompt: Prompt) -> str:
        read = "closed" if prompt.passages is None else f"{len(prompt.passages)} passages"
        return f"{self.name}: {prompt.question} ({read})"

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        self.batches.append(len(prompts))
        return [Generation(self.text(p), logprobs=(-0.1,), usage=Usage(5, 3)) for p in prompts]

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        for word in self.text(prompt).split(" "):
            yield word + " "


class AsyncEcho(Echo):
    """As Echo, and async is real."""

    async def agenerate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        return self.generate(prompts, **options)

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[str]:
        for piece in self.stream(prompt):
            yield piece


class Broken(Echo):
    """Fails after some pieces."""

    def __init__(self, name: str, *, after: int = 0, poison: str | None = None) -> None:
        super().__init__(name)
        self.after = after
        self.poison = poison

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        if self.poison is None or any(self.poison in p.question for p in prompts):
            raise RuntimeError("out of memory")
        return super().generate(prompts, **options)

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        yield from list(super().stream(prompt))[: self.after]
        raise RuntimeError("out of memory")


class Shelf:
    """Finds ``k`` numbered passages and counts its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], int, Filter | None]] = []

    def retrieve(self, queries: Sequence[str], k: int, filter: Filter | None = None) -> list[list[Passage]]:
        self.calls.append((list(queries), k, filter))
        return [[Passage(f"p{i}", f"text {i} on {query}", 1.0 / (i + 1)) for i in range(k)] for query in queries]


class Scripted:
    """A router that follows a script: query -> stages to gather, then the arm."""

    def __init__(self, arms: Sequence[str], script: Mapping[str, tuple[list[Gather], str]], default: str) -> None:
        self.arms = tuple(arms)
        self.script = script
        self.default = default
        self.calls = 0

    def next(
        self, evidence: Sequence[Evidence], *, cost_weight: float | None = None, arm: str | None = None
    ) -> list[Decision | Gather]:
        self.calls += 1
        return [self._one(e, arm) for e in evidence]

    def _one(self, e: Evidence, forced: str | None) -> Decision | Gather:
        stages, chosen = self.script.get(e.query, ([], self.default))
        for wish in stages:
            gathered = e.passages is not None if wish.stage == "passages" else wish.arm in e.drafts
            if not gathered and forced is None:
                return wish
        arm = forced or chosen
        values = {name: 1.0 - i / 10 for i, name in enumerate(self.arms)}
        share = {name: float(name == arm) for name in self.arms}
        return Decision(f"d-{e.query}", arm, share, values=values, confidence=0.9, forced=forced is not None)
