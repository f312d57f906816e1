"""``harness doctor``: what this machine offers and what is broken."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.core.terminal import say


def doctor(
    pair: Annotated[
        str | None, typer.Option("--pair", "--models", metavar="PAIR", help="Also time this pair and predict its speedup.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not fetch the pair.")] = False,
) -> None:
    """Show device, versions, BLAS, speed, memory, disk, hub and sandbox; exit 1 when something is broken.

    Example: `harness doctor --pair smollm2`
    """
    from harness.doctor import examine, is_broken

    checks = examine()
    for check in checks:
        say(f"{check.status:<7} {check.name:<9} {check.value}")
        if check.advice:
            say(f"{'':<17} -> {check.advice}")
    if pair is not None:
        _calibrate(pair, offline)
    if is_broken(checks):
        raise typer.Exit(1)


def _calibrate(name: str, offline: bool) -> None:
    """Print c, v(m) and the predicted speedup per K of a pair."""
    from harness.decode.calibrate import calibrate
    from harness.decode.making import resolve_drafter
    from harness.models.pair import load_pair

    pair = load_pair(name, offline=offline)
    drafter = "generic" if pair.draft else "early_exit"
    times = calibrate(pair, resolve_drafter(pair, drafter), max_k=8)
    say(f"\n{pair.name}: target step {times.target_step_s * 1e3:.1f} ms, drafter {drafter}, c {times.costs.c:.2f}")
    say("verification: " + ", ".join(f"v({m}) {v:.2f}" for m, v in enumerate(times.costs.v, 1)))
    if times.spread > 0.2:
        say(f"note: the machine was busy (spread {times.spread:.2f}); repeat this when it is quiet")
    rows = {alpha: times.predict(alpha) for alpha in (0.6, 0.8)}
    for k in rows[0.6]:
        say(f"K {k}: predicted speedup {rows[0.6][k]:.2f}x at alpha 0.6, {rows[0.8][k]:.2f}x at alpha 0.8")
