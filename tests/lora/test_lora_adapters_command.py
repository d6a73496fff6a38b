from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_lora_registry import manifest

from ragft_plugin.cli.main import run
from ragft_plugin.lora import LoraModel, Registry


@pytest.fixture
def registry(base_folder: Path, adapter_folders: dict[str, Path], model: LoraModel, tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "adapters")
    for name in ("red", "green"):
        content = manifest(fingerprints=model.fingerprints, metrics={"score_after": 0.5})
        registry.add(content, lambda folder, n=name: shutil.copytree(adapter_folders[n], folder, dirs_exist_ok=True))
    return registry


def say(capsys: Any, registry: Registry, *words: str, status: int = 0) -> str:
    capsys.readouterr()
    assert run(["adapters", *words, "--registry", str(registry.root)]) == status
    out, err = capsys.readouterr()
    return out if status == 0 else err


def test_versions_are_listed_promoted_rolled_back_and_removed(capsys: Any, registry: Registry) -> None:
    first, second = say(capsys, registry, "list").splitlines()
    assert first.split()[:2] == ["legal", "1"]
    assert second.split()[:3] == ["*", "legal", "2"]
    assert second.endswith("score_after 0.500")
    assert say(capsys, registry, "promote", "legal", "1") == "legal 1 answers now\n"
    assert registry.folder("legal").name == "1"
    assert say(capsys, registry, "rollback", "legal") == "legal 2 answers now\n"
    assert say(capsys, registry, "remove", "legal", "1") == "legal 1 is gone\n"
    listed = json.loads(say(capsys, registry, "list", "legal", "--json"))
    assert [(v["version"], v["current"], v["rows"]) for v in listed] == [("2", True, 2)]


def test_mistakes_are_named_with_their_cure(capsys: Any, registry: Registry) -> None:
    assert "it has: 1, 2" in say(capsys, registry, "promote", "legal", "7", status=2)
    assert "promote another first" in say(capsys, registry, "remove", "legal", "2", status=2)
    assert "it has: legal" in say(capsys, registry, "rollback", "fiscal", status=2)


def test_an_adapter_is_merged_and_exported(
    capsys: Any, registry: Registry, base_folder: Path, tmp_path: Path, adapter_folders: dict[str, Path]
) -> None:
    words = ["merge", "legal", str(tmp_path / "m"), "--base", str(base_folder), "--dtype", "float32", "--json"]
    merged = json.loads(say(capsys, registry, *words))
    assert (merged["folder"], merged["dtype"]) == (str(tmp_path / "m"), "float32")
    assert merged["difference"] < 1e-3
    assert (tmp_path / "m" / "model.safetensors").is_file()
    told = say(capsys, registry, "export", "legal", str(tmp_path / "e"), "--version", "1", "--base", "org/base")
    assert f"--max-lora-rank 8 --lora-modules legal={tmp_path / 'e'}" in told
    assert json.loads((tmp_path / "e" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    again = say(capsys, registry, "export", "legal", str(tmp_path / "e"), status=2)
    assert "exists already; name a new folder" in again
