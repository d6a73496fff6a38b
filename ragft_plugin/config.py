"""Settings of a project: the pydantic model of ``ragft.yaml``.

Paths are relative to the file. An arm's name says what it is made of: ``base``, ``rag``, ``adapter:NAME``,
``rag+adapter:NAME``.
"""

from __future__ import annotations

import re
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ragft_plugin.errors import ConfigError

FILE_NAME = "ragft.yaml"
POCKET = Path(__file__).parent / "demo" / "pocket" / "base"  # the model that comes along, as ``base: pocket``
_ARM = re.compile(r"^(base|rag|(?P<both>rag\+)?adapter:(?P<adapter>[a-z][a-z0-9_-]*))$")


class ArmName(BaseModel):
    """What an arm's name says.

    Attributes:
        retrieves: whether it reads passages.
        adapter: the adapter it uses, None for the base model.
    """

    model_config = ConfigDict(frozen=True)
    retrieves: bool
    adapter: str | None


def parse_arm(name: str) -> ArmName:
    """Read an arm's name.

    Raises:
        ConfigError: if it is not of the form above.

    Example:
        >>> parse_arm("rag+adapter:legal")
        ArmName(retrieves=True, adapter='legal')
    """
    match = _ARM.match(name)
    if match is None:
        raise ConfigError(
            f"{name!r} is no arm name; expected base, rag, adapter:NAME or rag+adapter:NAME "
            "(NAME in lower case letters, digits, - and _)"
        )
    adapter = match["adapter"]
    return ArmName(retrieves=name == "rag" or match["both"] is not None, adapter=adapter)


def _valid_arm(name: str) -> str:
    parse_arm(name)
    return name


class Strict(BaseModel):
    """A model that refuses keys it does not know, so that a misspelt setting is told, not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(Strict):
    """An OpenAI-compatible server that generates instead of a local model.

    Attributes:
        url: its base, for example ``http://localhost:8000/v1``.
        base: name of the base model there.
        model: how an adapter is named as a model; ``{adapter}`` and ``{base}`` are filled in.
        api_key_env: environment variable that holds the key.
    """

    url: str
    base: str
    model: str = "{adapter}"
    api_key_env: str | None = None


class Costs(Strict):
    """Prices in the user's unit (retrievals, tokens, milliseconds, money): per retrieval, and per generation."""

    retrieval: float = Field(default=1.0, ge=0)
    generation: float = Field(default=0.0, ge=0)
    arms: dict[Annotated[str, AfterValidator(_valid_arm)], float] = {}


class Chunks(Strict):
    """How ``ragft index`` cuts documents: at most so many characters, and so many shared by neighbours."""

    size: int = Field(default=1000, ge=1)
    overlap: int = Field(default=100, ge=0)

    @model_validator(mode="after")
    def _overlap_is_less_than_all(self) -> Chunks:
        if self.overlap >= self.size:
            raise ValueError(f"overlap must be less than size; got size {self.size}, overlap {self.overlap}")
        return self


class Generation(Strict):
    """Defaults for every generator."""

    max_new_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.0, ge=0)


class Config(Strict):
    """One project.

    Attributes:
        base: folder or hub name of the base model (any Hugging Face causal LM).
        server: generate there instead of locally.
        knowledge_base: folder of the knowledge base.
        encoder: ``hashing``, ``minilm``, ``none`` for BM25 alone, or the folder of an encoder that ``export_onnx`` or
            ``StaticEncoder.save`` has made. A knowledge base stays with the one it was made with, and another is
            refused; not set, it is ``hashing`` for a new one.
        chunks: how documents are cut.
        adapters: name -> folder of each LoRA adapter.
        known_until: name -> day up to which an adapter knows the world, where its data are older than its training;
            passages changed later make it stale.
        arms: what to choose among; empty means every arm that base, knowledge base and adapters allow.
        router: folder of the fitted router; without one, a cold start decides.
        log: decision log, a SQLite file or an SQLAlchemy URL.
        k: passages per query.
        cost_weight: reward given up per unit of cost.
        exploration: epsilon: share of queries whose arm is left to chance, and whose evidence is gathered in full, so
            that a log can be learnt from. 0 leaves nothing to chance.
    """

    version: Literal[1] = 1
    base: str = "pocket"
    server: Server | None = None
    knowledge_base: str | None = "knowledge_base"
    encoder: str | None = None
    chunks: Chunks = Chunks()
    adapters: dict[str, str] = {}
    known_until: dict[str, date | datetime] = {}
    arms: list[Annotated[str, AfterValidator(_valid_arm)]] = []
    router: str = "router"
    log: str | None = None
    k: int = Field(default=3, ge=1, le=100)
    costs: Costs = Costs()
    cost_weight: float = Field(default=0.0, ge=0)
    exploration: float = Field(default=0.0, ge=0, le=1)
    generation: Generation = Generation()
    folder: Path = Field(default_factory=Path, exclude=True)

    @model_validator(mode="after")
    def _arms_have_their_parts(self) -> Config:
        for name in self.known_until:
            if name not in self.adapters:
                raise ValueError(f"known_until names {name!r}; adapters: has {', '.join(self.adapters) or 'none'}")
        for name in self.arms:
            arm = parse_arm(name)
            if arm.adapter is not None and arm.adapter not in self.adapters:
                known = ", ".join(self.adapters) or "none"
                raise ValueError(f"arm {name!r} needs adapter {arm.adapter!r}; adapters: has {known}")
            if arm.retrieves and self.knowledge_base is None:
                raise ValueError(f"arm {name!r} reads passages; set knowledge_base")
        return self

    def arm_names(self) -> list[str]:
        """The arms, named or implied."""
        if self.arms:
            return list(self.arms)
        closed = ["base", *(f"adapter:{name}" for name in self.adapters)]
        if self.knowledge_base is None:
            return closed
        opened = ["rag", *(f"rag+adapter:{name}" for name in self.adapters)]
        return [arm for pair in zip(closed, opened, strict=True) for arm in pair]

    def arm_cost(self, name: str) -> float:
        """Price of one answer by an arm, its retrieval included."""
        default = self.costs.generation + (self.costs.retrieval if parse_arm(name).retrieves else 0.0)
        return self.costs.arms.get(name, default)

    def path(self, setting: str) -> Path:
        """A path named in the file, relative to it."""
        return self.folder / Path(setting).expanduser()


def read_config(path: str | Path) -> Config:
    """Read ``ragft.yaml``; ``base: pocket`` becomes the folder of the model that comes with the package.

    Raises:
        ConfigError: if it is missing, is not YAML, or a setting is wrong (each one named).
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise ConfigError(f"there is no {path}; make one with: ragft init")
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} should hold settings (key: value); it holds {type(data).__name__}")
    try:
        config = Config(**{**data, "folder": path.parent})
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {told}") from error
    if config.base == "pocket" and not config.path("pocket").exists():
        return config.model_copy(update={"base": str(POCKET)})
    return config
