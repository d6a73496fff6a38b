"""An extraction task of the demo's world: passages become the fields of a fixed schema, one a line.

    city: Plaixton
    manager: Ada Brooquin
    ...

A field that the passages do not state is ``unknown``. Scored by field, see ``evaluation.extraction``.
"""

from __future__ import annotations

import random

from ragft_plugin.demo.world import RELATIONS, Site

SCHEMA = tuple(RELATIONS)
REQUEST = "Give me the {fields} of {x}."


def request(rng: random.Random, site: Site) -> str:
    """Ask for the record of a site."""
    del rng
    return REQUEST.format(fields=", ".join(SCHEMA), x=site.name)


def wanted(site: Site) -> str:
    """The record of a site; relations that it has no value for are unknown."""
    return "\n".join(f" {name}: {site.facts.get(name, 'unknown')}" for name in SCHEMA).strip()
