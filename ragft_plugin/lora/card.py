"""The card: README.md beside an adapter, with what its next user must know, and a chart of its losses."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ragft_plugin.evaluation.charts import ticks
from ragft_plugin.lora.checks import DataSummary
from ragft_plugin.lora.manifest import Manifest
from ragft_plugin.lora.tuning import Tuned

CARD, CHART = "README.md", "loss.svg"
Curve = Sequence[tuple[int, float]]
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 560, 320, 56, 14, 546, 278
_COLOURS = {"training loss": "#7a869a", "held-out loss": "#c2410c"}
_SCORES = (
    ("base", "score_before", "score_rows"),
    ("base with examples in the prompt", "score_few_shot", "score_rows"),
    ("**adapter**", "score_after", "score_rows"),
    ("base, on what it could do before", "ability_before", "ability_rows"),
    ("adapter, on what the base could do before", "ability_after", "ability_rows"),
)


def write_card(folder: Path, manifest: Manifest, data: DataSummary, tuned: Tuned, *, licence: str | None) -> None:
    """Write ``README.md`` and ``loss.svg`` into an adapter's folder."""
    (folder / CHART).write_text(loss_chart(tuned.losses, tuned.eval_losses), encoding="utf-8")
    (folder / CARD).write_text(card_text(manifest, data, tuned, licence=licence), encoding="utf-8")


def card_text(manifest: Manifest, data: DataSummary, tuned: Tuned, *, licence: str | None) -> str:
    """The card as Markdown, headed as model hubs expect it."""
    base = Path(manifest.base).name if Path(manifest.base).is_absolute() else manifest.base
    full = manifest.method == "full"
    kept = manifest.settings
    keys = ("r", "lora_alpha", "freeze", "learning_rate", "epochs", "max_steps", "batch_size", "seed")
    settings = ", ".join(f"{k} {kept[k]}" for k in keys if kept.get(k) not in (None, 0) or k == "seed")
    what = "a base tuned from" if full else "an adapter for"
    load = (
        f'model = LoraModel.load("{manifest.name}")'
        if full
        else f'model = LoraModel.load("{base}")\nmodel.load_adapter("{manifest.name}", "path/to/this/folder")'
    )
    adapter = "None" if full else f'"{manifest.name}"'
    metrics = manifest.metrics
    return f"""---
base_model: {base}
library_name: {"transformers" if full else "peft"}
license: {licence or "unknown"}
tags: [{"full-fine-tuning" if full else "lora"}, ragft-plugin]
---
# {manifest.name}

{what.capitalize()} `{base}`, trained on {manifest.trained_at:%Y-%m-%d} by {manifest.method} ({settings}):
{tuned.steps} steps in {tuned.seconds:.0f} s, {tuned.parameters:,} weights; those of step {tuned.best_step} are kept.

## Data

{data}

| | rows | SHA-256, first 32 digits |
|---|---|---|
| training | {manifest.data.rows:,} | {manifest.data.sha256} |
| held out | {manifest.data.eval_rows:,} | {manifest.data.eval_sha256 or "-"} |

The rows themselves are not kept here.

## Figures

{_scores(metrics)}
{_losses(metrics)}

![training and held-out loss]({CHART})

## How to load it

```python
from ragft_plugin.lora import LoraModel
from ragft_plugin.prompts import closed_book

{load}
print(model.generator({adapter}).generate([closed_book("...")])[0].text)
```

## Limits

{_limits(manifest)}
"""


def loss_chart(losses: Curve, eval_losses: Curve) -> str:
    """Losses against steps as a self-contained SVG.

    Args:
        losses: (step, training loss).
        eval_losses: (step, held-out loss); may be empty.
    """
    curves = {name: curve for name, curve in zip(_COLOURS, (losses, eval_losses), strict=True) if curve}
    last = max((step for curve in curves.values() for step, _ in curve), default=1) or 1
    top = max((loss for curve in curves.values() for _, loss in curve), default=1.0) * 1.05 or 1.0

    def x(step: float) -> float:
        return _LEFT + step / last * (_RIGHT - _LEFT)

    def y(loss: float) -> float:
        return _BOTTOM - loss / top * (_BOTTOM - _TOP)

    parts = [f'<rect x="{_LEFT}" y="{_TOP}" width="{_RIGHT - _LEFT}" height="{_BOTTOM - _TOP}" fill="#fff"/>']
    for t in ticks(0.0, top):
        parts.append(f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>')
    for t in ticks(0.0, float(last)):
        parts.append(f'<text x="{x(t):.1f}" y="{_BOTTOM + 16}" text-anchor="middle">{t:g}</text>')
    for row, (name, curve) in enumerate(curves.items()):
        path = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in curve)
        colour = _COLOURS[name]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        at = f'x="{_RIGHT - 8}" y="{_TOP + 16 * (row + 1)}"'
        parts.append(f'<text {at} text-anchor="end" fill="{colour}">{escape(name)}</text>')
    parts.append(f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">step</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12" role="img"><title>Training and held-out loss</title>{"".join(parts)}</svg>\n'
    )


def _scores(metrics: dict[str, float]) -> str:
    rows = [(what, metrics[key], int(metrics[n])) for what, key, n in _SCORES if key in metrics]
    if not rows:
        return "No score was taken: there were no held-out rows, or no scorer."
    lines = ["| | mean score | n |", "|---|---|---|", *(f"| {what} | {mean:.3f} | {n:,} |" for what, mean, n in rows)]
    gain = "gain over the better of base and examples: {gain:.3f}, 95 % interval [{gain_low:.3f}, {gain_high:.3f}]"
    return "\n".join([*lines, "", gain.format(**metrics).capitalize() + "."] if "gain" in metrics else lines)


def _losses(metrics: dict[str, float]) -> str:
    if "eval_loss_after" not in metrics:
        return f"Training loss at the end: {metrics['loss']:.4f}." if "loss" in metrics else ""
    return f"Held-out loss: {metrics['eval_loss_before']:.4f} before, {metrics['eval_loss_after']:.4f} after."


def _limits(manifest: Manifest) -> str:
    found = [
        "It belongs to one base, tokenizer and chat template; loading it elsewhere is refused.",
        "It knows what its rows said when it was trained, and does not learn of later changes.",
    ]
    if "score_after" not in manifest.metrics:
        found.append("Nobody has measured whether it is better than its base.")
    if "ability_after" not in manifest.metrics:
        found.append("Nobody has measured what it forgot.")
    return "\n".join(f"- {line}" for line in found)
