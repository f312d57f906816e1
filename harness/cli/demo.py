"""``harness demo``: drafting made visible on a local web page."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.generate import PAIR_HELP, FallbackOption, OfflineOption, SettingsOption
from harness.core.drafter_kinds import DRAFTERS
from harness.core.terminal import say


def demo(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Session file.")] = "configs/session.yaml",
    settings: SettingsOption = None,
    models: Annotated[str | None, typer.Option(metavar="PAIR", help=PAIR_HELP)] = None,
    drafter: Annotated[str | None, typer.Option(help=f"adaptive, {', '.join(DRAFTERS)}, router or an adapter's name.")] = None,
    train: Annotated[bool | None, typer.Option("--train/--no-train", help="Train by itself when a round is due.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8765,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    fallback: FallbackOption = False,
    offline: OfflineOption = False,
) -> None:
    """Serve a page on this machine that shows which tokens the draft proposed, and what that gains.

    The page asks nothing of other hosts, and only this machine can reach it.

    Example: `harness demo --models smollm2`
    """
    from harness.cli.chat import open_session

    given = {"models": models, "drafter": drafter, "train_automatically": train, "fallback": fallback or None}
    with open_session(session, {name: value for name, value in given.items() if value is not None}, settings, offline=offline) as opened:
        from harness.cli.demo_answers import warm_up
        from harness.cli.demo_server import DemoServer

        server = DemoServer(opened, port)
        warm_up(opened)
        say(f"open {server.url}\nCtrl-C ends it")
        if not no_browser:
            import webbrowser

            webbrowser.open(server.url)
        try:
            server.serve()
        except KeyboardInterrupt:
            say("ended")
