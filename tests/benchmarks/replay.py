"""Replay equals decoding: the same counts for every drafter, prompt and K, at what part of the cost.

    python tests/benchmarks/replay.py --models smollm2 --prompts 5 --tokens 64 --drafters generic lookup early_exit --out replay.json

Greedy: every prompt is decoded in every cell and replayed, in turns, so both see the same machine; a case is one (drafter, prompt,
K). A case that differs is explained by the lead of the draft's (or target's) favourite where the two part: a near tie, or a bug.
Sampling: answers are decoded with the rejection rule until ``--rounds`` rounds are seen, and the expected rounds of the same
answers are computed from log p and log q.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import common

from harness.core import stats
from harness.core.records import Generation, Sample, Trajectory
from harness.decode.audit import classify, leading_gap
from harness.decode.drafters import HybridDrafter, LookupDrafter
from harness.decode.forced import forced_passes
from harness.decode.generation import generate
from harness.decode.making import resolve_drafter
from harness.decode.model_drafter import ModelDrafter
from harness.decode.replay import ReplayRow, replay
from harness.decode.sampling import Sampling
from harness.models.pair import load_pair

COUNTS = ("rounds", "drafted", "accepted", "rejected", "emitted", "accept_lengths", "draft_lengths")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One (drafter, prompt, K): what decoding took, and whether replay found the same counts."""

    sample_id: str
    drafter: str
    k: int
    equal: bool
    wall_s: float
    where: Literal["draft", "target"] | None = None
    """Whose favourite differs between block and step kernels, where the counts differ."""
    kind: Literal["tie", "bug"] | None = None
    gap: float | None = None
    """Lead of the favourite there, in nats."""


def compare(pair: Any, t: Trajectory, row: ReplayRow, g: Generation, drafter: Any) -> Case:
    """Compare one replayed row with the decoded answer."""
    case = {"sample_id": t.sample_id, "drafter": row.drafter, "k": row.k, "wall_s": g.wall_s}
    if g.tokens == t.tokens and all(getattr(row, name) == getattr(g, name) for name in COUNTS):
        return Case(equal=True, **case)
    divergence = classify(pair, t.prompt_tokens, t.tokens, g.tokens)
    if divergence is not None:
        return Case(equal=False, where="target", kind=divergence.kind, gap=divergence.gap, **case)
    draft = drafter.draft if isinstance(drafter, HybridDrafter) else drafter
    if isinstance(draft, LookupDrafter):
        return Case(equal=False, where="draft", kind="bug", **case)  # lookup has no kernels that could disagree
    gap, bound = leading_gap(draft.model, [*t.prompt_tokens, *t.tokens[: parting(row, g)]])
    return Case(equal=False, where="draft", kind="tie" if gap <= bound else "bug", gap=gap, **case)


def parting(row: ReplayRow, g: Generation) -> int:
    """Index of the first answer token that one of the two accepted and the other did not."""
    start = 0
    for a, b in zip(row.accept_lengths, g.accept_lengths, strict=False):
        if a != b:
            return start + min(a, b)
        start += a + 1
    return min(start, g.emitted - 1)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of one drafter on one prompt."""

    sample_id: str
    drafter: str
    decode_s: float
    """All K decoded."""
    replay_s: float
    """All K replayed."""


def greedy(pair: Any, samples: list[Sample], drafters: list[str], ks: list[int], tokens: int) -> tuple[list[Case], list[Cost]]:
    """Decode and replay every cell of every prompt, in an order that rotates from prompt to prompt."""
    cases, costs = [], []
    for i, sample in enumerate(samples):
        prompt = pair.encode(sample.prompt)
        t = common.trajectory(sample, prompt, generate(pair, prompt, drafter=None, max_tokens=tokens), tokens)
        for name in common.turns(drafters, i):
            drafter = resolve_drafter(pair, name)
            rows: dict[int, ReplayRow] = {}
            decoded: dict[int, Generation] = {}
            replay_s = 0.0
            for job in common.turns([*ks, "replay"], i):
                if isinstance(job, int):
                    decoded[job] = generate(pair, prompt, drafter=drafter, k=job, max_tokens=tokens)
                else:
                    start = time.perf_counter()
                    rows = {row.k: row for row in replay(pair, [t], [drafter], ks)}
                    replay_s = time.perf_counter() - start
            cases += [compare(pair, t, rows[k], decoded[k], drafter) for k in ks]
            decode_s = sum(g.wall_s for g in decoded.values())
            costs.append(Cost(sample_id=sample.id, drafter=name, decode_s=decode_s, replay_s=replay_s))
        wrong = sum(not c.equal for c in cases)
        print(f"{sample.id}: {len(cases)} cases, {wrong} differ", flush=True)
    return cases, costs


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Counts of the answers to one prompt, decoded under sampling."""

    sample_id: str
    emitted: int
    rounds: int
    expected_rounds: float
    """From log p and log q of the same answers."""
    drafted: int
    expected_drafted: float
    accepted: int
    expected_accepted: float


def sampled(pair: Any, samples: list[Sample], drafter: ModelDrafter, sampling: Sampling, k: int, rounds: int, tokens: int) -> list[Sampled]:
    """Decode answers with the rejection rule, prompt after prompt and seed after seed, until ``rounds`` rounds are seen."""
    answers: dict[str, list[tuple[Trajectory, Generation]]] = {s.id: [] for s in samples}
    settings = {"drafter": drafter, "k": k, "rule": "rejection", "max_tokens": tokens, "temperature": sampling.temperature}
    seen = seed = 0
    while seen < rounds:
        for sample in samples:
            prompt = pair.encode(sample.prompt)
            g = generate(pair, prompt, seed=seed, **settings)
            answers[sample.id].append((common.trajectory(sample, prompt, g, tokens), g))
            seen += g.rounds
        seed += 1
    return [_expected(pair, sample.id, answers[sample.id], drafter, sampling, k) for sample in samples]


def _expected(
    pair: Any, sample_id: str, answers: list[tuple[Trajectory, Generation]], drafter: ModelDrafter, sampling: Sampling, k: int
) -> Sampled:
    """Sum the counts of one prompt's answers and what the dynamic programme expects for them."""
    known = [t for t, _ in answers]
    passes = forced_passes(pair.target, None, known, sampling)
    scored = [replace(t, logprobs=tuple(p.logq.tolist())) for t, p in zip(known, passes, strict=True) if p.logq is not None]
    rows = replay(pair, scored, [drafter], [k], sampling=sampling)
    decoded = [g for _, g in answers]
    return Sampled(
        sample_id=sample_id,
        emitted=sum(g.emitted for g in decoded),
        rounds=sum(g.rounds for g in decoded),
        expected_rounds=sum(r.rounds for r in rows),
        drafted=sum(g.drafted for g in decoded),
        expected_drafted=sum(r.drafted for r in rows),
        accepted=sum(g.accepted for g in decoded),
        expected_accepted=sum(r.accepted for r in rows),
    )


def show_greedy(cases: list[Case], costs: list[Cost]) -> None:
    """Print counts of cases and differences, and the cost of replay per drafter and for all."""
    differ = [c for c in cases if not c.equal]
    ties = sum(c.kind == "tie" for c in differ)
    print(f"greedy: {len(cases)} cases, {len(cases) - len(differ)} equal, {ties} near ties, {len(differ) - ties} bugs")
    for c in differ:
        gap = "" if c.gap is None else f", lead {c.gap:.2e} nats"
        print(f"  {c.sample_id} {c.drafter} K={c.k}: {c.kind} of the {c.where}{gap}")
    for name in [*dict.fromkeys(c.drafter for c in costs), None]:
        own = [c for c in costs if name in (c.drafter, None)]
        prompts = list(dict.fromkeys(c.sample_id for c in own))
        part = [[sum(getattr(c, field) for c in own if c.sample_id == p) for p in prompts] for field in ("replay_s", "decode_s")]
        ratio = stats.ratio(*part)
        print(f"  cost of replay / decoding, {name or 'all drafters'}: {common.text(ratio, 4)} = 1/{1 / ratio.value:.0f}" if ratio else "")


def show_sampled(found: list[Sampled]) -> None:
    """Print decoded and expected tau, and their ratio, which the shared answers make sharp."""
    emitted, rounds, expected = ([getattr(s, name) for s in found] for name in ("emitted", "rounds", "expected_rounds"))
    tau, wanted = stats.ratio(emitted, rounds), sum(emitted) / sum(expected)
    inside = "no interval" if tau is None or tau.low is None else "inside" if tau.low <= wanted <= (tau.high or 0) else "OUTSIDE"
    print(f"sampling: tau over {sum(rounds)} decoded rounds {common.text(tau)}, expected {wanted:.3f}: {inside}")
    print(f"  expected / decoded rounds on the same answers: {common.text(stats.ratio(expected, rounds), 4)}")
    rates = [sum(s.accepted for s in found) / sum(s.drafted for s in found)]
    rates.append(sum(s.expected_accepted for s in found) / sum(s.expected_drafted for s in found))
    print(f"  rate: decoded {rates[0]:.4f}, expected {rates[1]:.4f}")


def main(argv: list[str] | None = None) -> None:
    """Run both parts and print the summary; raw numbers go to ``--out``."""
    parser = common.parser(__doc__, models="smollm2", prompts=5, tokens=64)
    parser.add_argument("--ks", type=int, nargs="+", default=list(range(1, 9)))
    parser.add_argument("--drafters", nargs="+", default=["generic", "lookup", "early_exit"])
    parser.add_argument("--sampled-drafter", default="generic", help="a drafter that is a model")
    parser.add_argument("--sampled-k", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=2000, help="rounds to decode under sampling; 0 leaves that part out")
    args = parser.parse_args(argv)

    pair, samples = load_pair(args.models), common.samples(args)
    for name in [None, *args.drafters]:
        generate(pair, samples[0].prompt, drafter=name, max_tokens=8)  # warm-up
    cases, costs = greedy(pair, samples, args.drafters, args.ks, args.tokens)
    show_greedy(cases, costs)
    found: list[Sampled] = []
    if args.rounds:
        drafter, sampling = resolve_drafter(pair, args.sampled_drafter), Sampling(temperature=args.temperature)
        if not isinstance(drafter, ModelDrafter):
            parser.error(f"--sampled-drafter {args.sampled_drafter} is not a model")
        found = sampled(pair, samples, drafter, sampling, args.sampled_k, args.rounds, args.tokens)
        show_sampled(found)
    common.write(
        args.out, {"cases": [asdict(c) for c in cases], "costs": [asdict(c) for c in costs], "sampled": [asdict(s) for s in found]}
    )


if __name__ == "__main__":
    main()
