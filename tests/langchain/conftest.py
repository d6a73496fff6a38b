from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def lora_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A tiny random base with two random adapters, behind its worker."""
    pytest.importorskip("peft")
    place = Path(__file__).parents[1] / "lora" / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("langchain_tiny_models", place)
    assert spec is not None
    assert spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    from ragft_plugin.lora import LoraModel

    folder = tmp_path_factory.mktemp("model")
    base = tiny.make_base(folder / "base", context=512)
    with LoraModel.load(base, device="cpu") as model:
        for name, seed in (("red", 11), ("green", 12)):
            model.load_adapter(name, tiny.make_adapter(base, folder / name, seed=seed))
        yield model
