from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragft_plugin.config import Config, parse_arm, read_config
from ragft_plugin.errors import ConfigError


def test_an_arm_name_says_what_it_is_made_of():
    parsed = {name: parse_arm(name) for name in ("base", "rag", "adapter:law", "rag+adapter:law")}
    assert {n: (p.retrieves, p.adapter) for n, p in parsed.items()} == {
        "base": (False, None),
        "rag": (True, None),
        "adapter:law": (False, "law"),
        "rag+adapter:law": (True, "law"),
    }


@given(st.text(max_size=30))
def test_any_other_arm_name_is_refused(name):
    if name in ("base", "rag") or name.startswith(("adapter:", "rag+adapter:")):
        return
    with pytest.raises(ConfigError, match="is no arm name; expected base, rag"):
        parse_arm(name)


def test_arms_and_costs_follow_from_the_parts():
    config = Config(adapters={"law": "adapters/law"})
    assert config.arm_names() == ["base", "rag", "adapter:law", "rag+adapter:law"]
    assert [config.arm_cost(n) for n in config.arm_names()] == [0.0, 1.0, 0.0, 1.0]
    assert Config(knowledge_base=None, adapters={"law": "x"}).arm_names() == ["base", "adapter:law"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kk: 3", "kk: Extra inputs are not permitted"),
        ("k: 0", "k: Input should be greater than or equal to 1"),
        ("arms: [adapter:law]", "arm 'adapter:law' needs adapter 'law'; adapters: has none"),
        ("arms: [rag]\nknowledge_base: null", "arm 'rag' reads passages; set knowledge_base"),
        ("arms: [rga]", "'rga' is no arm name"),
        ("- 1\n- 2", "should hold settings .* holds list"),
        ("a: [", "is not YAML"),
        ("version: 2", "version: Input should be 1"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, text, message):
    (tmp_path / "ragft.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path)


def test_a_missing_file_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(ConfigError, match="make one with: ragft init"):
        read_config(tmp_path / "ragft.yaml")


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "ragft.yaml").write_text("knowledge_base: kb")
    config = read_config(tmp_path)
    assert config.path(config.knowledge_base) == tmp_path / "kb"


def test_the_base_pocket_is_the_model_that_comes_along_unless_there_is_a_folder_of_that_name(tmp_path):
    (tmp_path / "ragft.yaml").write_text("version: 1\nbase: pocket\n")
    assert (Path(read_config(tmp_path).base) / "config.json").is_file()
    (tmp_path / "pocket").mkdir()
    assert read_config(tmp_path).base == "pocket"
