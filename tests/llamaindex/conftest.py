"""Where langchain-community is installed, LlamaIndex imports it, and it warns that it is being sunset."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(
                pytest.mark.filterwarnings("ignore:.langchain-community. is being sunset:DeprecationWarning")
            )
