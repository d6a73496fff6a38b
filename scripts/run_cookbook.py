"""Execute the notebooks of the cookbook, each in a fresh kernel and an empty folder.

    python scripts/run_cookbook.py                    # all of them; outputs are written into the notebooks
    python scripts/run_cookbook.py 01 03              # those whose names begin so
    python scripts/run_cookbook.py --check            # copies; nothing is written

A notebook fails if a cell raises or if it takes longer than the limit, and, where outputs are written into it, if it
writes to stderr (another version of a library may warn; that is told, and no fault of the notebook). What differs
between runs without telling anything (times of execution, versions of the kernel) is left out of the file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

FOLDER = Path(__file__).resolve().parents[1] / "cookbook"
LIMIT = 120.0  # seconds
# Notebooks are executed without widgets, which tqdm laments; bitsandbytes, where it is installed, names a kernel that
# only a processor of another kind could use.
MEANINGLESS = ("Failed to load CPU gemm_4bit_forward",)
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
    "TOKENIZERS_PARALLELISM": "false",
}


def named(prefixes: list[str]) -> list[Path]:
    """The notebooks whose file names begin with one of the prefixes; all of them if there is none.

    Raises:
        SystemExit: if a prefix fits no notebook.
    """
    every = sorted(FOLDER.glob("[0-9][0-9]-*.ipynb"))
    for prefix in prefixes:
        if not any(path.name.startswith(prefix) for path in every):
            sys.exit(f"no notebook begins with {prefix!r}; there are: {', '.join(path.name for path in every)}")
    return [path for path in every if not prefixes or path.name.startswith(tuple(prefixes))]


def execute(path: Path, limit: float) -> tuple[nbformat.NotebookNode, list[str], float]:
    """Execute one notebook; its file stays as it is.

    Args:
        path: the notebook.
        limit: seconds for the whole of it.

    Returns:
        The executed notebook, what is wrong with the run, and the seconds that it took.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=int(limit),
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
            coalesce_streams=True,
        )
        began = time.perf_counter()
        try:
            environment = {**os.environ, **QUIET, "IPYTHONDIR": os.path.join(folder, ".ipython")}
            # What cells write is caught by the kernel itself; the rest is its own talk about its sockets.
            client.execute(env=environment, stderr=subprocess.DEVNULL)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            faults.append(str(error))
        seconds = time.perf_counter() - began
    if seconds > limit:
        faults.append(f"took {seconds:.0f} s; the limit is {limit:.0f} s")
    return plain(notebook), faults, seconds


def errors_written(notebook: nbformat.NotebookNode) -> list[str]:
    """What the cells of a notebook wrote to stderr; what is known to mean nothing is taken out of it."""
    faults = []
    for cell in notebook.cells:
        kept = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                lines = [line for line in output.text.splitlines() if line and not line.startswith(MEANINGLESS)]
                if not lines:
                    continue
                faults.append("\n".join(lines))
            kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept
    return faults


def plain(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook without the metadata that differ from run to run and from machine to machine."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", []):
            output.pop("transient", None)
    return notebook


def main() -> int:
    """Execute what was asked for; the exit status is 1 if a notebook failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prefixes", nargs="*", help="beginnings of file names, such as 01")
    parser.add_argument("--check", action="store_true", help="execute copies and write nothing")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds a notebook may take (default: 120)")
    asked = parser.parse_args()
    failed = 0
    for path in named(asked.prefixes):
        notebook, faults, seconds = execute(path, asked.limit)
        warned = [f"wrote to stderr: {text}" for text in errors_written(notebook)]
        if asked.check:
            print(*warned, sep="\n", file=sys.stderr, flush=True)
        else:
            faults += warned
        failed += bool(faults)
        print(f"{path.name:<44}{seconds:7.1f} s  {'failed' if faults else 'ok'}", flush=True)
        for fault in faults:
            print(fault, file=sys.stderr, flush=True)
        if not faults and not asked.check:
            written = path.with_suffix(".ipynb.part")
            nbformat.write(notebook, written)
            os.replace(written, path)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
