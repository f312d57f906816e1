"""Run a command while another process keeps one core busy for a part of the time: does what the command measures hold?

    python tests/benchmarks/busy_core.py [--share 0.5] [--slice 0.2] harness run suites/quick.yaml

Ends with the command's own exit status.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def burn(share: float, period_s: float) -> None:
    """Compute for ``share`` of every ``period_s`` seconds, rest for the remainder, until killed."""
    while True:
        start = time.perf_counter()
        while time.perf_counter() - start < share * period_s:
            pass
        time.sleep((1 - share) * period_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Start the load, run the command, stop the load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.5, help="part of the time one core is busy, 0 to 1")
    parser.add_argument("--slice", type=float, default=0.2, help="seconds of one period of work and rest")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run")
    options = parser.parse_args(argv)
    if not options.command or not 0 < options.share <= 1:
        parser.error("Give a share between 0 and 1 and a command to run.")
    call = f"from busy_core import burn; burn({options.share}, {options.slice})"
    load = subprocess.Popen([sys.executable, "-c", call], cwd=Path(__file__).parent)
    try:
        return subprocess.run(options.command, check=False).returncode
    finally:
        load.kill()
        load.wait()


if __name__ == "__main__":
    sys.exit(main())
