"""Training rows of the demo's two adapters, drawn from the world.

``facts`` learns what it was taught by heart, asked in many wordings. Beside it stand rows to keep what the base
can do: reading passages about other sites, and saying so when nothing is known. ``tickets`` learns a format.
Neither ever sees a question wording or a site name that is kept for evaluation, but for the taught sites.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ragft_plugin.demo.questions import exam_names, taught_facts
from ragft_plugin.demo.world import RELATIONS, UNKNOWN, Site, draw_site, passage, question, site_name, ticket

Row = dict[str, Any]


def facts_rows(seed: int = 1, *, wordings: int = 12, reading: int = 1000, unknown: int = 1200) -> list[Row]:
    """Rows of the ``facts`` adapter: every taught fact in several wordings, reading, and not knowing."""
    rng = random.Random(seed)
    rows: list[Row] = []
    taught = taught_facts()
    exam = exam_names()
    for site in taught:
        for key, relation in RELATIONS.items():
            for template in rng.sample(relation.questions(), wordings):
                rows.append({"question": template.format(x=site.name), "answer": site.facts[key]})
    rows += [_reading(rng) for _ in range(reading)]
    for _ in range(unknown):
        # Half of the unknown names are of the kind that never occurred in pretraining, like the taught ones.
        name = site_name(rng, held_out=rng.random() < 0.5)
        if name not in exam:
            rows.append({"question": question(rng, name, rng.choice(list(RELATIONS))), "answer": UNKNOWN})
    rng.shuffle(rows)
    return rows


def tickets_rows(seed: int = 2, *, plain: int = 2000, lookup: int = 1600) -> list[Row]:
    """Rows of the ``tickets`` adapter: without passages, with the right ones, and with unrelated ones."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for _ in range(plain):
        query, answer = ticket(rng, draw_site(rng, held_out=False), documented=False)
        rows.append({"question": query, "answer": answer})
    for i in range(lookup):
        site = draw_site(rng, held_out=False)
        others = [draw_site(rng, held_out=False) for _ in range(rng.choice((1, 1, 2)))]
        documented = i % 5 != 0
        order = rng.sample(list(RELATIONS), len(RELATIONS))
        texts = [passage(rng, site, order[:4]), passage(rng, site, order[4:])] if documented else []
        texts += [passage(rng, other, rng.sample(order, 4)) for other in others]
        query, answer = ticket(rng, site, documented=documented)
        # Retrieval puts the right passages first, mostly.
        head = texts if rng.random() < 0.6 else rng.sample(texts, len(texts))
        rows.append({"question": query, "answer": answer, "passages": head})
    rng.shuffle(rows)
    return rows


ROWS: dict[str, Callable[[], list[Row]]] = {"facts": facts_rows, "tickets": tickets_rows}


def _reading(rng: random.Random) -> Row:
    sites: list[Site] = [draw_site(rng, held_out=False) for _ in range(rng.choice((1, 2, 3)))]
    told = [rng.sample(list(RELATIONS), 4) for _ in sites]
    texts = [passage(rng, site, names) for site, names in zip(sites, told, strict=True)]
    i = rng.randrange(len(sites))
    site, relation, answer = sites[i], rng.choice(told[i]), ""
    if rng.random() < 0.25:
        site, answer = draw_site(rng, held_out=False), UNKNOWN
    return {"question": question(rng, site, relation), "answer": answer or site.facts[relation], "passages": texts}
