"""Compare retrieval-aware tuning with plain tuning on the pocket model: python scripts/measure_reading.py [SEED]."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from ragft_plugin.demo.reading import compare_reading


def main() -> None:
    """Run the comparison in a folder of its own and show the table."""
    began = time.perf_counter()
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with tempfile.TemporaryDirectory() as folder:
        result = compare_reading(Path(folder), seed=seed)
    print(result)
    print(result.counts)
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
