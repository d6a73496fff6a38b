"""What the tests of the knowledge base share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def spawn() -> Callable[..., multiprocessing.Process]:
    """Start a process that shares nothing with this one, from one server that has loaded what they all need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ragft_plugin.retrieval.knowledge_base", "kb_workers", "mmap"])

    def start(target: Callable[..., None], *args: object) -> multiprocessing.Process:
        process = context.Process(target=target, args=args)
        process.start()
        return process  # type: ignore[return-value]

    return start
