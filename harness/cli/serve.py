"""``harness serve`` and ``harness demo``: a session behind the OpenAI API, and a page that makes drafting visible."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.generate import OfflineOption, SettingsOption
from harness.core.drafter_kinds import DRAFTERS
from harness.core.errors import HarnessError
from harness.core.terminal import say

if TYPE_CHECKING:
    from harness.session.session import Session

SESSION = "configs/session.yaml"
ModelsOption = Annotated[str | None, typer.Option(metavar="PAIR", help="Model pair: a name in configs/models or a path.")]
DrafterOption = Annotated[str | None, typer.Option(help=f"adaptive, {', '.join(DRAFTERS)}, router or an adapter's name.")]


def serve(
    session: Annotated[str, typer.Option(metavar="FILE", help="Session file.")] = SESSION,
    settings: SettingsOption = None,
    models: ModelsOption = None,
    drafter: DrafterOption = None,
    k: Annotated[str | None, typer.Option("-k", "--k", metavar="N", help="Draft length: a number, dynamic or auto.")] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on; beyond this machine a key is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", envvar="HARNESS_API_KEY", help="What clients must send; safer in the variable.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name of this server, such as a proxy's; may be given again.")
    ] = None,
    queue: Annotated[int, typer.Option(min=1, max=10_000, help="Requests that may wait.")] = 64,
    max_prompt: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="Refuse longer prompts; the model's context by default.")
    ] = None,
    learn: Annotated[bool, typer.Option("--learn", help="Keep what the draft gets wrong, and train on it in quiet times.")] = False,
    learn_minutes: Annotated[float, typer.Option(min=0.01, max=60, metavar="MINUTES", help="Most training in an hour.")] = 10,
    offline: OfflineOption = False,
) -> None:
    """Answer the OpenAI API with a draft: chat completions, completions, models, metrics.

    SIGTERM and Ctrl-C end it after the answers under way.

    Example: `harness serve --models smollm2 --port 8080`
    """
    from harness.core.limits import written_length
    from harness.serve.decoding_thread import Learning, Worker
    from harness.serve.server import Server, check_open

    check_open(host, api_key)
    given = {"models": models, "drafter": drafter, "k": written_length(k)}
    with _opened(session, given, settings, offline) as opened:
        if learn and opened.learner is None:
            raise HarnessError(
                f"pair {opened.pair.name!r} has no draft that can learn", "Leave --learn out, or name one of the target's family."
            )
        learning = Learning(minutes=learn_minutes) if learn else None
        worker = Worker(opened, most_waiting=queue, most_prompt_tokens=max_prompt, learning=learning)
        server = Server(worker, host=host, port=port, key=api_key, names=allow_host or ())
        _run(server, opened, f"{server.url}/v1 answers as {opened.pair.name}\nCtrl-C ends it")


def demo(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Session file.")] = SESSION,
    settings: SettingsOption = None,
    models: ModelsOption = None,
    drafter: DrafterOption = None,
    train: Annotated[bool | None, typer.Option("--train/--no-train", help="Train by itself when a round is due.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8765,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    offline: OfflineOption = False,
) -> None:
    """Serve a page on this machine that shows which tokens the draft proposed, and what that gains.

    The page is a client of `harness serve`, with a key of its own. It asks nothing of other hosts, and only this machine can reach it.

    Example: `harness demo --models smollm2`
    """
    given = {"models": models, "drafter": drafter, "train_automatically": train}
    with _opened(session, given, settings, offline) as opened:
        from harness.serve.decoding_thread import Learning, Worker
        from harness.serve.server import Server

        learning = Learning(minutes=60, quiet_s=1) if opened.config.train_automatically and opened.learner is not None else None
        key = secrets.token_urlsafe(24)
        server = Server(Worker(opened, learning=learning), port=port, key=key, page=True)
        _run(server, opened, f"open {server.url}/?key={key}\nCtrl-C ends it", browse=None if no_browser else f"{server.url}/?key={key}")


def _opened(session: str, given: dict[str, Any], settings: Path | None, offline: bool) -> Session:
    from harness.cli.chat import open_session

    return open_session(session, {name: value for name, value in given.items() if value is not None}, settings, offline=offline)


def _run(server: Any, session: Session, message: str, browse: str | None = None) -> None:
    """Warm up, say where the server is, and answer until it is told to end."""
    session.warm_up()
    say(message)
    if browse is not None:
        import webbrowser

        webbrowser.open(browse)
    server.serve()
    say("ended")
