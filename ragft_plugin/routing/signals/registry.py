"""The registry of signals: name -> function, stage and price."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ragft_plugin.errors import ConfigError
from ragft_plugin.routing.signals.reading import Reading
from ragft_plugin.types import STAGES, Stage

SignalFunction = Callable[[Reading], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Signal:
    """Numbers read from evidence.

    Attributes:
        name: unique.
        stage: the earliest stage at which it can be read.
        price: what reading it costs beyond the stage, in the user's unit.
        function: reading -> {feature: value}; a missing feature is unknown.
    """

    name: str
    stage: Stage
    price: float
    function: SignalFunction


SIGNALS: dict[str, Signal] = {}
"""All signals by name; ``signal`` adds to it."""


def signal(*, stage: Stage, price: float = 0.0, name: str | None = None) -> Callable[[SignalFunction], SignalFunction]:
    """Register a function as a signal.

    Args:
        stage: the earliest stage at which it can be read: question, passages, draft or agreement.
        price: what it costs beyond the stage, in the unit of the outcomes' costs.
        name: unique name; None means the function's.

    Raises:
        ConfigError: for an unknown stage, a negative price, or a name that another function has.

    Example:
        >>> @signal(stage="question", name="demo_is_open")
        ... def is_open(reading):
        ...     return {"is_open": float("closed" not in reading.words)}
        >>> SIGNALS.pop("demo_is_open").stage
        'question'
    """
    if stage not in STAGES:
        raise ConfigError(f"unknown stage {stage!r} of a signal, expected one of {', '.join(STAGES)}")
    if not price >= 0.0:
        raise ConfigError(f"the price of a signal must be >= 0, not {price}")

    def register(function: SignalFunction) -> SignalFunction:
        key = name or function.__name__
        other = SIGNALS.get(key)
        if other is not None and other.function.__module__ != function.__module__:
            raise ConfigError(
                f"signal {key!r} is already registered by {other.function.__module__}; give yours another name"
            )
        SIGNALS[key] = Signal(key, stage, float(price), function)
        return function

    return register
