"""What a target gives in several processes and in one, compared: a program for each of them, and its start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.answers.collect import collect
from harness.cli.shards import free_ports
from harness.core.records import Sample, Trajectory
from harness.decode.audit import classify
from harness.decode.calibrate import calibrate
from harness.decode.forced import forced_passes
from harness.decode.generation import generate
from harness.decode.replay import replay
from harness.decode.rewind import rewindable
from harness.models.following import follow
from harness.models.pair import load_pair
from harness.models.shards import Shards

WAYS: tuple[dict[str, Any], ...] = ({}, {"temperature": 0.8, "seed": 7}, {"temperature": 0.8, "seed": 7, "rule": "rejection"})


def compared(models: str, parts: int, folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Run :func:`main` in ``parts`` processes and return what the first of them found."""
    port = free_ports(parts)
    hosts, out = folder / "hosts.json", folder / "found.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port + rank}"] for rank in range(parts)]), encoding="utf-8")
    environment = {**os.environ, **patient(folder), "MLX_HOSTFILE": str(hosts), "OMP_NUM_THREADS": "1", "BLIS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, models, str(parts), str(out), json.dumps(job)]
    processes = [subprocess.Popen(command, env={**environment, "MLX_RANK": str(rank)}) for rank in range(parts)]
    try:
        assert [process.wait(timeout=job.get("timeout", 120)) for process in processes] == [0] * parts
    finally:
        for process in processes:
            process.kill()
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def patient(folder: Path) -> dict[str, str]:
    """Environment in which mlx's ring waits asleep, where a library for that can be built: processes that spin starve each other."""
    compiler = shutil.which("cc") if sys.platform == "linux" else None
    if compiler is None:
        return {}
    library = folder / "patient.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("patient_recv.c"), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


def main(models: str, parts: int, out: Path, job: dict[str, Any]) -> None:
    """Follow, or decode everything twice and write what differs."""
    with Shards.join(parts, "ring") as shards:
        if not shards.leads:
            follow(shards, rewindable)
            return
        split, whole = load_pair(models, shards=shards), load_pair(models)
        out.write_text(json.dumps(_found(split, whole, job)), encoding="utf-8")


def _found(split: Any, whole: Any, job: dict[str, Any]) -> dict[str, Any]:
    tokens, ways = job["max_tokens"], WAYS[: job.get("ways")]
    prompts = [split.encode(f"{text} {i}") for i, text in enumerate(job["prompts"])]
    different: list[dict[str, Any]] = []
    decoded = 0
    for i, prompt in enumerate(prompts):
        ks = [*job["ks"][i % len(job["ks"]) :], *job["ks"]][: job.get("ks_each", len(job["ks"]))]
        for drafter in (None, *job["drafters"]):
            for k in ks if drafter else ks[:1]:
                for way in ways if drafter else ways[:2]:
                    ours, theirs = (generate(pair, prompt, drafter=drafter, k=k, max_tokens=tokens, **way) for pair in (split, whole))
                    decoded += 1
                    if (ours.tokens, ours.accept_lengths, ours.draft_lengths) != (
                        theirs.tokens,
                        theirs.accept_lengths,
                        theirs.draft_lengths,
                    ):
                        known = None if way else classify(whole, prompt, theirs.tokens, ours.tokens)
                        different.append({"prompt": i, "drafter": drafter, "k": k, **way, "kind": known and known.kind})
        print(f"{i + 1} of {len(prompts)} prompts, {decoded} outputs, {len(different)} different", file=sys.stderr, flush=True)
    samples = [Sample(id=str(i), domain="code", prompt=f"{text} {i}") for i, text in enumerate(job["prompts"])]
    answers = [{t.sample_id: t for t in collect(pair, samples, max_tokens=tokens, batch=4)} for pair in (split, whole)]
    stored = list(answers[1].values())
    rows = [replay(pair, stored, job["drafters"], job["ks"]) for pair in (split, whole)]
    ties = [[forced.match.tolist() for forced in forced_passes(pair.target, None, stored)] for pair in (split, whole)]
    costs = calibrate(split, None, max_k=2, repeats=1).costs
    return {
        "decoded": decoded,
        "different": different,
        "answers": [_said(t) for t in answers[0].values()] == [_said(t) for t in stored],
        "replay": rows[0] == rows[1],
        "forced": ties[0] == ties[1] == [[True] * len(t.tokens) for t in stored],
        "v": costs.v,
    }


def _said(t: Trajectory) -> tuple[Any, ...]:
    return t.sample_id, t.tokens, t.finish


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
