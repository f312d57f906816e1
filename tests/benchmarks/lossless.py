"""Greedy speculative decoding emits the target's own tokens: every (prompt, K, drafter) against target-only decoding.

    python tests/benchmarks/lossless.py --models smollm2 --prompts 10 --tokens 64 --out lossless.jsonl

Every difference is classified by the lead of the target's favourite where it starts: a near tie of kernels, or a bug. With ``--out``
each finished case is one line, and a second call with the same settings goes on where the first one stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import common

from harness.core import journal
from harness.core.errors import HarnessError
from harness.decode.audit import classify
from harness.decode.generation import generate
from harness.models.pair import load_pair

Case = dict[str, Any]


def finished(out: Path | None, settings: dict[str, Any]) -> list[Case]:
    """Cases of an earlier call; a new file starts with the settings.

    Raises:
        HarnessError: the file belongs to other settings.
    """
    if out is None:
        return []
    journal.repair_tail(out)
    head, *cases = [*journal.read(out)] or [None]
    if head is None:
        journal.append(out, [settings])
    elif head != settings:
        raise HarnessError(f"{out} was made with other settings: {head}", "Repeat those, or name another file.")
    return cases


def run(pair: Any, args: Any, done: list[Case]) -> list[Case]:
    """Decode what is missing and return all cases."""
    cases, known = list(done), {(c["sample_id"], c["drafter"], c["k"]) for c in done}
    for i, sample in enumerate(common.samples(args)):
        cells = [(d, k) for d in common.turns(args.drafters, i) for k in args.ks if (sample.id, d, k) not in known]
        if not cells:
            continue
        prompt = pair.encode(sample.prompt)
        plain = generate(pair, prompt, drafter=None, max_tokens=args.tokens)
        for drafter, k in cells:
            g = generate(pair, prompt, drafter=drafter, k=k, max_tokens=args.tokens)
            found = classify(pair, prompt, plain.tokens, g.tokens)
            case = {"sample_id": sample.id, "drafter": drafter, "k": k, "tokens": plain.emitted, "emitted": g.emitted}
            if found is not None:
                case |= {"position": found.position, "gap": found.gap, "kind": found.kind}
            if args.out is not None:
                journal.append(args.out, [case])
            cases.append(case)
        print(f"{sample.id}: {len(cases)} cases, {sum('kind' in c for c in cases)} differ", flush=True)
    return cases


def main(argv: list[str] | None = None) -> None:
    """Compare every case and print the summary; exits with 1 when a difference is a bug."""
    parser = common.parser(__doc__, models="smollm2", prompts=10, tokens=64, domains=tuple(common.DATASETS))
    parser.add_argument("--ks", type=int, nargs="+", default=list(range(1, 9)))
    parser.add_argument("--drafters", nargs="+", default=["generic", "lookup", "early_exit", "hybrid"])
    args = parser.parse_args(argv)
    pair = load_pair(args.models)
    draft = None if pair.draft is None else pair.draft.hash
    done = finished(args.out, {"target": pair.target_hash, "draft": draft, "max_tokens": args.tokens})
    cases = run(pair, args, done)
    differ = [c for c in cases if "kind" in c]
    bugs = sum(c["kind"] == "bug" for c in differ)
    longer = sum(c["tokens"] != c["emitted"] for c in cases)
    print(f"{len(cases)} cases: {len(cases) - len(differ)} equal, {len(differ) - bugs} near ties, {bugs} bugs; {longer} of other length")
    for c in differ:
        print(f"  {c['sample_id']} {c['drafter']} K={c['k']}: {c['kind']} at token {c['position']}, lead {c['gap']:.2e} nats")
    sys.exit(1 if bugs else 0)


if __name__ == "__main__":
    main()
