"""What the benchmark scripts share: their command line, prompts, trajectories, turns and text of ratios."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from harness.core.records import Generation, Sample, Trajectory
from harness.core.stats import Estimate
from harness.datasets import DatasetSpec, load_samples

T = TypeVar("T")

DATASETS = {"code": "humaneval", "math": "wordproblems", "chat": "chat", "structured": "structured"}


def parser(doc: str, *, models: str, prompts: int, tokens: int, domains: Sequence[str] = ("code", "math")) -> argparse.ArgumentParser:
    """Options that every script has, with its own defaults; the first line of ``doc`` is the description."""
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    found.add_argument("--models", default=models, help="pair name or YAML file")
    found.add_argument("--domains", nargs="+", default=list(domains), choices=list(DATASETS))
    found.add_argument("--gsm8k", help="local GSM8K JSONL for math; default: the generated word problems")
    found.add_argument("--prompts", type=int, default=prompts, help="per domain")
    found.add_argument("--tokens", type=int, default=tokens, help="longest answer")
    found.add_argument("--out", type=Path, help="file for the raw numbers")
    return found


def samples(args: argparse.Namespace, split: str = "test") -> list[Sample]:
    """``--prompts`` prompts of every domain in ``--domains``."""
    found: list[Sample] = []
    for domain in args.domains:
        spec: dict[str, Any] = {"dataset": DATASETS[domain], "limit": args.prompts, "split": split}
        if domain == "math" and args.gsm8k:
            spec |= {"dataset": "gsm8k", "path": args.gsm8k}
        found += load_samples(DatasetSpec(**spec), domain=domain)
    return found


def turns(items: Sequence[T], i: int) -> list[T]:
    """``items`` in an order that rotates with ``i``, so that nobody always goes first."""
    at = i % len(items) if items else 0
    return [*items[at:], *items[:at]]


def trajectory(
    sample: Sample, prompt: Sequence[int], g: Generation, max_tokens: int, logprobs: Sequence[float] | None = None
) -> Trajectory:
    """What replay reads, from a decoded answer."""
    return Trajectory(
        sample_id=sample.id,
        domain=sample.domain,
        prompt_tokens=tuple(prompt),
        tokens=g.tokens,
        finish=g.finish,
        max_tokens=max_tokens,
    )


def text(estimate: Estimate | None, digits: int = 3) -> str:
    """``1.234 [1.100, 1.400]``; without the brackets where there are too few prompts for an interval."""
    if estimate is None:
        return "-"
    value = f"{estimate.value:.{digits}f}"
    return value if estimate.low is None else f"{value} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def write(out: Path | None, data: Any) -> None:
    """Write the raw numbers, if a file was asked for."""
    if out is not None:
        out.write_text(json.dumps(data, indent=1), encoding="utf-8")
        print(f"raw numbers: {out}")
