"""Train the pocket model's adapters, examine everything, and write the model's card beside it.

    python scripts/make_pocket_adapters.py            # train, examine, write
    python scripts/make_pocket_adapters.py --examine  # examine what is there and write the card anew

The exam asks for exact match, greedy, on sites never seen in pretraining.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ragft_plugin.demo.pocket import ADAPTERS, BASE, FOLDER
from ragft_plugin.demo.questions import documents, questions, taught_facts
from ragft_plugin.demo.retrain import retrain_adapters
from ragft_plugin.demo.world import RELATIONS, UNKNOWN, Site, draw_site, passage, question
from ragft_plugin.evaluation.intervals import wilson
from ragft_plugin.lora import LoraModel
from ragft_plugin.retrieval import KnowledgeBase
from ragft_plugin.types import Passage, Prompt

N = 400
Item = tuple[Prompt, str]
WANTED = {
    "base reads one passage": 0.97,
    "base reads 3 unrelated passages": 0.90,
    "question wording never used in training, one passage": 0.85,
    "base abstains when the retrieved passages do not hold the answer": 0.80,
    "facts adapter, trained facts, asked in unseen wording": 0.60,
    "facts adapter on stale facts": None,
    "facts adapter on facts in documents only": None,
    "tickets adapter, plain ticket": 0.95,
    "tickets adapter + retrieval, ticket that needs looking up": 0.93,
}


def reading(rng: random.Random, passages: int, *, unseen: bool) -> Item:
    """One question over passages about unrelated sites."""
    sites = [draw_site(rng, held_out=True) for _ in range(passages)]
    told = [rng.sample(list(RELATIONS), 4) for _ in sites]
    texts = [passage(rng, site, names) for site, names in zip(sites, told, strict=True)]
    i = rng.randrange(passages)
    relation = rng.choice(told[i])
    prompt = Prompt(
        question(rng, sites[i], relation, unseen=unseen),
        tuple(Passage(str(j), text) for j, text in enumerate(texts)),
    )
    return prompt, sites[i].facts[relation]


def taught(rng: random.Random, sites: list[Site]) -> Item:
    """One taught fact, asked closed-book in an unseen wording."""
    site, relation = rng.choice(sites), rng.choice(list(RELATIONS))
    return Prompt(question(rng, site, relation, unseen=True)), site.facts[relation]


def asked(kinds: tuple[str, ...]) -> list[tuple[str, str]]:
    """The demo's questions of some kinds, both splits."""
    both = [*questions("calibration"), *questions("test")]
    return [(q.query, q.answer) for q in both if q.kind in kinds]


def exams() -> dict[str, tuple[str | None, list[Item]]]:
    """Name of the exam -> (adapter, items)."""
    rng = random.Random(20261122)
    with tempfile.TemporaryDirectory() as folder, KnowledgeBase.create(Path(folder) / "kb", encoder="hashing") as kb:
        kb.add(documents())

        def open_book(pairs: list[tuple[str, str]]) -> list[Item]:
            found = kb.retrieve([query for query, _ in pairs], 3)
            return [(Prompt(q, tuple(ps)), a) for (q, a), ps in zip(pairs, found, strict=True)]

        # Nothing about these sites is in the documents, so whatever is retrieved does not hold the answer.
        missing = [(query, UNKNOWN) for query, _ in asked(("unknown", "adapter only"))]
        unanswerable = open_book(missing)
        lookup = open_book(asked(("lookup ticket",)))
    current = {p.metadata["title"]: p.metadata["updated"] for p in documents()}
    stale = {name for name, updated in current.items() if updated > "2026"}
    kept = [site for site in taught_facts() if site.name not in stale]
    return {
        "base reads one passage": (None, [reading(rng, 1, unseen=False) for _ in range(N)]),
        "base reads 3 unrelated passages": (None, [reading(rng, 3, unseen=False) for _ in range(N)]),
        "question wording never used in training, one passage": (
            None,
            [reading(rng, 1, unseen=True) for _ in range(N)],
        ),
        "base abstains when the retrieved passages do not hold the answer": (None, unanswerable),
        "facts adapter, trained facts, asked in unseen wording": ("facts", [taught(rng, kept) for _ in range(N)]),
        "facts adapter on stale facts": ("facts", [(Prompt(q), a) for q, a in asked(("changed",))]),
        "facts adapter on facts in documents only": ("facts", [(Prompt(q), a) for q, a in asked(("documents only",))]),
        "tickets adapter, plain ticket": ("tickets", [(Prompt(q), a) for q, a in asked(("plain ticket",))]),
        "tickets adapter + retrieval, ticket that needs looking up": ("tickets", lookup),
    }


def examine() -> dict[str, dict[str, float]]:
    """Run every exam; name -> exact match, 95 % Wilson interval, n."""
    results: dict[str, dict[str, float]] = {}
    with LoraModel.load(BASE) as model:
        for name, folder in ADAPTERS.items():
            model.load_adapter(name, folder)
        for name, (adapter, items) in exams().items():
            made = model.generator(adapter, max_new_tokens=64).generate([prompt for prompt, _ in items])
            right = np.array([g.text == answer for g, (_, answer) in zip(made, items, strict=True)])
            interval = wilson(float(right.sum()), len(right))
            results[name] = {
                "exact_match": round(float(right.mean()), 4),
                "low": round(interval.low, 4),
                "high": round(interval.high, 4),
                "n": len(right),
            }
            print(
                f"{name:<66} {right.mean():.3f}  [{interval.low:.3f}, {interval.high:.3f}]  n={len(right)}", flush=True
            )
    return results


def card(results: dict[str, dict[str, float]]) -> str:
    """The model's card."""
    pretraining = json.loads((BASE / "pretraining.json").read_text())
    sizes = {p.relative_to(FOLDER).as_posix(): p.stat().st_size for p in sorted(FOLDER.rglob("*.safetensors"))}
    rows = []
    for name, row in results.items():
        wanted = WANTED[name]
        target = "(as it is)" if wanted is None else f">= {wanted:.2f}"
        met = "" if wanted is None else "met" if row["exact_match"] >= wanted else "**not met**"
        spread = f"[{row['low']:.3f}, {row['high']:.3f}]"
        rows.append(f"| {name} | {row['exact_match']:.3f} | {spread} | {row['n']:.0f} | {target} | {met} |")
    made = datetime.now(UTC).date().isoformat()
    machine = f"{os.cpu_count()} cores ({platform.machine()}), CPU only"
    return "\n".join(
        [
            "# The pocket model",
            "",
            "A Llama of 3.8 M parameters that reads passages about fictional sites, with two LoRA adapters: `facts`",
            "(closed-book knowledge) and `tickets` (a format). Trained by this project on text that it draws itself",
            "(`ragft_plugin/demo/world.py`), so that the demo and the tests need no model hub. It knows nothing else.",
            "Licence: Apache-2.0, as the package.",
            "",
            f"Base: `scripts/pretrain_pocket_model.py`, {pretraining['tokens'] / 1e6:.1f} M tokens in "
            f"{pretraining['steps']} steps. Adapters and this card: `scripts/make_pocket_adapters.py`.",
            f"Examined {made} on {machine}. Exact match, greedy, on sites never seen in pretraining:",
            "",
            "| exam | exact match | 95 % interval | n | wanted | |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "Sizes: " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()) + ".",
            "",
        ]
    )


def anonymise(folder: Path) -> None:
    """Take the paths of this machine out of an adapter's files, and hash them anew. Card and chart are not needed."""
    for name in ("README.md", "loss.svg"):
        (folder / name).unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "pocket"
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["base"] = "pocket"
    files = sorted(p for p in folder.iterdir() if p.name != "manifest.json")
    manifest["files"] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


@contextmanager
def told(label: str) -> Iterator[Callable[[int, int], None]]:
    """Progress in words."""
    print(label, flush=True)
    yield lambda done, total: print(f"  {done}/{total}", flush=True) if done % 100 == 0 else None


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, train and examine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examine", action="store_true", help="do not train")
    parser.add_argument("--max-seconds", type=float, default=900.0, help="per adapter")
    args = parser.parse_args(argv)
    if not args.examine:
        with tempfile.TemporaryDirectory() as folder:
            for name, made in retrain_adapters(Path(folder), told, max_seconds=args.max_seconds).items():
                shutil.rmtree(ADAPTERS[name], ignore_errors=True)
                shutil.copytree(made, ADAPTERS[name])
                anonymise(ADAPTERS[name])
    results = examine()
    (FOLDER / "exam.json").write_text(json.dumps(results, indent=1) + "\n")
    (FOLDER / "README.md").write_text(card(results))


if __name__ == "__main__":
    main(sys.argv[1:])
