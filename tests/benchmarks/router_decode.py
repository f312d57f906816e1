"""Does routing pay on the clock? The router, its own cost included, against every fixed drafter, decoded prompt by prompt in turns.

    python tests/benchmarks/router_decode.py --models smollm2 --prompts 12 --tokens 96 --out router_decode.json

Every prompt runs through all contenders in a rotating order. A fixed drafter's adapter is put in before its clock starts, as on a
server that never changes it; the router starts from the adapter of its own previous answer and pays for choosing and swapping.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common

from harness.adapt.adapters.adapter_folder import list_adapters
from harness.adapt.adapters.names import installed
from harness.adapt.routers.arms import GENERIC, PLAIN, arm_drafter, arm_parts
from harness.adapt.routers.routed import load_router, route_and_decode
from harness.adapt.training.bank import AdapterBank
from harness.core import stats
from harness.core.errors import HarnessError
from harness.core.records import Generation
from harness.decode.generation import generate
from harness.models.pair import load_pair

ROUTER = "router"
Contender = Callable[[str], Generation]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = common.parser(__doc__ or "", models="smollm2", prompts=12, tokens=96, domains=list(common.DATASETS))
    parser.add_argument("--adapters", type=Path, help="folder of adapters; default: the installed ones")
    parser.add_argument("--router", type=Path, help="router file; default: the pair's own")
    parser.add_argument("--fixed", nargs="*", help="arms to decode with besides generic, such as code or memory; default: every one")
    parser.add_argument("--policy", choices=("unfused", "cached", "fuse"), default="cached", help="how the bank holds adapters")
    return parser.parse_args(argv)


class Bench:
    """The contenders of one pair."""

    def __init__(self, pair: Any, bank: AdapterBank, router: Any, tokens: int) -> None:
        self.pair, self.bank, self.router, self.tokens = pair, bank, router, tokens
        self.k = next(arm.k for arm in router.arms_ if arm.drafter == GENERIC)
        self.last: str | None = None
        """Adapter of the router's previous answer."""

    def plain(self, prompt: str) -> Generation:
        """The target alone."""
        return generate(self.pair, prompt, drafter=None, max_tokens=self.tokens)

    def fixed(self, arm: str) -> Contender:
        """One drafter for every prompt."""

        def decode(prompt: str) -> Generation:
            self.bank.activate(arm_parts(arm)[1])
            return generate(self.pair, prompt, drafter=arm_drafter(self.pair, self.bank, arm), k=self.k, max_tokens=self.tokens)

        return decode

    def routed(self, prompt: str) -> Generation:
        """The router's choice, from the state its previous answer left."""
        self.bank.activate(self.last)
        answer = route_and_decode(self.pair, prompt, router=self.router, bank=self.bank, max_tokens=self.tokens)
        self.last = self.bank.active
        return answer


def measure(contenders: dict[str, Contender], prompts: Sequence[str]) -> dict[str, list[Generation]]:
    """Decode every prompt with every contender, the order rotating; one untimed answer each first."""
    results: dict[str, list[Generation]] = {name: [] for name in contenders}
    for decode in contenders.values():
        decode("Say hello.")
    for i, prompt in enumerate(prompts):
        for name in common.turns(list(contenders), i):
            results[name].append(contenders[name](prompt))
        print(f"{i + 1}/{len(prompts)}: " + ", ".join(f"{n} {r[-1].wall_s:.2f} s" for n, r in results.items()), flush=True)
    return results


def table(results: dict[str, list[Generation]], k: int) -> dict[str, Any]:
    """Print Markdown and return the numbers; the best fixed drafter is picked in hindsight, which favours it."""
    walls = {name: [g.wall_s for g in runs] for name, runs in results.items()}
    fixed = [name for name in results if name not in (PLAIN, ROUTER)]
    best = min(fixed, key=lambda name: sum(walls[name]))
    different = {n: sum(g.tokens != p.tokens for g, p in zip(runs, results[PLAIN], strict=True)) for n, runs in results.items()}
    print(f"\n| drafter, K = {k} | tok/s | speedup over plain | tau | answers unlike plain |\n|---|---|---|---|---|")
    rows: dict[str, Any] = {}
    for name, runs in results.items():
        tau = sum(g.emitted for g in runs) / sum(g.rounds for g in runs)
        speedup = stats.ratio(walls[PLAIN], walls[name])
        rows[name] = {"wall_s": walls[name], "tau": tau, "speedup": speedup and dataclasses.asdict(speedup), "different": different[name]}
        rate = sum(g.emitted for g in runs) / sum(walls[name])
        print(f"| {name} | {rate:.2f} | {common.text(speedup)} | {tau:.3f} | {different[name]} |")
    routed = results[ROUTER]
    against = {name: stats.ratio(walls[name], walls[ROUTER]) for name in dict.fromkeys((best, GENERIC))}
    print()
    for name, estimate in against.items():
        label = f"best fixed ({name})" if name == best else name
        print(f"router over {label}: {common.text(estimate)} on {len(routed)} prompts")
    spent = [(g.route_s or 0.0, g.swap_s or 0.0, g.wall_s) for g in routed]
    wall = sum(w for *_, w in spent)
    print(f"routing {100 * sum(r for r, *_ in spent) / wall:.2f}%, swapping {100 * sum(s for _, s, _ in spent) / wall:.2f}% of its time")
    choices = [g.drafter or PLAIN for g in routed]
    print("choices: " + ", ".join(f"{name} {choices.count(name)}" for name in sorted(set(choices))))
    return {
        "k": k,
        "best_fixed": best,
        "contenders": rows,
        "router_over": {name: estimate and dataclasses.asdict(estimate) for name, estimate in against.items()},
        "choices": choices,
        "route_s": [r for r, *_ in spent],
        "swap_s": [s for _, s, _ in spent],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the contenders; raw numbers go to ``--out``."""
    args = parse(argv)
    pair = load_pair(args.models)
    folders = list_adapters(args.adapters) if args.adapters else installed(pair.name)
    router = load_router(pair.name, folders, path=args.router)
    own = [arm.drafter for arm in router.arms_ if arm.drafter not in (GENERIC, PLAIN)]
    names = own if args.fixed is None else args.fixed
    adapters = {adapter for arm in (*own, *names) if (adapter := arm_parts(arm)[1]) is not None}
    unknown = sorted(adapters - set(folders))
    if unknown:
        raise HarnessError(f"no adapter {unknown[0]!r}", f"There are: {', '.join(folders)}.")
    bank = AdapterBank(pair.draft, {name: folders[name] for name in sorted(adapters)}, policy=args.policy)
    bench = Bench(pair, bank, router, args.tokens)
    contenders: dict[str, Contender] = {PLAIN: bench.plain, GENERIC: bench.fixed(GENERIC)}
    contenders |= {name: bench.fixed(name) for name in names}
    contenders[ROUTER] = bench.routed
    samples = common.samples(args)
    results = measure(contenders, [s.prompt for s in samples])
    found = table(results, bench.k)
    common.write(args.out, {"pair": pair.name, "policy": args.policy, "samples": [s.id for s in samples], **found})


if __name__ == "__main__":
    main()
