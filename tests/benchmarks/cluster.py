"""What a cluster of processes on this machine brings and costs: equal results, speed of two workers over one, overhead of the scheduler.

    python tests/benchmarks/cluster.py speed                      # 200 prompts answered and replayed: here, local:1, local:2, in turns
    python tests/benchmarks/cluster.py equal suites/full.yaml     # one run here and one on local:2: tokens, counts, recommendation
    python tests/benchmarks/cluster.py equal suites/full.yaml --limit 6 --set max_tokens=64 --set clocked=1  # less of it

Every measurement is a process of its own with one thread per worker and a cache without answers and adapters; ``speed`` loads the models
before the clock starts. ``equal`` ends with exit code 1 where anything differs that no clock decides.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from harness.core.paths import cache_dir
from harness.core.stats import Estimate
from harness.report import Run
from harness.report.tables import interval
from harness.results.recommend import choice, ranked_rows, times, versus


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("speed", "equal", "once"))
    parser.add_argument("suite", nargs="?", default="suites/full.yaml", help="for equal; for once: here or local:N")
    parser.add_argument("--models", default="smollm2")
    parser.add_argument("--prompts", type=int, default=200, help="over four domains")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--limit", type=int, help="for equal: prompts per domain")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="for equal: change one key of the suite; repeatable")
    parser.add_argument("--out", type=Path, help="for equal: keep the two runs here; one that finished there before is not made again")
    args = parser.parse_args(argv)
    if args.what == "once":
        print(json.dumps(once(args.suite, args.models, args.prompts, args.tokens)))
    elif args.what == "speed":
        speed(args)
    else:
        raise SystemExit(equal(args))


@contextmanager
def fresh() -> Iterator[dict[str, str]]:
    """The environment of a measurement: one thread, and a cache that has models and nothing made with them."""
    with tempfile.TemporaryDirectory() as cache:
        for part in ("models", "downloads", "drafts"):
            if (cache_dir() / part).exists():
                os.symlink(cache_dir() / part, Path(cache, part))
        yield {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HARNESS_CACHE": cache}


def speed(args: argparse.Namespace) -> None:
    """Three ways in turns; the fastest of each counts, which a disturbed turn cannot move."""
    found: dict[str, list[float]] = {"here": [], "local:1": [], "local:2": []}
    for turn in range(args.turns):
        for where, seconds in found.items():
            once = _child(where, args)
            seconds.append(once["seconds"])
            stages = ", ".join(f"{name} {value:.0f}" for name, value in once["stages"].items() if value >= 0.5)
            print(f"turn {turn + 1}, {where}: {seconds[-1]:.1f} s ({stages})", flush=True)
    here, one, two = (min(seconds) for seconds in found.values())
    print(f"two workers over one: {one / two:.2f}x; overhead of one worker over this process: {one / here - 1:+.1%}")


def _child(where: str, args: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own."""
    options = ["--models", args.models, "--prompts", str(args.prompts), "--tokens", str(args.tokens)]
    with fresh() as environment:
        command = [sys.executable, __file__, "once", where, *options]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def once(where: str, models: str, prompts: int, tokens: int) -> dict[str, Any]:
    """Answer and replay ``prompts`` prompts; seconds of the whole run but its report, and its counts."""
    from unittest.mock import patch

    from common import DATASETS
    from rich.console import Console

    from harness.cluster.client import Cluster
    from harness.results.manifest import read_manifest
    from harness.results.reading import read_records
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
        stages, records = dict(read_manifest(folder).measured.time_s or {}), read_records(folder)
    load = stages.pop("load", 0.0)
    stages.pop("total", None)
    return {"seconds": seconds - load, "stages": stages, "records": len(records), "accepted": sum(r.accepted for r in records)}


def equal(args: argparse.Namespace) -> int:
    """The suite here and on two workers; says what differs. Exit code."""
    from harness.results.manifest import read_manifest

    folders = []
    with nullcontext(args.out) if args.out else tempfile.TemporaryDirectory() as out:
        for name, more in (("here", []), ("workers", ["--cluster", "local:2"])):
            less = [*(["--limit", str(args.limit)] if args.limit else []), *(f"--set={change}" for change in args.set)]
            command = ["run", args.suite, "--models", args.models, "--results", f"{out}/{name}/results", *less, *more]
            if not any(read_manifest(folder).finished for folder in Path(out, name, "results").glob("*/")):
                with fresh() as environment:
                    subprocess.run([sys.executable, "-m", "harness", *command], env=environment, check=True)
            folders += [folder for folder in Path(out, name, "results").glob("*/") if read_manifest(folder).finished]
        lines, same = compared(*folders)
    print("\n".join([*lines, "EQUAL" if same else "DIFFERENT"]))
    return 0 if same else 1


def compared(here: Path, there: Path) -> tuple[list[str], bool]:
    """A line for everything that two runs of a suite should have in common, and whether they have."""
    from harness.core.cell import record_key
    from harness.report import load_run
    from harness.results.reading import read_records

    runs = [load_run(folder) for folder in (here, there)]
    ours, theirs = ({record_key(r): r for r in read_records(folder)} for folder in (here, there))
    both = [key for key in ours if key in theirs]
    adapters = [run.manifest.measured.adapters for run in runs]
    names = adapters[0].keys() | adapters[1].keys()

    def other(keys: Sequence[Any], *fields: str) -> list[str]:
        return [str(key) for key in keys if any(getattr(ours[key], name) != getattr(theirs[key], name) for name in fields)]

    counts = ("accept_lengths", "draft_lengths", "emitted", "finish", "prompt_tokens", "choice", "sources")
    free, bound = ([key for key in both if (key.cell.k == "auto") is auto] for auto in (False, True))
    tied = [key for key in both if any(d is not None and d.kind == "tie" for d in (ours[key].divergence, theirs[key].divergence))]
    read = [key for key in both if ours[key].tokens is not None and key not in tied]
    found = {
        "records": (len(ours.keys() | theirs.keys()), [str(key) for key in ours.keys() ^ theirs.keys()]),
        "tokens": (len(read), other(read, "tokens")),
        "counts": (len(free), other(free, *counts)),
        "adapters": (len(names), [n for n in names if adapters[0].get(n, {}).get("hash") != adapters[1].get(n, {}).get("hash")]),
    }
    lines = [f"{name}: {total - len(differ)} of {total} equal" for name, (total, differ) in found.items()]
    lines += [f"  {name} differ: {key}" for name, (_, differ) in found.items() for key in differ[:5]]
    lines.append(f"counts of auto lengths, which a clock decides: {len(bound) - len(other(bound, *counts))} of {len(bound)} equal")
    lines += [f"outputs with a near-tie, not compared: {len(tied)}"] if tied else []
    said, agreed = recommendations(*runs)
    return [*lines, *said], agreed and not any(differ for _, differ in found.values())


def recommendations(here: Run, there: Run) -> tuple[list[str], bool]:
    """What both runs recommend, and whether they agree: the same, or two ways of which neither run shows one to be faster."""
    first, second = here.recommendation, there.recommendation
    lines = [f"recommendation: {first.verdict} {first.use.name}"]
    if (first.verdict, first.use.name) == (second.verdict, second.use.name):
        return lines, True
    lines[0] += f" here, {second.verdict} {second.use.name} on workers"
    if not first.verdict == second.verdict == "faster":
        return lines, False
    names = (first.use.name, second.use.name)
    leads = [_lead(run, *names) for run in (here, there)]
    lines += [
        f"  {names[0]} over {names[1]} {where}: {interval(lead, 2, 'x')}" for where, lead in zip(("here", "on workers"), leads, strict=True)
    ]
    return lines, all(lead is not None and lead.low is not None and not lead.excludes(1.0) for lead in leads)


def _lead(run: Run, first: str, second: str) -> Estimate | None:
    """Time of the ``second`` way of drafting over that of the ``first`` in a run; None where it has one of them only."""
    rows = {choice(row, []).name: row for row in ranked_rows(run.shown)}
    return versus(times([rows[first]]), times([rows[second]])) if {first, second} <= rows.keys() else None


if __name__ == "__main__":
    main()
