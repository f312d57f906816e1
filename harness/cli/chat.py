"""``harness chat``: a conversation whose draft learns from it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.asking import (
    LenienceOption,
    MessagesOption,
    MinPOption,
    Shown,
    StopOption,
    SystemOption,
    TopKOption,
    TopPOption,
    read_messages,
)
from harness.cli.generate import PAIR_HELP, FallbackOption, OfflineOption, SettingsOption
from harness.core.drafter_kinds import DRAFTERS
from harness.core.errors import HarnessError, did_you_mean
from harness.core.terminal import read_input, say, show

if TYPE_CHECKING:
    from rich.console import Console

    from harness.core.records import Generation
    from harness.session.session import Session

COMMANDS = {
    "/stats": "what the session has counted so far",
    "/train": "run a training round now",
    "/eval": "compare the draft in use with the plain one on held-out prompts",
    "/adapters": "list the drafters; /adapters NAME switches",
    "/reset": "forget the conversation, keep what was learned",
    "/help": "this list",
    "/quit": "leave; Ctrl-D does too",
}
DRAFTED, TARGET = "green", ""
"""Styles of tokens the draft proposed and of the target's own."""


def chat(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Session file.")] = "configs/session.yaml",
    settings: SettingsOption = None,
    models: Annotated[str | None, typer.Option(metavar="PAIR", help=PAIR_HELP)] = None,
    drafter: Annotated[str | None, typer.Option(help=f"adaptive, {', '.join(DRAFTERS)}, router or an adapter's name.")] = None,
    k: Annotated[str | None, typer.Option("-k", "--k", metavar="N", help="Draft length: a number, dynamic or auto.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    min_p: MinPOption = None,
    rule: Annotated[str | None, typer.Option(help="match or rejection.")] = None,
    lenience: LenienceOption = None,
    stop: StopOption = None,
    system: SystemOption = None,
    messages: MessagesOption = None,
    train: Annotated[bool | None, typer.Option("--train/--no-train", help="Train by itself when a round is due.")] = None,
    show_drafts: Annotated[bool, typer.Option("--show-drafts", help="Colour the tokens that the draft proposed.")] = False,
    fallback: FallbackOption = False,
    offline: OfflineOption = False,
) -> None:
    """Talk to the target; answers the draft predicted badly are kept and trained on between turns.

    Options beat the settings file, which beats the session file. Standard input may be a file with one message or command per line.

    Example: `harness chat --models smollm2 --show-drafts`
    """
    from harness.core.limits import check, written_length

    check(**{name: value for name, value in (("temperature", temperature), ("max_tokens", max_tokens)) if value is not None})
    before = read_messages(messages, system) if messages else []
    given = {
        "models": models,
        "drafter": drafter,
        "k": written_length(k),
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "rule": rule,
        "lenience": lenience,
        "max_tokens": max_tokens,
        "system": system,
        "train_automatically": train,
        "fallback": fallback or None,
    }
    opened = open_session(session, {name: value for name, value in given.items() if value is not None}, settings, offline=offline)
    from rich.console import Console

    with opened:
        Chat(opened, Console(highlight=False, soft_wrap=True), show_drafts=show_drafts, messages=before, stop=stop or ()).run()


def open_session(path: str, changes: dict[str, Any], settings: Path | None = None, *, offline: bool) -> Session:
    """Open a session; mistakes in the file, in ``changes`` or in a ``settings`` file show before mlx is imported."""
    from harness.session.session_config import load_session_config

    load_session_config(path, settings=settings).replace(**changes).check()
    say("loading the models", err=True)
    from harness.session.session import Session

    return Session.from_config(path, settings=settings, offline=offline, **changes)


class Chat:
    """One conversation in a terminal, or over piped standard input.

    Args:
        session: what answers and learns.
        console: where to print.
        show_drafts: colour accepted draft tokens.
        messages: conversation so far; a user's message at its end is answered first.
        stop: texts that end an answer.
    """

    def __init__(
        self,
        session: Session,
        console: Console,
        *,
        show_drafts: bool = False,
        messages: Sequence[dict[str, str]] = (),
        stop: Sequence[str] = (),
    ) -> None:
        self.session, self.console, self.show_drafts, self.stop = session, console, show_drafts, stop
        self.messages = list(messages)
        self.interactive = sys.stdin.isatty()

    def run(self) -> None:
        """Answer until the input ends or ``/quit``."""
        if self.interactive:
            self._show(f"{self.session.pair.name}, draft {self.session.stats().drafter}; /help lists the commands", "dim")
        if self.messages and self.messages[-1]["role"] == "user":
            self._try(self._say, self.messages.pop()["content"])
        while (line := self._read()) is not None:
            line = line.strip()
            if line == "/quit":
                return
            self._try(self._command, *line.split()) if line.startswith("/") else self._try(self._say, line)

    def _try(self, act: Callable[..., None], *arguments: str) -> None:
        """Do something; a refusal is shown."""
        try:
            act(*arguments)
        except HarnessError as error:
            self._show(_plain(error), "red")

    def _read(self) -> str | None:
        """Return the next line; None at the end of the input."""
        try:
            if not self.interactive:
                return read_input(line=True) or None
            import readline  # noqa: F401  arrow keys and history

            return input("\n> ")
        except EOFError:
            self._show()
            return None

    def _show(self, text: str = "", style: str = "") -> None:
        show(self.console, text, style)

    # --- one turn ---

    def _say(self, line: str) -> None:
        if not line:
            return
        messages, dropped = self.session.fit([*self.messages, {"role": "user", "content": line}])
        if dropped:
            self._show(f"the context is full: the {dropped} oldest messages were forgotten; /reset starts afresh", "yellow")
        answer, text = self._answer(messages)
        # Only an answered turn becomes part of the conversation.
        self.messages = [*messages, {"role": "assistant", "content": text}]
        self._show(_counts(answer), "dim")
        self._train_if_due()

    def _answer(self, messages: list[dict[str, str]]) -> tuple[Generation, str]:
        """An answer, and its text up to a stop word."""

        def write(step: Any) -> None:
            for i, token in enumerate(step.tokens):
                self._write(shown.add(token), DRAFTED if i < step.accepted else TARGET)

        with interruptible() as stop:
            shown = Shown(self.session.pair.decode, self.stop, stop)
            answer = self.session.generate(messages, train=False, on_step=write, stop=stop)
        self._write(shown.rest(), TARGET)
        self._show()
        return answer, shown.text

    def _write(self, text: str, style: str) -> None:
        if text:
            show(self.console, text, style if self.show_drafts else TARGET, end="")
            self.console.file.flush()

    def _train_if_due(self) -> None:
        stats = self.session.stats()
        if not stats.due:
            return
        if not self.session.config.train_automatically:
            self._show(f"{stats.pending} failure cases wait: /train runs a training round", "yellow")
            return
        self._show(f"{stats.pending} failure cases: training now, Ctrl-C puts it off", "yellow")
        self._train()

    def _train(self) -> None:
        """Run a round; a refusal or Ctrl-C leaves everything as it was."""
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("training", style="dim", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} updates, loss {task.fields[loss]:.3f}", markup=False),
        )
        try:
            with Progress(*columns, console=self.console, transient=True, disable=not self.interactive) as bar:
                task = bar.add_task("", total=None, loss=float("nan"))
                record = self.session.train(progress=lambda p: bar.update(task, completed=p.step, total=p.total, loss=p.loss))
        except KeyboardInterrupt:
            self._show("training stopped; nothing changed", "yellow")
            return
        except HarnessError as error:
            self._show(f"no training round: {_plain(error)}", "yellow")
            return
        metric = self.session.learner.config.stop.metric if self.session.learner else ""
        change = ", ".join(f"{d}: {metric} {record.before[d]:.3f} -> {record.after[d]:.3f}" for d in record.before)
        self._show(
            f"round {record.round} {record.verdict}, after {record.steps} updates in {record.train_s:.1f} s ({change} on held-out cases)"
        )

    # --- commands ---

    def _command(self, name: str, *arguments: str) -> None:
        if name not in COMMANDS:
            raise HarnessError(f"no command {name}: {did_you_mean(name, list(COMMANDS))}", "/help lists the commands.")
        {
            "/stats": self._stats,
            "/train": self._train,
            "/eval": self._evaluate,
            "/adapters": self._adapters,
            "/reset": self._reset,
            "/help": self._help,
        }[name](*arguments[:1] if name == "/adapters" else ())

    def _help(self) -> None:
        for name, meaning in COMMANDS.items():
            self._show(f"  {name:<10} {meaning}")

    def _reset(self) -> None:
        self.messages = []
        self._show("the conversation starts afresh")

    def _stats(self) -> None:
        s = self.session.stats()
        rows = {
            "answers": f"{s.generations}, {s.tokens} tokens" + (f", {s.tokens_per_s:.1f} tok/s" if s.tokens_per_s else ""),
            "acceptance": f"rate {_number(s.rate)}, alpha {_number(s.alpha)}, {_number(s.tau, 2)} tokens per target pass",
            "recent": f"rate {_number(s.rolling_rate)}, trend {_number(s.trend, 4, '+')} per answer",
            "failures": f"{s.failures} kept, {s.pending} of {s.needed} for the next round",
            "rounds": f"{s.rounds} done, {s.rounds_accepted} accepted",
            "draft": str(s.drafter),
        }
        if s.refusal:
            rows["last round"] = f"not run: {s.refusal}"
        for name, value in rows.items():
            self._show(f"  {name:<10} {value}")

    def _adapters(self, name: str | None = None) -> None:
        if name is not None:
            self.session.use(name)
            self._show(f"drafting with {self.session.stats().drafter}")
            return
        for drafter, meaning in self.session.drafters().items():
            self._show(f"{'*' if drafter == self.session.drafter else ' '} {drafter:<12} {meaning}")

    def _evaluate(self) -> None:
        self._show("the target answers the held-out prompts once, the drafts are replayed over them", "dim")
        rows = self.session.evaluate()
        self._show(f"{rows[0].drafter} against the plain draft, K = {rows[0].k}")
        for row in rows:
            text = f"  {row.domain:<10} {row.prompts:>3} prompts"
            for measure in ("rate", "alpha", "tau"):
                c = getattr(row, measure)
                if c.change is not None:
                    text += f"   {measure} {c.generic.value:.3f} -> {c.current.value:.3f} ({c.change.signed()})"
            self._show(text)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Give an event that the first Ctrl-C sets; the second raises KeyboardInterrupt."""
    stop = threading.Event()

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _counts(answer: Generation) -> str:
    text = f"{answer.emitted} tokens, {answer.emitted / answer.wall_s:.1f} tok/s"
    if answer.drafted:
        text += f", accepted {answer.accepted} of {answer.drafted} ({answer.rate:.2f}), draft {answer.drafter}"
    if answer.route_s is not None:
        text += f", routed in {1000 * answer.route_s:.1f} ms"
    return (
        text
        + {"eos": "", "length": ", cut at the longest answer", "context": ", cut where the context is full", "stopped": ", stopped"}[
            answer.finish
        ]
    )


def _number(value: float | None, digits: int = 3, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def _plain(error: HarnessError) -> str:
    return ". ".join(part.rstrip(".") for part in (error.problem, error.advice) if part) + "."
