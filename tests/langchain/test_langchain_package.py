"""The folder's own manners: what it exports, what it loads, what it says when something is missing."""

import subprocess
import sys

import pytest

import ragft_plugin.langchain as ours
from ragft_plugin.errors import MissingExtraError


def test_every_public_name_is_there_sorted_and_documented():
    assert ours.__all__ == sorted(ours.__all__)
    for name in ours.__all__:
        assert getattr(ours, name).__doc__, name
    with pytest.raises(AttributeError, match="RoutedCain"):
        _ = ours.RoutedCain


@pytest.mark.parametrize(
    ("missing", "name", "extra"),
    [("langchain_core", "RoutedChain", "langchain"), ("langchain", "RoutingMiddleware", "agents")],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(missing, name, extra):
    code = f"""
import sys
sys.modules["{missing}"] = None
import ragft_plugin.langchain
try:
    ragft_plugin.langchain.{name}
except ragft_plugin.errors.MissingExtraError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"pip install 'ragft-plugin[{extra}]'" in said
    assert issubclass(MissingExtraError, ImportError)


def test_the_chain_loads_no_model_no_index_and_no_agent():
    code = """
import sys
from langchain_core.language_models import BaseChatModel  # loads transformers itself up to 1.4, where that is installed
before = {name.partition(".")[0] for name in sys.modules}
from ragft_plugin.langchain import RoutedChain, RoutedRetriever, from_chat_model, load
loaded = {name.partition(".")[0] for name in sys.modules} - before
print(sorted(loaded & {"torch", "transformers", "peft", "faiss", "tantivy", "langchain", "langgraph", "sklearn"}))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
