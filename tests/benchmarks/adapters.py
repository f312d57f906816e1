"""Do the adapters pay? Acceptance of every adapter against the plain draft on held-out prompts, by replay, with paired intervals.

    python tests/benchmarks/adapters.py --models smollm2 --prompts 60 --tokens 96 --domains code math chat -k 4 --out adapters.json

One row per adapter and domain: alpha and acceptance rate of both, and the difference with its 95% interval over prompts. Answers of
the target are kept in the cache; `--answers DIR` takes all of another folder instead, such as `held_out` of a distillation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common
from tabulate import tabulate

from harness.adapt.adapters.adapter_folder import list_adapters
from harness.adapt.adapters.names import installed
from harness.adapt.training.bank import AdapterBank, replay_bank
from harness.adapt.training_config import AdaptConfig
from harness.answers.collect import collect, read_answers
from harness.core import stats
from harness.core.records import Trajectory
from harness.decode.replay import ReplayRow
from harness.models.cache_key import answers_folder
from harness.models.pair import load_pair

PLAIN = "generic"
METRICS = {
    "alpha": lambda r: (r.accepted, r.accepted + r.rejected),
    "rate": lambda r: (r.accepted, r.drafted),
    "tau": lambda r: (r.emitted, r.rounds),
}
"""Metric -> numerator and denominator of one replayed answer."""


def sums(rows: Sequence[ReplayRow], metric: str) -> tuple[list[float], list[float]]:
    """Numerators and denominators, one of each per prompt."""
    parts = [METRICS[metric](r) for r in rows]
    return [float(a) for a, _ in parts], [float(b) for _, b in parts]


def compare(rows: Sequence[ReplayRow], k: int) -> list[dict[str, Any]]:
    """One entry per (adapter, domain) and per adapter over all domains: metrics of both drafts and their paired difference."""
    cells: dict[tuple[str, str], list[ReplayRow]] = {}
    for row in sorted((r for r in rows if r.k == k), key=lambda r: r.sample_id):
        for domain in (row.domain, "all"):
            cells.setdefault((row.drafter, domain), []).append(row)
    found = []
    for (adapter, domain), own in sorted(cells.items()):
        plain = cells[PLAIN, domain]
        assert [r.sample_id for r in own] == [r.sample_id for r in plain]
        entry: dict[str, Any] = {"adapter": adapter, "domain": domain, "k": k, "prompts": len(own)}
        for metric in METRICS:
            a, b = sums(own, metric), sums(plain, metric)
            change = stats.difference(a, b)
            entry[metric] = {"own": sum(a[0]) / sum(a[1]), "plain": sum(b[0]) / sum(b[1]), "change": asdict(change) if change else None}
        found.append(entry)
    return found


def show(entries: Sequence[dict[str, Any]]) -> str:
    """Markdown table."""
    lines = []
    for e in entries:
        if e["adapter"] != PLAIN:
            own = [f"{e[m]['plain']:.3f} -> {e[m]['own']:.3f}, {text(e[m]['change'])}" for m in ("alpha", "rate")]
            lines.append([e["adapter"], e["domain"], e["prompts"], *own, f"{e['tau']['plain']:.2f} -> {e['tau']['own']:.2f}"])
    return tabulate(lines, headers=["adapter", "domain", "prompts", "alpha", "rate", "tau"], tablefmt="github")


def text(change: dict[str, Any] | None) -> str:
    """A difference with its interval."""
    if change is None:
        return "-"
    interval = "" if change["low"] is None else f" [{change['low']:+.3f}, {change['high']:+.3f}]"
    return f"{change['value']:+.3f}{interval}"


def held_out(pair: Any, args: argparse.Namespace) -> list[Trajectory]:
    """The target's answers to prompts that no adapter was trained on."""
    if args.answers:
        return [s.trajectory() for s in read_answers(args.answers, pair.target_hash)]
    out = answers_folder(pair)
    return list(collect(pair, common.samples(args), max_tokens=args.tokens, batch=args.batch, top_k=AdaptConfig().top_k, out=out))


def main(argv: Sequence[str] | None = None) -> None:
    """Run and write the raw numbers."""
    parser = common.parser(__doc__ or "", models="smollm2", prompts=60, tokens=96, domains=("code", "math", "chat"))
    parser.add_argument("--adapters", type=Path, help="folder of adapters; default: the installed ones")
    parser.add_argument("--answers", type=Path, metavar="DIR", help="stored answers of held-out prompts; none are decoded then")
    parser.add_argument("-k", type=int, default=4, help="draft length")
    parser.add_argument("--batch", type=int, default=32, help="prompts answered together")
    args = parser.parse_args(argv)
    pair = load_pair(args.models)
    bank = AdapterBank(pair.draft, list_adapters(args.adapters) if args.adapters else installed(pair.name))
    answers = held_out(pair, args)
    entries = compare(replay_bank(bank, answers, [args.k]), args.k)
    print(f"# {args.models}: {len(answers)} held-out prompts, K = {args.k}\n\n{show(entries)}")
    common.write(args.out, {"pair": pair.name, "adapters": bank.names, "entries": entries})


if __name__ == "__main__":
    main()
