"""Checks of what a router is given: weights, arms, encoders, and whether it still fits what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ragft_plugin.errors import ConfigError
from ragft_plugin.types import Encoder


def check_weight(weight: float) -> None:
    """Refuse a cost weight that is negative or not finite.

    Raises:
        ConfigError: if it is.
    """
    if not 0.0 <= weight < np.inf:
        raise ConfigError(f"cost_weight must be >= 0 and finite, not {weight}")


def distinct_arms(arms: Sequence[str]) -> tuple[str, ...]:
    """The names of the arms, checked.

    Raises:
        ConfigError: if there are none, two are equal, or one string was given.
    """
    names = tuple(arms)
    if not names or len(set(names)) < len(names) or isinstance(arms, str):
        raise ConfigError(f"arms must be distinct names, at least one; got {arms!r}")
    return names


def checked_encoder(encoder: str | Encoder) -> Encoder | None:
    """The encoder to use; None for TF-IDF.

    Raises:
        ConfigError: for another name.
    """
    if isinstance(encoder, str):
        if encoder != "tfidf":
            raise ConfigError(f"unknown encoder {encoder!r}, expected 'tfidf' or an object with encode()")
        return None
    return encoder


def misfit(fitted: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """What no longer fits, in words, or None.

    Args:
        fitted: name -> fingerprint when the router was fitted.
        now: name -> fingerprint of what is there; names not in ``fitted`` are left alone.

    Example:
        >>> misfit({"encoder": "a"}, {"encoder": "b"})
        "the router no longer fits: encoder is 'b', the router was fitted with 'a'"
    """
    wrong = [
        f"{name} is {came!r}, the router was fitted with {fitted[name]!r}"
        for name, came in now.items()
        if name in fitted and fitted[name] != came
    ]
    return "the router no longer fits: " + "; ".join(wrong) if wrong else None
