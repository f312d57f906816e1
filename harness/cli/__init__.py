"""The ``harness`` command. Each command lives in its own file and is imported only when it runs."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from harness.core.errors import HarnessError
from harness.core.files import reason
from harness.core.terminal import forgiving_streams, say
from harness.core.text import odd_character

# name: (module:function or module:Typer app, one line of help). A new command is one new line.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("harness.cli.run:run", "Decode a suite and write a run folder with records and a report."),
    "choose": ("harness.cli.choose:choose", "Find what drafts fastest for a target on your prompts, in one go."),
    "report": ("harness.cli.run:report", "Write the Markdown, CSV and HTML report of a run, from its records."),
    "check": ("harness.cli.check:check", "Compare a run with a stored reference: the regression gate."),
    "compare": ("harness.cli.check:compare", "Show what changed from one run to another."),
    "results": ("harness.cli.storage:results_app", "List, show and remove runs."),
    "cache": ("harness.cli.storage:cache_app", "Show what the cache holds, and remove what nobody needs."),
    "validate": ("harness.cli.validate:validate", "Check a suite file without loading any model."),
    "generate": ("harness.cli.generate:generate", "Answer one prompt with speculative decoding and show the counts."),
    "chat": ("harness.cli.chat:chat", "Talk to a model whose draft learns from the conversation."),
    "serve": ("harness.cli.serve:serve", "Answer the OpenAI API with a draft, one that learns where asked to."),
    "demo": ("harness.cli.serve:demo", "Show drafting token by token on a local web page."),
    "collect": ("harness.cli.generate:collect", "Write the target's answers to prompts: the raw material of training."),
    "train": ("harness.cli.train:train", "Adapt the draft to what it gets wrong, and keep what raises acceptance."),
    "adapters": ("harness.cli.adapters:adapters_app", "List, import, export and remove the adapters of a pair."),
    "train-router": ("harness.cli.route:train_router", "Learn which adapter suits which prompt, and show what that gains."),
    "route": ("harness.cli.route:route", "Show which adapter the router picks for a prompt, why, and what the choice costs."),
    "distill": ("harness.cli.distill:distill", "Build a small draft out of the target itself."),
    "memory": ("harness.cli.memory:memory_app", "Build and show what a pair's target said before, which costs nothing to propose again."),
    "export": ("harness.cli.export:export", "Write a draft, an adapter or a recommendation for mlx-lm, llama.cpp, transformers and vLLM."),
    "models": ("harness.cli.models:models_app", "List, fetch and check model pairs."),
    "worker": ("harness.cli.worker:worker", "Work for a scheduler: answer, decode, replay and train for clients elsewhere."),
    "doctor": ("harness.cli.doctor:doctor", "Show what this machine offers and what is broken."),
}


BATCHED = ("collect", "train", "train-router", "distill")
"""Commands that multiply large matrices: there MKL is the faster choice also on AMD."""


class LazyGroup(TyperGroup):
    """Command group that imports a command's module only when the command runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of :data:`COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a stand-in that knows the name and the line of help."""
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the real command behind the stand-in."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        return name, stand_in and load_command(stand_in.name or ""), rest


def load_command(name: str) -> Any:
    """Import the command called ``name`` and return it ready to run."""
    target, summary = COMMANDS[name]
    module, _, attribute = target.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        found.info.help = found.info.help or summary
        command = typer.main.get_command(found)
    else:
        single = typer.Typer(add_completion=False, rich_markup_mode="markdown")
        single.command(name)(found)
        command = typer.main.get_command(single)
    command.name = name
    return command


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    debug: bool = typer.Option(False, "--debug", help="Show the Python traceback of errors; may stand anywhere on the line."),
) -> None:
    """Measure and raise the acceptance rate of speculative decoding.

    Example: `harness run suites/quick.yaml`
    """
    if version:
        from harness import __version__

        say(__version__)
        raise typer.Exit()


def main(argv: list[str] | None = None, command: Callable[..., Any] = app) -> None:
    """Run the command line and exit: 0 ok, 1 a check failed, 2 the input was wrong or the program failed, 130 interrupted."""
    forgiving_streams()
    arguments, debug = _take_debug(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in BATCHED:
        os.environ.setdefault("HARNESS_BLAS", "mkl")
    try:
        _check_text(arguments)
        command(arguments, prog_name="harness")
    except HarnessError as error:
        say(traceback.format_exc() if debug else f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("interrupted", err=True)
        sys.exit(130)
    except (OSError, MemoryError) as error:  # a full disk, a folder that may not be read: the machine's, not a fault of the harness
        say(traceback.format_exc() if debug else f"error: {_of_the_machine(error)}", err=True)
        sys.exit(2)
    except Exception:
        say(traceback.format_exc(), err=True)
        say("error: this is a fault of the harness, not of your input; please report it with the lines above", err=True)
        sys.exit(2)


def _check_text(arguments: list[str]) -> None:
    for number, argument in enumerate(arguments, start=1):
        if (odd := odd_character(argument.replace("\r", ""))) is not None:
            raise HarnessError(f"argument {number} holds the character {odd}", "Give UTF-8 text without control characters.")


def _of_the_machine(error: OSError | MemoryError) -> str:
    """One sentence for what the system refused."""
    if isinstance(error, MemoryError):
        return "not enough memory\nUse a smaller model, batch or file."
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{reason(error)}\nCheck the path, its permissions and the free space."


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Remove ``--debug`` from the arguments before a ``--``; return the rest and whether it was there."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [a for a in arguments[:end] if a != "--debug"]
    return [*options, *arguments[end:]], len(options) < end
