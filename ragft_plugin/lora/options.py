"""Options: how to generate, the same for a local model and for a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ragft_plugin.errors import ConfigError

OPTIONS = ("max_new_tokens", "temperature", "stop", "seed", "timeout")


@dataclass(frozen=True, slots=True)
class Options:
    """How to generate.

    Attributes:
        max_new_tokens: at most so many tokens are written.
        temperature: 0 takes the likeliest token; above, tokens are drawn.
        stop: strings at which the answer ends; they are not part of it.
        seed: seed of this request's own draws; None draws one. The same seed gives the same answer whatever else
            is in the batch.
        timeout: seconds from submission until the request fails; None waits for ever.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    timeout: float | None = None

    @classmethod
    def of(cls, *layers: Mapping[str, Any]) -> Options:
        """Merge options, later ones winning; None leaves what was there.

        Raises:
            ConfigError: for an unknown name or a value out of range.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            for name, value in layer.items():
                if name not in OPTIONS:
                    raise ConfigError(f"unknown generation option {name!r}; expected one of {', '.join(OPTIONS)}")
                if value is not None:
                    merged[name] = value
        if isinstance(merged.get("stop"), str):
            merged["stop"] = (merged["stop"],)
        merged["stop"] = tuple(s for s in merged.get("stop", ()) if s)
        options = cls(**merged)
        if options.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {options.max_new_tokens}")
        if not options.temperature >= 0:
            raise ConfigError(f"temperature must be 0 or above, got {options.temperature}")
        if options.timeout is not None and not options.timeout > 0:
            raise ConfigError(f"timeout must be above 0 seconds, got {options.timeout}")
        return options
