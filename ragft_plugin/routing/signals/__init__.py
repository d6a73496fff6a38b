"""Signals: what evidence tells, one family of functions per stage.

A signal of your own takes ten lines::

    from ragft_plugin.routing import signal


    @signal(stage="passages")
    def newest_year(reading):
        years = [p.metadata["year"] for p in reading.evidence.passages if "year" in p.metadata]
        return {"newest_year": max(years)} if years else {}

It is used by every router fitted afterwards. What it returns for a query may lack any name: that counts as unknown.
A router that was fitted with it needs it when it decides.
"""

from __future__ import annotations

from ragft_plugin.routing.signals import agreement, draft, passages, question  # noqa: F401  (they register)
from ragft_plugin.routing.signals.reading import Reading
from ragft_plugin.routing.signals.registry import SIGNALS, Signal, signal

__all__ = ["SIGNALS", "Reading", "Signal", "signal"]
