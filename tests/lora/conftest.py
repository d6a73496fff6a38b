from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_adapter, make_base


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices only get slower by being shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def other_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def adapter_folders(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(base_folder, root / name, seed=seed, r=r)
        for name, seed, r in (("red", 11, 4), ("green", 12, 8), ("blue", 13, 4))
    }


@pytest.fixture(scope="module")
def model(base_folder: Path, adapter_folders: dict[str, Path]) -> Iterator[Any]:
    from ragft_plugin.lora import LoraModel

    with LoraModel.load(base_folder, device="cpu", batching="grouped") as loaded:
        for name, folder in adapter_folders.items():
            loaded.load_adapter(name, folder)
        yield loaded
