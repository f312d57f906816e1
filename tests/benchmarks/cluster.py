"""What a cluster of processes on this machine brings and costs: equal results, speed of two workers over one, overhead of the scheduler.

    python tests/benchmarks/cluster.py speed                      # 200 prompts answered and replayed: here, local:1, local:2, in turns
    python tests/benchmarks/cluster.py equal suites/full.yaml     # one run here and one on local:2: tokens, counts, recommendation

Every measurement is a process of its own with one thread per worker and a cache without answers; models are loaded before the clock starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from harness.core.paths import cache_dir

TIMES = ("prefill_s", "ttft_s", "draft_s", "verify_s", "route_s", "swap_s", "wall_s", "draft_times_s", "verify_times_s")
DATASETS = {"code": "humaneval", "math": "wordproblems", "chat": "chat", "structured": "structured"}


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "equal", "once"))
    parser.add_argument("suite", nargs="?", default="suites/full.yaml", help="for equal; for once: here or local:N")
    parser.add_argument("--models", default="smollm2")
    parser.add_argument("--prompts", type=int, default=200, help="over four domains")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--limit", type=int, help="for equal: prompts per domain")
    args = parser.parse_args()
    if args.what == "once":
        print(json.dumps(once(args.suite, args.models, args.prompts, args.tokens)))
    elif args.what == "speed":
        speed(args)
    else:
        equal(args)


def speed(args: argparse.Namespace) -> None:
    """Three ways in turns; the fastest of each counts, which a disturbed turn cannot move."""
    found: dict[str, list[float]] = {"here": [], "local:1": [], "local:2": []}
    for turn in range(args.turns):
        for where, seconds in found.items():
            seconds.append(_child(where, args)["seconds"])
            print(f"turn {turn + 1}, {where}: {seconds[-1]:.1f} s", flush=True)
    here, one, two = (min(seconds) for seconds in found.values())
    print(f"two workers over one: {one / two:.2f}x; overhead of one worker over this process: {one / here - 1:+.1%}")


def _child(where: str, args: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own."""
    options = ["--models", args.models, "--prompts", str(args.prompts), "--tokens", str(args.tokens)]
    with tempfile.TemporaryDirectory() as fresh:
        for part in ("models", "downloads", "drafts"):
            if (cache_dir() / part).exists():
                os.symlink(cache_dir() / part, Path(fresh, part))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HARNESS_CACHE": fresh}
        command = [sys.executable, __file__, "once", where, *options]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def once(where: str, models: str, prompts: int, tokens: int) -> dict[str, Any]:
    """Answer and replay ``prompts`` prompts; seconds of the whole run but its report, and its counts."""
    from unittest.mock import patch

    from rich.console import Console

    from harness.cluster.client import Cluster
    from harness.results.store import read_manifest, read_records
    from harness.run.runner import run_suite
    from harness.suite.suite import Suite

    limits = {name: prompts // len(DATASETS) + (i < prompts % len(DATASETS)) for i, name in enumerate(DATASETS)}

    def suite(limit: int | None) -> Suite:
        return Suite.model_validate(
            {
                "name": "cluster",
                "models": models,
                "max_tokens": tokens,
                "clocked": 1,
                "clock_tokens": 2,
                "domains": {name: {"dataset": d, "limit": limit or limits[name], "split": "all"} for name, d in DATASETS.items()},
                "experiments": [{"kind": "baseline"}, {"kind": "drafters", "drafters": ["generic", "hybrid"], "k": [1, 2, 4, "dynamic"]}],
            }
        )

    with tempfile.TemporaryDirectory() as out, patch("harness.run.runner._report"):
        with nullcontext() if where == "here" else Cluster(where) as cluster:
            options: dict[str, Any] = {"clock": False, "console": Console(file=sys.stderr), "cluster": cluster}
            run_suite(suite(8), results_dir=Path(out, "warm"), **options)
            started = time.perf_counter()
            folder = run_suite(suite(None), results_dir=Path(out, "results"), **options)
            seconds = time.perf_counter() - started
        stages, records = read_manifest(folder).measured.time_s or {}, read_records(folder)
    return {"seconds": seconds - stages.get("load", 0.0), "records": len(records), "accepted": sum(r.accepted for r in records)}


def equal(args: argparse.Namespace) -> None:
    """The suite here and on two workers; what differs."""
    from harness.core.cell import record_key
    from harness.report import load_run

    runs = []
    with tempfile.TemporaryDirectory() as out:
        for name, more in (("here", []), ("workers", ["--cluster", "local:2"])):
            limit = ["--limit", str(args.limit)] if args.limit else []
            command = ["run", args.suite, "--models", args.models, "--results", f"{out}/{name}/results", *limit, *more]
            subprocess.run([sys.executable, "-m", "harness", *command], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
            (folder,) = Path(out, name, "results").glob("*/")
            runs.append(load_run(folder))
    bare = [
        {str(record_key(r)): dataclasses.replace(r, load=None, tries=(), place=None, **dict.fromkeys(TIMES)) for r in run.records}
        for run in runs
    ]
    other = [key for key in bare[0].keys() | bare[1].keys() if bare[0].get(key) != bare[1].get(key)]
    print(f"{len(bare[0])} and {len(bare[1])} records, {len(other)} differ")
    for key in sorted(other)[:10]:
        print(f"  {key}")
    for run in runs:
        print(f"use {run.recommendation.use.name}: {run.recommendation.command}")


if __name__ == "__main__":
    main()
