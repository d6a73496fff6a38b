"""``ragft demo``: the whole job on the built-in world."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragft_plugin.cli.terminal import ProgressCallback, json_option, print_json, progress

if TYPE_CHECKING:
    from ragft_plugin.demo.job import Line, Result, Sample


@click.command("demo")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), default=Path("ragft-demo"), show_default=True
)
@click.option("--retrain", is_flag=True, help="Train the adapters instead of using those that come along.")
@json_option
def command(folder: Path, retrain: bool, as_json: bool) -> None:
    """Build, run every arm, fit the router, evaluate it, answer eight questions."""
    from ragft_plugin.demo import job

    def show(label: str) -> AbstractContextManager[ProgressCallback]:
        return progress(label, quiet=as_json)

    result = job.run(folder, retrain=retrain, progress=show)
    if as_json:
        print_json(result.to_json())
        return
    click.echo(table(result))
    click.echo()
    for sample in result.samples:
        click.echo(answered(sample))
    click.echo(f"{result.seconds:.0f} s in all. Ask your own: ragft ask -c {folder}/ragft.yaml 'Who runs ...?'")


def table(result: Result) -> str:
    """The demo's table: a line per fixed arm and policy."""
    rows: list[tuple[str, ...]] = [("", "reward", "95 % interval", "retrievals", "tokens", "seconds")]
    rows += [_row(line) for line in result.lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        row[0].ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    best = result.best_arm
    lines.append("")
    lines.append(
        f"{len(result.router.reward)} questions. The router beats the best fixed arm ({best.name}) by "
        f"{100 * (result.router.mean - best.mean):.1f} points and captures {100 * result.headroom_captured:.0f} % "
        "of the headroom to the oracle."
    )
    return "\n".join(lines)


def _row(line: Line) -> tuple[str, ...]:
    low, high = line.interval
    seconds = "" if line.seconds is None else f"{line.seconds:.1f}"
    return (
        line.name,
        f"{line.mean:.3f}",
        f"[{low:.3f}, {high:.3f}]",
        f"{line.retrievals:.2f}",
        f"{line.tokens:.1f}",
        seconds,
    )


def answered(sample: Sample) -> str:
    """One sample question with its answer and the decision behind it."""
    decision = sample.answer.decision
    assert decision is not None
    mark = "right" if sample.reward else f"wrong, expected: {_flat(sample.question.answer)}"
    return (
        f"[{sample.question.kind}] {sample.question.query}\n"
        f"  {_flat(sample.answer.text)}   ({mark})\n"
        f"  arm {decision.arm}, confidence {decision.confidence:.2f}, after stage {decision.stage}: "
        f"{'; '.join(decision.reasons[:3])}\n"
    )


def _flat(text: str) -> str:
    return " | ".join(line.strip() for line in text.splitlines())
