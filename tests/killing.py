"""Kill a command of the program at random moments and resume it until it ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks

Finished = dict[str, Any]


def killed_and_resumed(
    command: Callable[[Path], list[str]], finished: Callable[[Path], Finished], root: Path, kills: int, seed: int
) -> tuple[Path, list[Path]]:
    """Run once without a kill, then with ``kills`` kills, each run resumed until it ends; a new run begins where kills are left.

    Args:
        command: command line for a working folder.
        finished: what is finished in a working folder; checked after every kill to be there still, unchanged.
        root: empty folder.
        kills: SIGKILLs to send.
        seed: of the moments.

    Returns:
        The folder of the unbroken run, and those of the others.
    """
    rng, whole, folders = random.Random(seed), root / "whole", list[Path]()
    done, wall_s = forks.finished(forks.command, command(whole), whole)
    assert done
    landed = 0
    while landed < kills:
        folder = root / f"killed-{len(folders)}"
        folders.append(folder)
        before: Finished = {}
        done = False
        while not done:
            moment = rng.uniform(0, wall_s) if landed < kills else None
            done, _ = forks.finished(forks.command, command(folder), folder, kill_after_s=moment)
            landed += not done
            now = finished(folder)
            assert {name: now.get(name) for name in before} == before
            before = now
    return whole, folders
