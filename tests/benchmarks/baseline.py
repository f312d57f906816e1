"""Is the baseline fair? Target-only decoding of this project against ``mlx_lm.stream_generate``, interleaved, same clock.

python tests/benchmarks/baseline.py --models smollm2 --prompts 12 --tokens 48
"""

from __future__ import annotations

import time

import common

from harness.core import stats
from harness.decode.generation import generate
from harness.models.blas import mx
from harness.models.pair import Pair, load_pair


def stream_generate_s(pair: Pair, prompt: list[int], max_tokens: int) -> tuple[float, list[int]]:
    """Wall time and tokens of mlx-lm's own call."""
    from mlx_lm import stream_generate

    start = time.perf_counter()
    tokens = [r.token for r in stream_generate(pair.target, pair.tokenizer, prompt, max_tokens=max_tokens)]
    wall = time.perf_counter() - start
    mx.synchronize()
    return wall, tokens


def main(argv: list[str] | None = None) -> None:
    """Run both on every prompt, taking turns to go first, and print the ratio of total times."""
    args = common.parser(__doc__, models="smollm2", prompts=12, tokens=48, domains=("chat",)).parse_args(argv)
    pair = load_pair(args.models, draft=False)
    ours, theirs, same = [], [], 0
    generate(pair, "Hello", drafter=None, max_tokens=8)
    stream_generate_s(pair, pair.encode("Hello"), 8)
    for i, sample in enumerate(common.samples(args)):
        prompt = pair.encode(sample.prompt)
        if i % 2:
            wall, tokens = stream_generate_s(pair, prompt, args.tokens)
            g = generate(pair, prompt, drafter=None, max_tokens=args.tokens)
        else:
            g = generate(pair, prompt, drafter=None, max_tokens=args.tokens)
            wall, tokens = stream_generate_s(pair, prompt, args.tokens)
        ours.append(g.wall_s)
        theirs.append(wall)
        same += list(g.tokens) == tokens
    print(f"mlx-lm time / our time: {common.text(stats.ratio(theirs, ours))} over {len(ours)} prompts, equal tokens in {same}")
    common.write(args.out, {"mlx_lm_s": theirs, "own_s": ours, "equal": same})


if __name__ == "__main__":
    main()
