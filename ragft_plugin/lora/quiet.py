"""Quiet: calls into transformers and PEFT without what they say on each other's behalf."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar while loading, and no warning of PEFT about what is meant to be so."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            warnings.filterwarnings("ignore", ".*was active which is now deleted", UserWarning)
            yield
    finally:
        if bars:
            logging.enable_progress_bar()
