"""Scoring: the base, the base with examples, and the adapter, on the same held-out rows by the same scorer."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from ragft_plugin.errors import AdapterError, DataError
from ragft_plugin.evaluation.intervals import Interval, paired_bootstrap
from ragft_plugin.lora.data import TrainingRow
from ragft_plugin.lora.model import LoraModel
from ragft_plugin.lora.rendering import Renderer
from ragft_plugin.types import Prompt

Scorer = Callable[[str, str], float]
"""Takes an answer and the wanted one, returns a score in [0, 1]."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores on the held-out rows, row by row.

    Attributes:
        base: of the base as it is.
        adapter: of the adapter, or of what else was trained.
        few_shot: of the base with examples in its prompt; empty if that was not measured.
        examples: how many examples.
    """

    base: tuple[float, ...]
    adapter: tuple[float, ...]
    few_shot: tuple[float, ...] = ()
    examples: int = 0

    @property
    def baseline(self) -> str:
        """What the adapter must beat: "base" or "few-shot", whichever scores higher."""
        return "few-shot" if self.few_shot and fmean(self.few_shot) > fmean(self.base) else "base"

    @property
    def gain(self) -> Interval:
        """Mean score of the adapter minus that of the better baseline, row by row, with its 95 % interval."""
        return paired_bootstrap(self.adapter, self.few_shot if self.baseline == "few-shot" else self.base)

    def metrics(self) -> dict[str, float]:
        """Means, sizes and gain, as the manifest keeps them."""
        gain = self.gain
        found = {
            "score_before": fmean(self.base),
            "score_after": fmean(self.adapter),
            "score_rows": float(len(self.base)),
            "gain": gain.value,
            "gain_low": gain.low,
            "gain_high": gain.high,
        }
        if self.few_shot:
            found |= {"score_few_shot": fmean(self.few_shot), "few_shot_examples": float(self.examples)}
        return found


def require_gain(comparison: Comparison, *, trained: Path | None = None) -> None:
    """Refuse what does not beat what costs no training.

    Args:
        comparison: the scores.
        trained: folder where the refused weights lie.

    Raises:
        AdapterError: if the mean score is not above that of both baselines.
    """
    gain = comparison.gain
    if gain.value > 0:
        if gain.low <= 0:
            logger.warning(
                "the gain over %s is %s on %d held-out rows, so it may be chance; hold out more rows",
                comparison.baseline, gain, len(comparison.base),
            )  # fmt: skip
        return
    means = {"base": comparison.base, "few-shot": comparison.few_shot, "adapter": comparison.adapter}
    shown = ", ".join(f"{name} {fmean(scores):.3f}" for name, scores in means.items() if scores)
    stay = f" of {comparison.examples} examples" if comparison.baseline == "few-shot" else ""
    kept = "" if trained is None else (
        f". It lies in {trained}; resume with keep_anyway (--resume --keep-anyway) to keep it without training again"
    )  # fmt: skip
    raise AdapterError(
        f"the adapter does not beat what needs no training ({shown}; {len(comparison.base)} held-out rows), so it is "
        "not kept; train for longer, on more rows or at another learning_rate, or stay with the "
        f"{comparison.baseline}{stay}{kept}"
    )


def score_rows(
    model: LoraModel,
    adapter: str | None,
    rows: Sequence[TrainingRow],
    scorer: Scorer,
    *,
    prompts: Sequence[Prompt] | None = None,
) -> tuple[float, ...]:
    """Score of each row's answer by the code that will serve it: greedy, as many tokens as the longest answer.

    Args:
        model: answers.
        adapter: one that is loaded, or None for the base.
        rows: with the wanted answers.
        scorer: scores.
        prompts: to ask instead of the rows' own.

    Raises:
        DataError: if the scorer returns something outside of [0, 1].
    """
    asked = [row.prompt for row in rows] if prompts is None else list(prompts)
    given = model.generator(adapter, max_new_tokens=answer_room(model, rows)).generate(asked)
    scores = tuple(float(scorer(g.text, row.answer)) for g, row in zip(given, rows, strict=True))
    if not all(0.0 <= score <= 1.0 for score in scores):
        raise DataError(f"the scorer returned {next(s for s in scores if not 0 <= s <= 1)}; expected [0, 1]")
    return scores


def answer_room(model: LoraModel, rows: Sequence[TrainingRow]) -> int:
    """Tokens that an answer may take: the longest wanted one and 16 more, at most half of the context."""
    longest = max(len(model.renderer.encode(row.answer)) for row in rows)
    return min(longest + 16, model.context // 2)


def pick_examples(rows: Sequence[TrainingRow], k: int, *, seed: int = 0) -> list[TrainingRow]:
    """``k`` training rows of different prompts, drawn with a seed, in the order drawn."""
    different = list({(r.prompt.question.casefold(), r.prompt.passages, r.prompt.turns): r for r in rows}.values())
    return random.Random(seed).sample(different, min(k, len(different)))


def few_shot_prompts(
    prompts: Sequence[Prompt], examples: Sequence[TrainingRow], renderer: Renderer, *, room: int
) -> list[Prompt]:
    """Put examples before every prompt, as earlier turns of the conversation.

    An example with passages shows them above its question. Examples are dropped from the end where a prompt would
    otherwise lose passages of its own.

    Args:
        prompts: what is asked.
        examples: questions with their answers.
        renderer: of the base, to count tokens.
        room: tokens that a prompt may take.
    """
    shown = [turn for row in examples for turn in (("user", _told(row)), ("assistant", row.answer))]
    found = []
    for prompt in prompts:
        kept = len(examples)
        while True:
            system = tuple(t for t in prompt.turns[:1] if t[0] == "system")
            turns = (*system, *shown[: 2 * kept], *prompt.turns[len(system) :])
            asked = replace(prompt, turns=turns)
            if not kept or len(renderer.encode(renderer.text(asked))) <= room:
                break
            kept -= 1
        found.append(asked)
    return found


def _told(row: TrainingRow) -> str:
    return "\n\n".join([*(p.text for p in row.prompt.passages or ()), row.prompt.question])
