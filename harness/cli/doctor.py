"""``harness doctor``: what this machine offers and what is broken."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from harness.cli.generate import JsonOption
from harness.core.terminal import say, say_json


def doctor(
    pair: Annotated[
        str | None, typer.Option("--pair", "--models", metavar="PAIR", help="Also time this pair and predict its speedup.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not fetch the pair.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show device, versions, BLAS, speed, memory, disk, hub and sandbox; exit 1 when something is broken.

    Example: `harness doctor --pair smollm2`
    """
    from harness.doctor import examine, is_broken

    checks = examine()
    if not as_json:
        for check in checks:
            say(f"{check.status:<7} {check.name:<9} {check.value}")
            if check.advice:
                say(f"{'':<17} -> {check.advice}")
    times = None if pair is None else _calibrate(pair, offline)
    if as_json:
        say_json({"checks": [dataclasses.asdict(check) for check in checks], "broken": is_broken(checks), "pair": times})
    elif times is not None:
        _show(times)
    if is_broken(checks):
        raise typer.Exit(1)


def _calibrate(name: str, offline: bool) -> dict[str, Any]:
    """c, v(m) and the predicted speedup per K of a pair."""
    from harness.decode.calibrate import calibrate
    from harness.decode.making import resolve_drafter
    from harness.models.pair import load_pair

    pair = load_pair(name, offline=offline)
    drafter = "generic" if pair.draft else "early_exit"
    times = calibrate(pair, resolve_drafter(pair, drafter), max_k=8)
    return {
        "name": pair.name, "drafter": drafter, "target_step_s": times.target_step_s, "c": times.costs.c, "v": list(times.costs.v),
        "spread": times.spread, "predicted": {str(alpha): times.predict(alpha) for alpha in (0.6, 0.8)},
    }  # fmt: skip


def _show(times: dict[str, Any]) -> None:
    say(f"\n{times['name']}: target step {times['target_step_s'] * 1e3:.1f} ms, drafter {times['drafter']}, c {times['c']:.2f}")
    say("verification: " + ", ".join(f"v({m}) {v:.2f}" for m, v in enumerate(times["v"], 1)))
    if times["spread"] > 0.2:
        say(f"note: the machine was busy (spread {times['spread']:.2f}); repeat this when it is quiet")
    low, high = times["predicted"].values()
    for k in low:
        say(f"K {k}: predicted speedup {low[k]:.2f}x at alpha 0.6, {high[k]:.2f}x at alpha 0.8")
