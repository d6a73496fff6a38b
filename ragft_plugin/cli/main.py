"""``ragft``: the group of subcommands, and what an error looks like.

Exit status: 0 done, 1 a bug, 2 wrong input or settings (with the cure), 130 interrupted.
"""

from __future__ import annotations

import importlib
import logging
import sys

import click

from ragft_plugin import __version__
from ragft_plugin.errors import RagftError

# name -> (module in ragft_plugin.cli, one line of help). A module is imported when its command runs,
# so that `ragft --help` needs no model library.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "Run the whole job on the built-in world: build, run the arms, fit, evaluate, answer."),
    "init": ("init", "Write a ragft.yaml to start from."),
    "index": ("index", "Put documents into the knowledge base."),
    "questions": ("questions", "Write training rows from the documents of the knowledge base."),
    "raft": ("raft", "Make training rows that hold what retrieval really returns."),
    "train": ("train", "Fine-tune a LoRA adapter on question-answer rows."),
    "tune": ("tune", "Tune by documents, preferences or a reward function, or tune the encoder."),
    "adapters": ("adapters", "List, promote, roll back, remove, merge and export adapters."),
    "run-arms": ("run_arms", "Answer questions with every arm and score the answers."),
    "fit": ("fit", "Learn a router from outcomes, or cross-validate one."),
    "eval": ("eval", "Evaluate a router on outcomes it was not fitted on."),
    "report": ("report", "Write a page that shows what a router earns, why, and what to do next."),
    "suggest": ("suggest", "Write training rows for what only retrieval answers today."),
    "ask": ("ask", "Ask a question and see the decision."),
    "doctor": ("doctor", "Check the installation, the project, and that its parts fit together."),
}


class Group(click.Group):
    """A group that imports a command when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"ragft_plugin.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ragft")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens to standard error.")
@click.pass_context
def main(ctx: click.Context, debug: bool, verbose: bool) -> None:
    """Decide, per question, whether to look it up, to ask the fine-tuned adapter, or both."""
    ctx.obj = {"debug": debug}
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")


def run(argv: list[str] | None = None) -> int:
    """Run the command line; the entry point of ``ragft``.

    Returns:
        The exit status.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        result = main.main(args=argv, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("\ninterrupted; what was complete is kept", err=True)
        return 130
    except RagftError as error:
        if "--debug" in argv:
            raise
        click.echo(f"error: {error}", err=True)
        return 2
