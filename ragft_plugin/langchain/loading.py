"""Load what ``langchain_core.load.dumpd`` wrote of chains that hold routed components.

A pipeline is alive: models, a knowledge base, a router. It is not written down with the chain, but given when the
chain is loaded, the way LangChain does it with secrets.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from langchain_core._api import suppress_langchain_beta_warning
from langchain_core.load import load as load_any
from langchain_core.load.serializable import Serializable

from ragft_plugin.langchain.backends import BACKEND_ENV
from ragft_plugin.langchain.chain import PIPELINE_ID, RoutedChain
from ragft_plugin.langchain.chat_lora import ChatLora
from ragft_plugin.pipeline import Pipeline

OURS: tuple[type[Serializable], ...] = (ChatLora, RoutedChain)


def load(
    data: Any, *, pipeline: Pipeline | None = None, backend: Any = None, allowed: Iterable[type[Serializable]] = ()
) -> Any:
    """The runnable that was dumped.

    Args:
        data: what ``dumpd`` returned.
        pipeline: put into every routed component.
        backend: put into every ``ChatLora``; None takes the folder that ``RAGFT_BACKEND`` names.
        allowed: further classes that the data may name; those of langchain-core and of this package may always be
            named. Load no data from strangers.

    Example::

        saved = dumpd(chain | StrOutputParser())
        again = load(saved, pipeline=chain.pipeline)
    """
    classes = [*OURS, *allowed]
    paths = {tuple(one.lc_id()): (*one.__module__.split("."), one.__name__) for one in classes}
    alive: dict[str, Any] = {PIPELINE_ID: pipeline, BACKEND_ENV: backend or os.environ.get(BACKEND_ENV)}
    with suppress_langchain_beta_warning():
        return load_any(
            data,
            allowed_objects="core",
            additional_import_mappings=paths,
            secrets_map={name: value for name, value in alive.items() if value is not None},
            valid_namespaces=sorted({one.__module__.partition(".")[0] for one in classes}),
        )
