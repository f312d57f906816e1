"""Kill a command of the program at random moments and resume it until it ends."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAM = """
import sys
import harness.adapt.training.campaign, harness.answers.mlx_batch, harness.models.pair
from harness.cli import main
print("ready", flush=True)
main(sys.argv[1:])
"""
Finished = dict[str, Any]


def run_command(arguments: list[str], cache: Path, kill_after_s: float | None = None) -> tuple[bool, float]:
    """Run the command line in a process of its own; returns whether it finished, and the seconds after its imports."""
    environment = {**os.environ, "HARNESS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], 600)[0]:
        process.kill()
        raise AssertionError("the imports took more than ten minutes")
    assert process.stdout.readline() == "ready\n"
    started = time.perf_counter()
    try:
        _, errors = process.communicate(timeout=600 if kill_after_s is None else kill_after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode == 0, time.perf_counter() - started


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
    done, wall_s = run_command(command(whole), whole)
    assert done
    landed = 0
    while landed < kills:
        folder = root / f"killed-{len(folders)}"
        folders.append(folder)
        before: Finished = {}
        done = False
        while not done:
            done, _ = run_command(command(folder), folder, rng.uniform(0, wall_s) if landed < kills else None)
            landed += not done
            now = finished(folder)
            assert {name: now.get(name) for name in before} == before
            before = now
    return whole, folders
