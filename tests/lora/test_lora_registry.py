from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_adapter, make_base

from ragft_plugin.errors import AdapterError, ConfigError
from ragft_plugin.lora import CoverageIndex, LoraModel, Manifest, Registry
from ragft_plugin.lora.fingerprints import Fingerprints, base_fingerprint, fingerprints
from ragft_plugin.lora.manifest import TrainedOn, write_json
from ragft_plugin.lora.probes import take_probe
from ragft_plugin.lora.registry import check_files

PRINTS = Fingerprints(base="b", tokenizer="t", template="c")


def manifest(name: str = "legal", **fields: Any) -> Manifest:
    return Manifest(
        **{
            "name": name,
            "trained_at": datetime(2026, 11, 22, tzinfo=UTC),
            "base": "models/base",
            "fingerprints": PRINTS,
            "data": TrainedOn(rows=2, sha256="x"),
            **fields,
        }
    )


def write(folder: Path, content: str = "weights") -> None:
    (folder / "adapter_model.safetensors").write_text(content)


START = """
import os, signal, sys
from ragft_plugin.lora.manifest import Manifest
from ragft_plugin.lora.registry import Registry
assert "torch" not in sys.modules
root, manifest, place = sys.argv[1], Manifest.model_validate_json(sys.argv[2]), sys.argv[3]
def write(folder):
    (folder / "adapter_model.safetensors").write_text("weights")
"""
ADD_SOME = (
    START
    + """
for _ in range(5):
    Registry(root).add(manifest, write)
"""
)
ADD_ONE_AND_DIE = (
    START
    + """
def die():
    os.kill(os.getpid(), signal.SIGKILL)
if place == "write":
    Registry(root).add(manifest, lambda folder: (write(folder), die()))
name = place.removeprefix("os.")
before = getattr(os, name)
def patched(source, target):
    # The manifest is replaced into place first; the one after it is current.json.
    if name == "replace" and not str(target).endswith("current.json"):
        return before(source, target)
    die()
setattr(os, name, patched)
Registry(root).add(manifest, write)
"""
)


def run_script(script: str, root: Path, place: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", script, str(root), manifest().model_dump_json(), place])


def test_versions_are_numbered_and_the_last_one_answers(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "adapters")
    assert registry.versions() == []
    added = [registry.add(manifest(), write) for _ in range(3)]
    assert [a.version for a in added] == ["1", "2", "3"]
    assert registry.folder("legal") == tmp_path / "adapters" / "legal" / "3"
    assert [(v.version, v.current) for v in registry.versions("legal")] == [("1", False), ("2", False), ("3", True)]
    assert registry.versions("legal")[0].manifest == added[0].manifest


def test_versions_sort_as_numbers(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for _ in range(11):
        registry.add(manifest(), write)
    assert [v.version for v in registry.versions()][-2:] == ["10", "11"]


def test_promote_and_rollback_are_inverse(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for promote in (True, True, False):
        registry.add(manifest(), write, promote=promote)
    assert registry.folder("legal").name == "2"
    registry.promote("legal", "3")
    assert registry.rollback("legal") == "2"
    assert registry.rollback("legal") == "1"
    with pytest.raises(AdapterError, match="no earlier version"):
        registry.rollback("legal")


def test_the_version_that_answers_cannot_be_removed_while_there_are_others(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.add(manifest(), write)
    registry.add(manifest(), write)
    with pytest.raises(AdapterError, match="promote another first"):
        registry.remove("legal", "2")
    registry.remove("legal", "1")
    registry.remove("legal", "2")
    assert registry.versions() == []
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_addition_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    registry = Registry(tmp_path)
    registry.add(manifest(), write)

    def fail(folder: Path) -> None:
        write(folder)
        raise error

    with pytest.raises(error):
        registry.add(manifest(), fail)
    assert sorted(p.name for p in (tmp_path / "legal").iterdir()) == ["1", "current.json"]


def test_a_crash_before_the_rename_is_invisible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path)
    registry.add(manifest(), write)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(SystemExit))
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed: no time to clean up
        with pytest.raises(SystemExit):
            registry.add(manifest(), write)
    assert [v.version for v in registry.versions()] == ["1"]
    assert registry.add(manifest(), write).version == "2"


def test_two_processes_adding_at_once_get_two_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path)
    rename = os.rename

    def overtaken(source: Any, target: Any) -> None:
        monkeypatch.setattr(os, "rename", rename)
        registry.add(manifest(), lambda folder: write(folder, "other"))
        rename(source, target)

    monkeypatch.setattr(os, "rename", overtaken)
    assert registry.add(manifest(), write).version == "2"
    assert [v.manifest.version for v in registry.versions()] == ["1", "2"]


def test_writers_of_many_processes_lose_nothing(tmp_path: Path) -> None:
    """Every version is there, every promotion is remembered, and what answers is one of them."""
    processes = [run_script(ADD_SOME, tmp_path) for _ in range(3)]
    assert [process.wait(300) for process in processes] == [0] * 3
    registry = Registry(tmp_path)
    versions = [v.version for v in registry.versions("legal")]
    assert versions == [str(n) for n in range(1, 16)]
    current = json.loads((tmp_path / "legal" / "current.json").read_text())
    # Each addition promotes once; with the first there is nothing before it to remember.
    assert sorted([*current["history"], current["current"]], key=int) == versions
    for version in registry.versions("legal"):
        check_files(version.folder, version.manifest)
    assert not list((tmp_path / "legal").glob(".*"))


@pytest.mark.parametrize("place", ["write", "os.rename", "os.replace"])
def test_a_writer_that_is_killed_leaves_a_registry_that_works(tmp_path: Path, place: str) -> None:
    """Killed while it writes files, before the version appears, and before the version is promoted."""
    registry = Registry(tmp_path)
    registry.add(manifest(), write)
    process = run_script(ADD_ONE_AND_DIE, tmp_path, place)
    assert process.wait(300) == -signal.SIGKILL
    assert registry.folder("legal").name == "1"
    for version in registry.versions("legal"):
        check_files(version.folder, version.manifest)  # whatever is visible is whole
    # It may have been killed with the lock in its hands.
    added = registry.add(manifest(), write)
    assert registry.folder("legal") == added.folder
    assert registry.rollback("legal") == "1"
    registry.promote("legal", added.version)
    left = list((tmp_path / "legal").glob(".*"))
    assert left
    for path in left:
        os.utime(path, (0, 0))
    registry.add(manifest(), write)
    assert not list((tmp_path / "legal").glob(".*"))


def test_a_damaged_current_version_is_mended_by_promoting(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.add(manifest(), write)
    (tmp_path / "legal" / "current.json").write_text("{")
    with pytest.raises(AdapterError, match="promote a version of 'legal' again"):
        registry.folder("legal")
    registry.promote("legal", "1")
    assert registry.folder("legal").name == "1"
    (tmp_path / "legal" / "current.json").unlink()
    with pytest.raises(AdapterError, match=r"no version of 'legal' in .* answers yet; promote one"):
        registry.folder("legal")


def test_unknown_names_and_versions_say_what_there_is(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.add(manifest(), write)
    with pytest.raises(AdapterError, match=r"no adapter 'facts' \(it has: legal\)"):
        registry.folder("facts")
    with pytest.raises(AdapterError, match=r"no version '7' of 'legal' \(it has: 1\)"):
        registry.folder("legal", "7")
    for bad in ("../1", "1/../1", ""):
        with pytest.raises(AdapterError, match="no version"):
            registry.remove("legal", bad)
    with pytest.raises(AdapterError, match="cannot name an adapter"):
        registry.folder("../legal")


def test_damaged_files_are_named_with_their_cure(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    folder = registry.add(manifest(), write).folder
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(AdapterError, match=r"manifest\.json cannot be read: name: Field required"):
        registry.versions()
    (folder / "manifest.json").write_text(json.dumps({**json.loads(manifest().model_dump_json()), "format": 2}))
    with pytest.raises(AdapterError, match="update ragft-plugin"):
        registry.versions()
    (tmp_path / "legal" / "current.json").write_text("{")
    with pytest.raises(AdapterError, match="promote a version of 'legal' again"):
        registry.folder("legal")


def test_a_manifest_survives_the_disk(tmp_path: Path) -> None:
    whole = manifest(metrics={"loss": 0.1 + 0.2}, settings={"r": 4, "lora": {"use_dora": True}})
    write_json(tmp_path / "manifest.json", whole.model_dump(mode="json"))
    assert Manifest.read(tmp_path) == whole
    assert Manifest.read(tmp_path / "nowhere") is None


def test_the_fingerprint_of_a_base_is_that_of_its_numbers(
    base_folder: Path, other_base_folder: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(base_folder, tmp_path / "copy")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "transformers_version": "0"}))
    assert base_fingerprint(copied) == base_fingerprint(base_folder) != base_fingerprint(other_base_folder)
    (copied / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert base_fingerprint(copied) != base_fingerprint(base_folder)
    with pytest.raises(ConfigError, match=r"no \*\.safetensors"):
        base_fingerprint(tmp_path)


def test_a_large_file_is_sampled_all_over(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(base_folder, tmp_path / "copy")
    monkeypatch.setattr("ragft_plugin.lora.fingerprints._WHOLE", 100)
    monkeypatch.setattr("ragft_plugin.lora.fingerprints._BLOCK", 256)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    before = base_fingerprint(folder)
    for at in (9, 9000, len(content) // 2, len(content) - 1):  # header, tensors, end
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert base_fingerprint(folder) != before
    file.write_bytes(content)
    assert base_fingerprint(folder) == before


def register(base: Path, adapter: Path, root: Path, **changes: Any) -> Path:
    with LoraModel.load(base) as model:
        model.load_adapter("legal", adapter)
        fields = {"fingerprints": model.fingerprints, "probe": take_probe(model, "legal"), **changes}

    def copy(folder: Path) -> None:
        shutil.copytree(adapter, folder, dirs_exist_ok=True)

    return Registry(root).add(manifest(**fields), copy).folder


@pytest.mark.parametrize("part", ["base", "tokenizer", "template"])
def test_loading_checks_every_fingerprint(
    model: LoraModel, base_folder: Path, adapter_folders: dict[str, Path], tmp_path: Path, part: str
) -> None:
    wrong = model.fingerprints.model_copy(update={part: "other"})
    folder = register(base_folder, adapter_folders["red"], tmp_path, fingerprints=wrong)
    with pytest.raises(AdapterError, match=f"trained with another {part} .* or load it with trust=True"):
        model.load_adapter("legal", folder)
    assert "legal" not in model.adapters


def test_loading_checks_the_files(
    model: LoraModel, base_folder: Path, adapter_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = register(base_folder, adapter_folders["red"], tmp_path)
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    with pytest.raises(AdapterError, match=r"adapter_config\.json is missing or not as it was saved"):
        model.load_adapter("legal", folder)


def test_loading_reproduces_the_probe(
    model: LoraModel, base_folder: Path, adapter_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = register(base_folder, adapter_folders["red"], tmp_path)
    model.load_adapter("legal", folder)
    model.unload_adapter("legal")
    written = json.loads((folder / "manifest.json").read_text())
    written["probe"]["logprobs"][0] += 0.1
    (folder / "manifest.json").write_text(json.dumps(written))
    with pytest.raises(AdapterError, match=r"off by 0\.1, allowed are 0\.02"):
        model.load_adapter("legal", folder)
    model.load_adapter("legal", folder, trust=True)
    model.unload_adapter("legal")


def test_the_template_is_part_of_what_is_checked(
    base_folder: Path, adapter_folders: dict[str, Path], tmp_path: Path
) -> None:
    """The template at inference differs from that of training: the commonest way to gibberish."""
    folder = register(base_folder, adapter_folders["red"], tmp_path / "adapters")
    changed = shutil.copytree(base_folder, tmp_path / "base")
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|user|> ", "<|user|>"))
    with (
        LoraModel.load(changed) as model,
        pytest.raises(AdapterError, match="another template"),
    ):
        model.load_adapter("legal", folder)


def test_fingerprints_tell_tokenizers_apart(base_folder: Path, model: LoraModel) -> None:
    from tiny_models import make_tokenizer

    other = make_tokenizer()
    assert fingerprints(base_folder, other, "x").tokenizer == model.fingerprints.tokenizer
    other(["pad these", "two"], padding=True, truncation=True, max_length=4)  # settings of a call are none of it
    assert fingerprints(base_folder, other, "x").tokenizer == model.fingerprints.tokenizer
    other.add_tokens(["new"])
    assert fingerprints(base_folder, other, "x").tokenizer != model.fingerprints.tokenizer


def test_closeness_weighs_rare_words(tmp_path: Path) -> None:
    index = CoverageIndex.fit(["Who runs Orsk?", "Who built Tirk?", "Who runs Melk?"])
    n = 3
    who, runs, orsk, new = (np.log1p(n / (1 + df)) for df in (3, 2, 1, 0))
    assert index.closeness(["who RUNS orsk"]) == pytest.approx([1.0])
    assert index.closeness(["who sees orsk"]) == pytest.approx([(who + orsk) / (who + orsk + new)])
    assert index.closeness(["runs xyz"]) == pytest.approx([runs / (runs + new)])
    assert index.closeness(["", "xyz"]) == pytest.approx([0.0, 0.0])
    index.save(tmp_path / "c.npz")
    loaded = CoverageIndex.load(tmp_path / "c.npz")
    asked = ["who sees orsk", "tirk", "?"]
    assert loaded.closeness(asked).tolist() == index.closeness(asked).tolist()
    assert b"orsk" not in (tmp_path / "c.npz").read_bytes().lower()


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.npz").write_bytes(b"PK")
    with pytest.raises(AdapterError, match=r"c\.npz cannot be read"):
        CoverageIndex.load(tmp_path / "c.npz")


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.text("abc ", max_size=12), max_size=6), st.text("abcd ", max_size=12))
def test_closeness_is_a_share_and_one_for_a_training_question(questions: list[str], other: str) -> None:
    index = CoverageIndex.fit(questions)
    assert all(0 <= c <= 1 + 1e-12 for c in index.closeness([other]))
    for question, close in zip(questions, index.closeness(questions), strict=True):
        assert close == pytest.approx(1.0 if question.split() else 0.0)


def test_an_adapter_of_another_base_of_the_same_shape_is_refused(
    base_folder: Path, other_base_folder: Path, tmp_path: Path
) -> None:
    """PEFT itself loads it without a word."""
    adapter = make_adapter(base_folder, tmp_path / "a", seed=1)
    folder = register(base_folder, adapter, tmp_path / "adapters")
    with LoraModel.load(other_base_folder) as model:
        with pytest.raises(AdapterError, match="trained with another base"):
            model.load_adapter("legal", folder)
        model.load_adapter("legal", adapter)  # without a manifest nothing can be known


def test_make_base_is_reproducible(base_folder: Path, tmp_path: Path) -> None:
    assert base_fingerprint(make_base(tmp_path)) == base_fingerprint(base_folder)
