import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "langchain", "langchain_core", "llama_index", "faiss", "sklearn", "tantivy")


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, ragft_plugin; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_and_deciding_need_no_model_library():
    code = (
        "import sys\n"
        "from ragft_plugin.cli.main import run\n"
        "run(['--help'])\n"
        "import ragft_plugin.pipeline, ragft_plugin.routing.router, ragft_plugin.evaluation\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
