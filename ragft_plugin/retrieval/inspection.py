"""Inspection: what a knowledge base consists of, and whether every byte of it is as it was written."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import StoreError
from ragft_plugin.retrieval.approximate import damaged
from ragft_plugin.retrieval.audit import audit
from ragft_plugin.retrieval.catalogue import Catalogue
from ragft_plugin.retrieval.lexical import LexicalIndex
from ragft_plugin.retrieval.segments import INDEXES, Segment, SegmentMissing, open_segment
from ragft_plugin.retrieval.view import View


def describe(path: Path, fingerprint: str, view: View) -> dict[str, Any]:
    """Return counts, sizes in bytes, and how a view is indexed.

    "memory" is what searching takes: "resident" for codes, graphs and halves, which are kept whole; "mapped" for
    vectors, inverted lists and BM25, whose pages the system loads as they are used, shares between processes, and may
    drop.
    """
    lists = {"resident": 0, "mapped": 0}
    for segment in view.segments:
        if segment.approximate is not None:
            lists["resident" if segment.approximate.resident else "mapped"] += segment.approximate.size
        if segment.halves is not None:
            lists["resident"] += segment.halves.size
        lists["mapped"] += segment.vectors.nbytes + segment.rows.nbytes
    lists["mapped"] += sum(map(_size, path.glob("bm25-*/*")))
    return {
        "passages": view.state.live,
        "removed": len(view.dead),
        "segments": len(view.segments),
        "dim": view.state.dim,
        "encoder": fingerprint,
        "indexes": [_index(segment) for segment in view.segments],
        "version": view.state.version,
        "bytes_on_disk": sum(map(_size, path.rglob("*"))),
        "memory": lists,
        "bytes_of_vectors": sum(segment.vectors.nbytes for segment in view.segments),
    }


def _size(path: Path) -> int:
    """Return the bytes of a file; 0 for a folder, and for what a writer has taken away meanwhile."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _index(segment: Segment) -> dict[str, Any]:
    found = segment.approximate
    if found is None:
        return {"kind": "flat", "passages": len(segment), "recall@10": 1.0, "bytes": 0}
    return {"kind": found.kind, "passages": len(segment), "recall@10": found.recall, "bytes": found.size}


def find_damage(segments: Path, catalogue: Catalogue, lexical: LexicalIndex) -> list[str]:
    """Check every byte; return what is wrong, file by file.

    Args:
        segments: folder of the segments.
        catalogue: says what there should be.
        lexical: BM25 on disk.
    """
    problems, records, known = audit(catalogue)
    rows: list[NDArray[np.int64]] = []
    for record in records:
        problems += [
            f"{path} is damaged; search is exact without it, and compact() builds it again"
            for path in damaged(segments.parent / INDEXES, record.name, (record.count, record.dim))
        ]
        try:
            rows.append(open_segment(segments, record, patient=True).rows)
        except SegmentMissing as error:
            problems.append(f"{error} is missing")
        except StoreError as error:
            problems.append(str(error))
    if len(rows) == len(records) and not problems:
        held = np.sort(np.concatenate([*rows, np.empty(0, np.int64)]))
        if held.tolist() != known:
            problems.append(
                f"{segments} holds vectors of {len(held)} rows, {catalogue.path.name} has {len(known)}, and they are "
                "not the same; index the documents again in a new knowledge base"
            )
    return problems + [f"{path} is damaged; it is derived and will be rebuilt" for path in lexical.damaged()]
