"""Load what ``langchain_core.load.dumpd`` wrote of chains that hold routed components.

A pipeline is alive: models, a knowledge base, a router. It is not written down with the chain, but given when the
chain is loaded, the way LangChain does it with secrets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langchain_core._api import suppress_langchain_beta_warning
from langchain_core.load import load as load_any
from langchain_core.load.serializable import Serializable

from ragft_plugin.langchain.chain import PIPELINE_ID, RoutedChain
from ragft_plugin.pipeline import Pipeline

OURS: tuple[type[Serializable], ...] = (RoutedChain,)


def load(data: Any, *, pipeline: Pipeline, allowed: Iterable[type[Serializable]] = ()) -> Any:
    """The runnable that was dumped.

    Args:
        data: what ``dumpd`` returned.
        pipeline: put into every routed component.
        allowed: further classes that the data may name; those of langchain-core and of this package may always be
            named. Load no data from strangers.

    Example::

        saved = dumpd(chain | StrOutputParser())
        again = load(saved, pipeline=chain.pipeline)
    """
    classes = [*OURS, *allowed]
    paths = {tuple(one.lc_id()): (*one.__module__.split("."), one.__name__) for one in classes}
    with suppress_langchain_beta_warning():
        return load_any(
            data,
            allowed_objects="core",
            additional_import_mappings=paths,
            secrets_map={PIPELINE_ID: pipeline},  # type: ignore[dict-item]  # the map is for values kept out of the data
            valid_namespaces=sorted({one.__module__.partition(".")[0] for one in classes}),
        )
