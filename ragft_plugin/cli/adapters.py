"""``ragft adapters``: which versions there are, which one answers, and how others get them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ragft_plugin.cli.terminal import config_option, json_option, print_json
from ragft_plugin.config import read_config

if TYPE_CHECKING:
    from ragft_plugin.lora import AdapterVersion, Registry

F = TypeVar("F", bound=Callable[..., Any])


@click.group("adapters")
def command() -> None:
    """List, promote, roll back, remove, merge and export adapters.

    The registry is the folder adapters beside ragft.yaml, or the one that --registry names.
    """


def _place(function: F) -> F:
    """Options that say where the registry is."""
    registry = click.option("--registry", type=click.Path(path_type=Path), help="Registry folder.")
    return config_option(registry(function))


def _registry(config_path: Path, registry: Path | None) -> Registry:
    from ragft_plugin.lora import Registry

    return Registry(read_config(config_path).folder / "adapters" if registry is None else registry)


@command.command("list")
@click.argument("name", required=False)
@_place
@json_option
def list_(name: str | None, config_path: Path, registry: Path | None, as_json: bool) -> None:
    """List the versions of NAME, or of all adapters; * marks the one that answers."""
    versions = _registry(config_path, registry).versions(name)
    if as_json:
        print_json([_record(version) for version in versions])
        return
    if not versions:
        click.echo("no adapters; train one with: ragft train DATA --name NAME")
    for version in versions:
        manifest = version.manifest
        metrics = "  ".join(f"{key} {value:.3f}" for key, value in sorted(manifest.metrics.items()))
        mark = "*" if version.current else " "
        click.echo(
            f"{mark} {version.name:<16} {version.version:>3}  {manifest.trained_at:%Y-%m-%d %H:%M}  "
            f"{manifest.method:<8} {manifest.data.rows:>6} rows  {metrics}".rstrip()
        )


@command.command()
@click.argument("name")
@click.argument("version")
@_place
def promote(name: str, version: str, config_path: Path, registry: Path | None) -> None:
    """Let VERSION of NAME answer from now on."""
    _registry(config_path, registry).promote(name, version)
    click.echo(f"{name} {version} answers now")


@command.command()
@click.argument("name")
@_place
def rollback(name: str, config_path: Path, registry: Path | None) -> None:
    """Return to the version of NAME that answered before."""
    version = _registry(config_path, registry).rollback(name)
    click.echo(f"{name} {version} answers now")


@command.command()
@click.argument("name")
@click.argument("version")
@_place
def remove(name: str, version: str, config_path: Path, registry: Path | None) -> None:
    """Delete VERSION of NAME; the one that answers only if it is the last."""
    _registry(config_path, registry).remove(name, version)
    click.echo(f"{name} {version} is gone")


@command.command()
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--version", help="Version.  [default: the one that answers]")
@click.option("--base", "base_name", help="Folder or name of the base.  [default: that of ragft.yaml]")
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
)
@click.option("--trust", is_flag=True, help="Merge it although it was trained on another base.")
@_place
@json_option
def merge(
    name: str,
    out: Path,
    version: str | None,
    base_name: str | None,
    dtype: Any,
    trust: bool,
    config_path: Path,
    registry: Path | None,
    as_json: bool,
) -> None:
    """Write the base with NAME worked into its weights to OUT, as a model that transformers loads."""
    from ragft_plugin.lora import merge_adapter

    if base_name is None:
        config = read_config(config_path)
        local = config.path(config.base)
        base_name = str(local) if local.exists() else config.base
    folder = _registry(config_path, registry).folder(name, version)
    merged = merge_adapter(base_name, folder, out, dtype=dtype, trust=trust)
    figures = {"folder": str(merged.folder), "dtype": merged.dtype, "difference": merged.difference}
    if as_json:
        print_json(figures)
        return
    click.echo(f"{merged.folder}  {merged.dtype}, log-probabilities within {merged.difference:.2g} of base and adapter")


@command.command()
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--version", help="Version.  [default: the one that answers]")
@click.option("--base", "base_name", help="What the server calls the base; written into the configuration.")
@_place
@json_option
def export(
    name: str,
    out: Path,
    version: str | None,
    base_name: str | None,
    config_path: Path,
    registry: Path | None,
    as_json: bool,
) -> None:
    """Write NAME to OUT as a PEFT folder that vLLM and SGLang load beside the base."""
    from ragft_plugin.lora import export_adapter

    folder = _registry(config_path, registry).folder(name, version)
    exported = export_adapter(folder, out, base_name=base_name)
    figures = {"folder": str(exported.folder), "rank": exported.rank, "max_lora_rank": exported.max_lora_rank}
    if as_json:
        print_json(figures)
        return
    click.echo(
        f"{exported.folder}  rank {exported.rank}\n"
        f"vllm serve BASE --enable-lora --max-lora-rank {exported.max_lora_rank} "
        f"--lora-modules {name}={exported.folder}"
    )


def _record(version: AdapterVersion) -> dict[str, Any]:
    manifest = version.manifest
    return {
        "name": version.name,
        "version": version.version,
        "current": version.current,
        "folder": str(version.folder),
        "method": manifest.method,
        "trained_at": manifest.trained_at.isoformat(),
        "rows": manifest.data.rows,
        "metrics": manifest.metrics,
    }
