"""``ragft doctor``: is everything there, and does it belong together?"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Literal

import click

from ragft_plugin.cli.terminal import config_option, json_option, print_json
from ragft_plugin.config import Config, read_config
from ragft_plugin.errors import RagftError
from ragft_plugin.types import Prompt

State = Literal["ok", "missing", "wrong"]


@dataclass(frozen=True, slots=True)
class Check:
    """What one look found: "ok", "missing" (optional, not there) or "wrong" (has to be mended)."""

    name: str
    state: State
    found: str


@click.command("doctor")
@config_option
@click.option("--quick", is_flag=True, help="Do not load the base model.")
@json_option
@click.pass_context
def command(context: click.Context, config_path: Path, quick: bool, as_json: bool) -> None:
    """Check the installation, the project's parts, and that their fingerprints fit. Exit status 2 if not."""
    checks = [*installation()]
    if config_path.exists():
        checks += project(config_path, quick=quick)
    else:
        checks.append(Check("project", "missing", f"there is no {config_path}; make one with: ragft init"))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        marks = {"ok": "ok     ", "missing": "missing", "wrong": "WRONG  "}
        for check in checks:
            click.echo(f"{marks[check.state]}  {check.name:<28} {check.found}")
    if any(check.state == "wrong" for check in checks):
        context.exit(2)


def installation() -> Iterator[Check]:
    """Python, this package, and what its extras need, as its own metadata names them."""
    from packaging.requirements import Requirement

    yield Check("python", "ok", f"{platform.python_version()} on {platform.machine()}")
    own = distribution("ragft-plugin")
    yield Check("ragft-plugin", "ok", own.version)
    seen: set[str] = set()
    for line in own.requires or ():
        requirement = Requirement(line)
        if requirement.name in seen or requirement.name == "ragft-plugin":
            continue
        seen.add(requirement.name)
        extra = str(requirement.marker).partition("extra == ")[2].strip("\"'") if requirement.marker else ""
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            cure = f"pip install 'ragft-plugin[{extra}]'" if extra else f"pip install {requirement.name}"
            yield Check(requirement.name, "missing" if extra else "wrong", cure)
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        yield Check(
            requirement.name, "ok" if fits else "wrong", found if fits else f"{found}, needs {requirement.specifier}"
        )


def project(path: Path, *, quick: bool) -> list[Check]:
    """The parts that ragft.yaml names."""
    try:
        config = read_config(path)
    except RagftError as error:
        return [Check("project", "wrong", str(error))]
    checks = [Check("project", "ok", f"{path}: {', '.join(config.arm_names())}")]
    parts: list[tuple[str, Callable[[], Check]]] = [
        ("knowledge base", lambda: _knowledge_base(config)),
        ("router", lambda: _router(config)),
        *((f"adapter {name}", lambda name=name: _adapter(config, name)) for name in config.adapters),
    ]
    if not quick and config.server is None:
        parts.append(("model", lambda: _model(config)))
    for name, look in parts:
        try:
            checks.append(look())
        except (RagftError, OSError) as error:
            checks.append(Check(name, "wrong", str(error)))
    return checks


def _knowledge_base(config: Config) -> Check:
    name = "knowledge base"
    if config.knowledge_base is None:
        return Check(name, "missing", "not configured")
    from ragft_plugin.retrieval import KnowledgeBase

    place = config.path(config.knowledge_base)
    if not KnowledgeBase.exists(place):
        return Check(name, "missing", f"none at {place}; fill one with: ragft index DOCUMENTS")
    with KnowledgeBase.open(place, read_only=True) as opened:
        damage = opened.verify()
        if damage:
            return Check(name, "wrong", "; ".join(damage))
        return Check(
            name, "ok", f"{len(opened):,} passages, version {opened.version}, fingerprint {opened.fingerprint}"
        )


def _router(config: Config) -> Check:
    from ragft_plugin.routing import Router

    place = config.path(config.router)
    if not place.exists():
        return Check("router", "missing", "none fitted: a cold start decides; learn one with: ragft fit")
    router = Router.load(place)
    strange = sorted(set(router.arms) ^ set(config.arm_names()))
    if strange:
        return Check("router", "wrong", f"router and project differ in {', '.join(strange)}; fit it anew: ragft fit")
    gate = "open" if router.gate().is_open else "closed"
    return Check("router", "ok", f"{len(router.arms)} arms, encoder {router.encoder_fingerprint}, gate {gate}")


def _adapter(config: Config, name: str) -> Check:
    from ragft_plugin.lora.fingerprints import base_fingerprint
    from ragft_plugin.lora.manifest import Manifest

    folder = config.path(config.adapters[name])
    if not folder.is_dir():
        return Check(f"adapter {name}", "wrong", f"there is no folder {folder}")
    manifest = Manifest.read(folder)
    if manifest is None:
        return Check(f"adapter {name}", "ok", "no manifest: its base cannot be checked before loading")
    base = config.path(config.base)
    if base.is_dir() and base_fingerprint(base) != manifest.fingerprints.base:
        return Check(f"adapter {name}", "wrong", f"trained on another base than {config.base}; train it anew")
    trained = f"{manifest.trained_at:%Y-%m-%d}"
    return Check(f"adapter {name}", "ok", f"{manifest.method}, {manifest.data.rows:,} rows, trained {trained}")


def _model(config: Config) -> Check:
    from ragft_plugin.assembly import Project

    with Project(config) as opened:
        model = opened.model()
        names = ", ".join(config.adapters) or "no adapter"
        (made,) = model.generator(None, max_new_tokens=1).generate([Prompt("Does this work?")])
    return Check(
        "model", "ok", f"{config.base} with {names} loads and answers ({made.usage.prompt_tokens} tokens read)"
    )
