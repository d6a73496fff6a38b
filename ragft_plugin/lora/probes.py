"""Probes: does a loaded adapter do anything, and does it do what it did when it was saved?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ragft_plugin.errors import AdapterError
from ragft_plugin.lora.manifest import Probe
from ragft_plugin.lora.rendering import Renderer
from ragft_plugin.types import Prompt

if TYPE_CHECKING:
    from ragft_plugin.lora.model import LoraModel

# No training row, so that a manifest gives nothing of the data away.
_QUESTION, _ANSWER = "What do you know, and who told you?", "I know what I have read."

Logprobs = Callable[[Sequence[int], int, str | None], list[float]]


def probe_ids(renderer: Renderer) -> tuple[list[int], int]:
    """A short text of question and answer, and the position of the answer."""
    row = renderer.render_training(Prompt(_QUESTION), _ANSWER)
    return row.ids, len(row.ids) - row.supervised - 1


def take_probe(model: LoraModel, name: str) -> Probe:
    """What a loaded adapter thinks of the probe text."""
    ids, start = probe_ids(model.renderer)
    return Probe(ids=ids, start=start, logprobs=model.logprobs(ids, start, adapter=name))


def check_probe(
    logprobs: Logprobs,
    adapter: str,
    renderer: Renderer,
    probe: Probe | None,
    folder: Path,
    *,
    exact: bool,
) -> None:
    """Check that an adapter changes its base, and says what it said when it was saved.

    Args:
        logprobs: ``logprobs(ids, start, adapter)`` of the model.
        adapter: PEFT's name of the adapter.
        renderer: renders the probe text if none is stored.
        probe: what was stored, if anything.
        folder: named in messages.
        exact: the model computes in float32; otherwise the tolerance is ten times the stored one.

    Raises:
        AdapterError: if it does not.
    """
    ids, start = (probe.ids, probe.start) if probe else probe_ids(renderer)
    got, without = logprobs(ids, start, adapter), logprobs(ids, start, None)
    if got == without:
        raise AdapterError(
            f"{folder} changes nothing: with it the model computes what it computes without. It was never trained, "
            "or its layers are named otherwise than those of this base"
        )
    if probe is None:
        return
    worst = max(abs(a - b) for a, b in zip(got, probe.logprobs, strict=True))
    allowed = probe.tolerance * (1 if exact else 10)
    if not worst <= allowed:
        raise AdapterError(
            f"{folder} does not compute what it did when it was saved: a token's log-probability is off by "
            f"{worst:.3g}, allowed are {allowed:g}; the base or the files have changed, or PEFT reads them otherwise. "
            "Train it again, or load it with trust=True"
        )
