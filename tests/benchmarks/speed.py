"""Speed of this project's loop against plain decoding and against mlx-lm's speculative loop, interleaved prompt by prompt.

    python tests/benchmarks/speed.py --models qwen-coder --gsm8k test.jsonl --prompts 12 --tokens 96

Every prompt runs through all contenders in a rotating order; the table gives ratios of summed wall times with paired bootstrap
intervals, the measured c and v, and the loop efficiency (measured speedup over the one that c, v and the counts predict).
"""

from __future__ import annotations

import time
from typing import Any

import common

from harness.core import stats
from harness.core.records import Generation
from harness.decode.calibrate import Calibration, calibrate
from harness.decode.generation import generate
from harness.decode.making import DrafterOptions, resolve_drafter
from harness.models.pair import load_pair

RAW = ("emitted", "rounds", "drafted", "accepted", "accept_lengths", "draft_lengths", "prefill_s", "draft_s", "verify_s", "wall_s")
"""What ``--out`` keeps of every answer."""


def predicted_wall_s(g: Generation, plain: Generation, measured: Calibration) -> float:
    """Wall time the round counts should take at the calibrated step times, in units of the plain run's own speed."""
    costs = measured.costs
    target_steps = sum(costs.round_cost(k) for k in g.draft_lengths)
    step_s = (plain.wall_s - plain.prefill_s) / plain.emitted
    return g.prefill_s + target_steps * step_s


def main(argv: list[str] | None = None) -> None:
    """Run the contenders and print the table; raw numbers go to ``--out``."""
    parser = common.parser(__doc__, models="qwen-coder", prompts=12, tokens=96)
    parser.add_argument("--mlx-k", type=int, nargs="*", default=[2], help="fixed K of mlx-lm's loop")
    parser.add_argument("--own-k", type=int, nargs="*", default=[], help="fixed K of this project's loop")
    parser.add_argument("--vocab", type=int, default=None, help="lowest ids the draft's head keeps; default: the pair's own")
    parser.add_argument("--drafters", nargs="+", default=["generic", "hybrid"], choices=["generic", "hybrid"], help="with K = auto")
    args = parser.parse_args(argv)

    pair = load_pair(args.models)
    options = DrafterOptions(vocab=args.vocab)
    generic = resolve_drafter(pair, "generic", options)
    measured = calibrate(pair, generic)
    costs = measured.costs
    print(f"c {costs.c:.3f}  v {' '.join(f'{v:.2f}' for v in costs.v)}  spread {measured.spread:.2f}", flush=True)
    contenders: dict[str, dict[str, Any]] = {"plain": {"drafter": None}}
    contenders |= {f"auto {d}": {"drafter": resolve_drafter(pair, d, options), "k": "auto", "costs": costs} for d in args.drafters}
    contenders |= {f"own k={k}": {"drafter": generic, "k": k} for k in args.own_k}
    contenders |= {f"mlx-lm k={k}": {"drafter": generic, "k": k, "loop": "mlx-lm"} for k in args.mlx_k}

    results: dict[str, list[Generation]] = {name: [] for name in contenders}
    samples, names = common.samples(args), list(contenders)
    for name in names:
        generate(pair, samples[0].prompt, max_tokens=8, **contenders[name])  # warm-up
    start = time.perf_counter()
    for i, sample in enumerate(samples):
        for name in common.turns(names, i):
            results[name].append(generate(pair, sample.prompt, max_tokens=args.tokens, **contenders[name]))
        equal = all(r[-1].tokens == results["plain"][-1].tokens for r in results.values())
        walls = "  ".join(f"{n} {r[-1].wall_s:.1f}s" for n, r in results.items())
        print(f"{sample.id}: {walls}  equal={equal}  [{time.perf_counter() - start:.0f} s]", flush=True)

    plain = [g.wall_s for g in results["plain"]]
    for name, runs in results.items():
        wall = [g.wall_s for g in runs]
        line = [f"{name:13} {sum(g.emitted for g in runs) / sum(wall):6.2f} tok/s"]
        for other in dict.fromkeys(("plain", *[n for n in names if n.startswith("mlx-lm")])):
            speedup = stats.ratio([g.wall_s for g in results[other]], wall)
            if other != name and speedup is not None:
                line.append(f"vs {other}: {common.text(speedup)}")
        if name != "plain" and not name.startswith("mlx-lm"):
            expected = sum(predicted_wall_s(g, p, measured) for g, p in zip(runs, results["plain"], strict=True))
            line.append(f"tau {sum(g.emitted for g in runs) / sum(g.rounds for g in runs):.2f}")
            line.append(f"rate {sum(g.accepted for g in runs) / max(sum(g.drafted for g in runs), 1):.3f}")
            if "hybrid" not in name:  # its lookups cost no draft step
                line.append(f"loop efficiency {expected / sum(wall):.3f}")
        print("  ".join(line))
    print(f"plain total {sum(plain):.0f} s over {len(samples)} prompts")
    raw = {name: [{key: getattr(g, key) for key in RAW} for g in runs] for name, runs in results.items()}
    common.write(args.out, {"calibration": measured.to_dict(), "runs": raw})


if __name__ == "__main__":
    main()
