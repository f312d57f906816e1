"""How long a large run takes to write, plan, resume, pack and report, and how much memory each of it needs.

The run is made up: every record is plausible by itself, and they are those of a real plan. Every step runs in a process of its own.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

from harness.core import machine
from harness.core.records import Record, Sample
from harness.core.schema import Measured
from harness.report import load_run, write_reports
from harness.results.manifest import Manifest, read_manifest
from harness.results.parquet import pack, read_groups
from harness.results.store import RunStore
from harness.suite.plan import Job, Plan, foreign, make_plan, settings_of
from harness.suite.suite import Suite, recorded_suite

DOMAINS = {"code": "humaneval", "math": "wordproblems", "chat": "chat", "structured": "structured"}
EXPERIMENTS = [
    {"kind": "baseline"},
    {"kind": "drafters", "drafters": ["generic", "lookup", "hybrid", "early_exit"], "k": [1, 2, 3, 4, 6, 8]},
]
CELLS = 25
"""The target and four drafters with six lengths."""
TOKENS = (40, 56)
"""Shortest and longest answer."""
CALIBRATION = {"c": 0.2, "v": [1.0, 1.2, 1.4, 1.5, 1.6, 1.8, 2.0, 2.1, 2.2, 2.3]}
ROUND_LISTS = 50
"""Made up answers per length and K."""


def suite_of(clocked: int) -> Suite:
    """The suite whose run is made up."""
    values: dict[str, Any] = {"domains": {name: {"dataset": dataset} for name, dataset in DOMAINS.items()}, "experiments": EXPERIMENTS}
    return Suite(name="large", max_tokens=TOKENS[1], clocked=clocked, **values)


def plan_of(suite: Suite, prompts: int) -> Plan:
    """Its plan for so many prompts per domain."""
    samples = [Sample(id=f"{domain}/{i}", domain=domain, prompt="") for domain in DOMAINS for i in range(prompts)]
    return make_plan(suite.cells(), samples, suite.seed, clocked=suite.clocked)


def record_of(job: Job, rng: random.Random) -> Record:
    """What a job might have given."""
    cell, decoded = job.cell, job.method == "decode"
    emitted = TOKENS[0] + crc32(job.sample.id.encode()) % (TOKENS[1] - TOKENS[0])
    k = cell.k if isinstance(cell.k, int) else 0
    accepted, drafted = _rounds(k, emitted, rng.randrange(ROUND_LISTS))
    times = {name: tuple(rng.uniform(0.9, 1.1) * 0.02 * (1 + n * 0.2) for n in drafted) for name in ("draft_times_s", "verify_times_s")}
    clocks: dict[str, Any] = {}
    if decoded:
        clocks = {
            **times,
            "draft_s": sum(times["draft_times_s"]),
            "verify_s": sum(times["verify_times_s"]),
            "prefill_s": 0.05,
            "ttft_s": 0.06,
        }
        clocks["wall_s"] = 0.06 + sum(map(sum, times.values()))
    return Record(
        experiment=cell.experiment, method=job.method, sample_id=job.sample.id, domain=job.sample.domain, drafter=cell.drafter, k=cell.k,
        prompt_tokens=60, rounds=len(drafted), drafted=sum(drafted), accepted=sum(accepted), accept_lengths=accepted, draft_lengths=drafted,
        rejected=sum(a < d for a, d in zip(accepted, drafted, strict=True)), emitted=emitted, finish="length", settings=settings_of(cell),
        tokens=None if job.method == "replay" else tuple(rng.randrange(50_000) for _ in range(emitted)),
        sources=tuple("draft" if d else "" for d in drafted), near_ties=0 if job.method == "replay" else None, **clocks,
    )  # fmt: skip


@cache
def _rounds(k: int, emitted: int, variant: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Accepted and drafted tokens per round of an answer."""
    rng = random.Random(f"{k} {emitted} {variant}")
    accepted, drafted, left = [], [], emitted
    while left:
        drafted.append(min(k, left - 1))
        accepted.append(next((n for n in range(drafted[-1]) if rng.random() > 0.6), drafted[-1]))
        left -= accepted[-1] + 1
    return tuple(accepted), tuple(drafted)


def write_run(folder: Path, records: int, clocked: int, batch: int = 5000) -> Plan:
    """Write a finished run of about ``records`` records, and return its plan."""
    suite, rng = suite_of(clocked), random.Random(0)
    plan = plan_of(suite, max(1, records // (CELLS * len(DOMAINS)) - clocked))
    facts: dict[str, Any] = {"code": {"hash": "0" * 64}, "packages": {}, "machine": {}, "models": {"target": "t", "dtype": "float32"}}
    measured = Measured(calibration=dict.fromkeys(("generic", "lookup", "hybrid", "early_exit"), CALIBRATION))  # type: ignore[misc]
    manifest = Manifest(
        run=folder.name,
        started=machine.utc_now(),
        pair="made up",
        suite=suite.resolved(),
        suite_hash=suite.hash(),
        measured=measured,
        **facts,
    )
    with RunStore.create(folder, manifest) as store:
        for jobs in _batches(list(plan.jobs.values()), batch):
            store.extend(record_of(job, rng) for job in jobs)
        store.finish(planned=len(store))
    return plan


def _batches(jobs: Sequence[Job], size: int) -> Iterator[Sequence[Job]]:
    return (jobs[start : start + size] for start in range(0, len(jobs), size))


def resume(folder: Path) -> str:
    """What a run that was killed at its end does before it decodes: read what is there, and find what the plan still lacks."""
    manifest = read_manifest(folder)
    suite = recorded_suite(manifest.suite)
    groups = read_groups(folder)
    prompts = max(int(sample.rpartition("/")[2]) for sample in groups.samples(groups.cells)) + 1
    plan = plan_of(suite, prompts)
    wrong = foreign(plan, groups.keys())
    with RunStore.resume(folder, read_groups) as store:
        todo = sum(key not in store for key in plan.jobs)
    return f"{len(plan.jobs)} jobs, {todo} left, {len(wrong)} foreign"


def report(folder: Path) -> str:
    """Summary and all files of the report."""
    start = time.perf_counter()
    run = load_run(folder)
    summarised = time.perf_counter() - start
    files = write_reports(run, folder.parent / "report")
    return f"{len(run.rows)} rows summarised in {summarised:.1f} s, {len(files)} files"


STEPS: dict[str, Callable[[Path, argparse.Namespace], str]] = {
    "write": lambda folder, args: f"{len(write_run(folder, args.records, args.clocked).jobs)} records",
    "resume": lambda folder, args: resume(folder),
    "pack": lambda folder, args: (
        f"{pack(folder)} records, {sum(f.stat().st_size for f in folder.glob('records.parquet/*')) / 1e6:.0f} MB of"
        f" {(folder / 'records.jsonl').stat().st_size / 1e6:.0f} MB"
    ),
    "report": lambda folder, args: report(folder),
}


def main(argv: list[str] | None = None) -> None:
    """Run the steps, each in its own process, and print a line for each."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("folder", type=Path, help="run folder to make")
    found.add_argument("--records", type=int, default=1_000_000)
    found.add_argument("--clocked", type=int, default=50, help="prompts per domain with a clock")
    found.add_argument("--step", choices=list(STEPS), help="only this one, in this process")
    args = found.parse_args(argv)
    if args.step:
        start = time.perf_counter()
        said = STEPS[args.step](args.folder, args)
        seconds, peak = time.perf_counter() - start, machine.peak_memory_bytes()
        print(f"{args.step:<7} {seconds:7.1f} s  {peak / 1e9:5.2f} GB  {said}", flush=True)
        return
    for step in STEPS:
        options = [str(args.folder), "--records", str(args.records), "--clocked", str(args.clocked), "--step", step]
        subprocess.run([sys.executable, __file__, *options], check=True)


if __name__ == "__main__":
    main()
