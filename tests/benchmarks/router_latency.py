"""What the routing step costs: embed and choose, cold and warm; adapter swaps under every policy; its share of decoding.

    python tests/benchmarks/router_latency.py --models smollm2 --prompts 30 --decode 12 --out router_latency.json

Cold runs are fresh processes: reading the router, loading the encoder, one choice. Warm choices are on prompts that no cache knows.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common

from harness.adapt.adapters.adapter_folder import list_adapters
from harness.adapt.adapters.names import installed
from harness.adapt.routers.routed import load_router, route_and_decode
from harness.adapt.training.bank import AdapterBank
from harness.core.stats import percentiles

POLICIES = ("unfused", "cached", "fuse")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = common.parser(__doc__ or "", models="smollm2", prompts=30, tokens=128, domains=list(common.DATASETS))
    parser.add_argument("--adapters", type=Path, help="folder of adapters; default: the installed ones")
    parser.add_argument("--router", type=Path, help="router file; default: the pair's own")
    parser.add_argument("--decode", type=int, default=12, help="prompts to decode for the routing step's share")
    parser.add_argument("--cold-runs", type=int, default=3)
    parser.add_argument("--swaps", type=int, default=5, help="rounds over all adapters per policy")
    parser.add_argument("--policy", choices=POLICIES, default="cached", help="how adapters are held while decoding")
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def open_router(args: argparse.Namespace) -> Any:
    """The pair's router, its adapters checked, and their folders."""
    from harness.models.naming import pair_name

    name = pair_name(args.models)
    folders = list_adapters(args.adapters) if args.adapters else installed(name)
    return load_router(name, folders, path=args.router), folders


def cold_s(argv: Sequence[str]) -> tuple[float, float]:
    """Seconds in a fresh process: from reading the router to the first choice, and the first choice alone."""
    out = subprocess.run([sys.executable, __file__, *argv, "--cold"], capture_output=True, text=True, check=True).stdout
    total, first = out.split()[-2:]
    return float(total), float(first)


def measure_cold(args: argparse.Namespace) -> None:
    """What the fresh process does."""
    start = time.perf_counter()
    router, _ = open_router(args)
    loaded = time.perf_counter()
    router.decide("Write a function that merges two sorted lists.")
    done = time.perf_counter()
    print(done - start, done - loaded)


def line(name: str, seconds: Sequence[float]) -> str:
    """Percentiles in milliseconds."""
    p50, p95 = percentiles(seconds, (50, 95))
    return f"| {name} | {1000 * p50:.2f} | {1000 * p95:.2f} | {1000 * max(seconds):.2f} | {len(seconds)} |"


def swap_times(pair: Any, folders: dict[str, Path], policy: Any, rounds: int) -> list[float]:
    """Seconds of each swap while going round all adapters, the plain draft in between left out; the first round is warm-up."""
    bank = AdapterBank(pair.draft, folders, policy=policy)
    times: list[float] = []
    for number in range(rounds + 1):
        for name in bank.names:
            swap = bank.activate(name)
            if number:
                times.append(swap.swap_s)
    bank.activate(None)
    return times


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print Markdown, write the raw numbers."""
    args = parse(argv)
    if args.cold:
        measure_cold(args)
        return
    cold = [cold_s(sys.argv[1:] if argv is None else list(argv)) for _ in range(args.cold_runs)]
    router, folders = open_router(args)
    samples = common.samples(args)
    router.decide("Say something to warm up.")
    decisions = [router.decide(s.prompt) for s in samples]
    warm = {
        "embed": [d.embed_s for d in decisions],
        "choose": [d.choose_s for d in decisions],
        "embed + choose": [d.embed_s + d.choose_s for d in decisions],
    }
    print("| routing step, ms | p50 | p95 | max | n |\n|---|---|---|---|---|")
    print("\n".join([line(f"warm {name}", times) for name, times in warm.items()]))
    if cold:
        print(line("cold: router, encoder, first choice", [total for total, _ in cold]))
        print(line("cold: first choice, encoder loaded", [first for _, first in cold]))

    from harness.models.pair import load_pair

    pair = load_pair(args.models)
    swaps = {policy: swap_times(pair, folders, policy, args.swaps) for policy in POLICIES}
    print("\n| adapter swap, ms | p50 | p95 | max | n |\n|---|---|---|---|---|")
    print("\n".join(line(policy, times) for policy, times in swaps.items()))

    bank = AdapterBank(pair.draft, folders, policy=args.policy)
    chosen = samples[:: max(1, len(samples) // max(args.decode, 1))][: args.decode]
    shares = []
    for sample in chosen:
        g = route_and_decode(pair, f"{sample.prompt}\n", router=router, bank=bank, max_tokens=args.tokens)
        shares.append({"sample": sample.id, "drafter": g.drafter, "route_s": g.route_s, "swap_s": g.swap_s, "wall_s": g.wall_s})
    if shares:
        wall = sum(s["wall_s"] for s in shares)
        routed, swapped = (100 * sum(s[key] for s in shares) / wall for key in ("route_s", "swap_s"))
        median = statistics.median(s["wall_s"] for s in shares)
        print(f"\nOf {wall:.1f} s for {len(shares)} answers (median {median:.2f} s): routing {routed:.2f}%, swapping {swapped:.2f}%.")
    common.write(args.out, {"cold_s": cold, "warm_s": warm, "swap_s": swaps, "answers": shares})


if __name__ == "__main__":
    main()
