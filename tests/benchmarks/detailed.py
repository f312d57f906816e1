"""What the detailed mode costs: decoding with per-position records against counts only, interleaved prompt by prompt.

    python tests/benchmarks/detailed.py --models qwen-coder --prompts 6 --tokens 96 --out detailed.json

Each prompt is decoded both ways ``--repeats`` times per drafter, taking turns to go first; the ratio is that of summed wall times,
paired by prompt.
"""

from __future__ import annotations

import common

from harness.core import stats
from harness.decode.generation import generate
from harness.models.pair import load_pair


def main(argv: list[str] | None = None) -> None:
    """Decode both ways and print one ratio per drafter; raw numbers go to ``--out``."""
    parser = common.parser(__doc__, models="smollm2", prompts=6, tokens=96)
    parser.add_argument("--drafters", nargs="+", default=["generic"])
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args(argv)

    pair, samples = load_pair(args.models), common.samples(args)
    walls: dict[str, dict[bool, list[float]]] = {name: {False: [], True: []} for name in args.drafters}
    differ = 0
    for name in args.drafters:
        for detailed in (False, True):
            generate(pair, samples[0].prompt, drafter=name, k=args.k, max_tokens=8, detailed=detailed)  # warm-up
    for i, sample in enumerate(samples):
        for name in common.turns(args.drafters, i):
            total, counts = {False: 0.0, True: 0.0}, set()
            for repeat in range(args.repeats):
                for detailed in common.turns([False, True], i + repeat):
                    g = generate(pair, sample.prompt, drafter=name, k=args.k, max_tokens=args.tokens, detailed=detailed)
                    total[detailed] += g.wall_s
                    counts.add((g.tokens, g.accept_lengths))
            differ += len(counts) != 1
            for detailed, wall in total.items():
                walls[name][detailed].append(wall)
        print(f"{sample.id} done", flush=True)
    for name, found in walls.items():
        print(f"{name}: detailed / counts only {common.text(stats.ratio(found[True], found[False]))} over {len(samples)} prompts")
    print(f"{differ} answers differ between the modes")
    raw = {name: {"counts_s": found[False], "detailed_s": found[True]} for name, found in walls.items()}
    common.write(args.out, {"samples": [s.id for s in samples], "runs": raw})


if __name__ == "__main__":
    main()
