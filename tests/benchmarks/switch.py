"""Would choosing a draft anew inside an answer pay? Counts by replay, with full information, before any loop is written for it.

    python tests/benchmarks/switch.py --models smollm2 --prompts 40 --tokens 128 -k 4 --adapters DIR --out switch.json

At the start of every block of 16 or 32 tokens it is known how often each draft agreed with the text so far. ``leader`` takes the one that
agreed most, ``hedge`` draws one by Hedge's weights; both begin with the router's choice, by cross-validation. Nothing is charged for
running every draft along the text, so the numbers are an upper bound. Adopted would be what is above the router with its interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
from tabulate import tabulate

from harness.adapt.adapters.adapter_folder import list_adapters
from harness.adapt.adapters.names import installed
from harness.adapt.memory_sources import answers_in_folder
from harness.adapt.routers.arms import GENERIC
from harness.adapt.routers.fitting import RouterData, prompt_groups
from harness.adapt.routers.judging import ROUTER, compare
from harness.adapt.routers.routed import RouterConfig, hash_adapters, load_router_config, outcome_table
from harness.adapt.training.bank import AdapterBank, bank_passes
from harness.answers.collect import collect, read_answers
from harness.core import stats
from harness.core.records import Sample, Trajectory
from harness.decode.replay import replay_row
from harness.decode.simulate import run_lengths, simulate
from harness.models.cache_key import answers_folder
from harness.models.pair import load_pair

HEAD_START = 3.0
"""Agreeing tokens that the router's choice begins with."""
KEPT = 0.5
"""Of what was seen before, this part counts after another block."""
BLOCKS = (16, 32)
RATES = (0.5, 2.0)
"""Hedge's learning rates."""


def switched(match: np.ndarray, first: int, block: int, rate: float | None, rng: np.random.Generator) -> np.ndarray:
    """(n,) the draft in charge of every position.

    Args:
        match: (drafts, n) whether each draft agrees with the answer's token.
        first: the draft that has a head start.
        block: positions between two choices.
        rate: Hedge's learning rate; None follows the leader.
        rng: draws by Hedge's weights.
    """
    drafts, n = match.shape
    gains = np.zeros(drafts)
    gains[first] = HEAD_START
    chosen = np.empty(n, dtype=np.int64)
    for start in range(0, n, block):
        if start == 0 or rate is None:
            choice = int(gains.argmax())
        else:
            weights = np.exp(rate * (gains - gains.max()))
            choice = int(rng.choice(drafts, p=weights / weights.sum()))
        chosen[start : start + block] = choice
        gains = KEPT * gains + match[:, start : start + block].sum(axis=1)
    return chosen


def rounds_of(runs: np.ndarray, chosen: np.ndarray, k: int, max_tokens: int) -> int:
    """Target passes where ``chosen`` (n,) says whose ``runs`` (drafts, n) count at the start of a round."""
    return simulate(lambda i, limit: (limit, min(int(runs[chosen[i], i]), limit)), len(chosen), k, max_tokens).rounds


def policies(
    matches: Sequence[np.ndarray], routed: Sequence[int], names: Sequence[str], k: int, limits: Sequence[int], seed: int = 0
) -> dict[str, list[int]]:
    """Policy -> target passes per answer: every draft, the router, the switches, and the best choice of every answer and of every round.

    Args:
        matches: per answer (drafts, n), whether each draft agrees with the token.
        routed: the draft that the router chose for each.
        names: of the drafts.
        k: draft length.
        limits: longest answer of each.
        seed: of Hedge's draws.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[int]] = {name: [] for name in names}
    for match, first, limit in zip(matches, routed, limits, strict=True):
        runs = np.stack([run_lengths(row) for row in match])

        def add(policy: str, chosen: np.ndarray, runs: np.ndarray = runs, limit: int = limit) -> None:
            found.setdefault(policy, []).append(rounds_of(runs, chosen, k, limit))

        n = match.shape[1]
        for j, name in enumerate(names):
            add(name, np.full(n, j))
        add(ROUTER, np.full(n, first))
        for block in BLOCKS:
            add(f"leader per {block}", switched(match, first, block, None, rng))
            for rate in RATES:
                add(f"hedge {rate:g} per {block}", switched(match, first, block, rate, rng))
        found.setdefault("best of every answer", []).append(min(found[name][-1] for name in names))
        add("best of every round", runs.argmax(axis=0))
    return found


def compared(found: Mapping[str, Sequence[int]], emitted: Sequence[int], names: Sequence[str], k: int) -> list[dict[str, Any]]:
    """One entry per policy: tokens per pass, and by how much it is above the router and the best fixed draft, with intervals."""
    best = min(names, key=lambda name: sum(found[name]))
    return [
        {
            "policy": policy,
            "tau": sum(emitted) / sum(rounds),
            **{
                f"over {name}": stats.difference((emitted, rounds), (emitted, found[other]), most=k)
                for name, other in (("router", ROUTER), ("best fixed", best))
            },
        }
        for policy, rounds in found.items()
    ]


def routed_choices(
    passes: Mapping[str, Sequence[Any]], answers: Sequence[Trajectory], samples: Sequence[Sample], config: RouterConfig, k: int
) -> list[int]:
    """Index of the draft that the router takes for each answer, decided without its fold; in the order of ``passes``."""
    rows = [replay_row(name, t, own, k) for name, found in passes.items() for t, own in zip(answers, found, strict=True)]
    table = outcome_table(rows, samples)
    hashes = dict.fromkeys((name for name in passes if name != GENERIC), "")
    groups = prompt_groups(table, samples)
    evaluation = compare(RouterData(table=table, groups=groups, adapter_hashes=hashes, folders={}, k=k, run_id="switch"), config)
    names = [arm.rpartition("@")[0] for arm in evaluation.arms]
    by_sample = dict(zip(table.sample_ids, evaluation[ROUTER].choices, strict=True))  # type: ignore[arg-type]
    return [list(passes).index(names[by_sample[t.sample_id]]) for t in answers]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, and whether any switch is above the router."""
    parser = common.parser(__doc__ or "", models="smollm2", prompts=40, tokens=128, domains=("code", "math", "chat"))
    parser.add_argument("--adapters", type=Path, help="folder of adapters; default: the installed ones")
    parser.add_argument("--answers", type=Path, help="folder of `harness collect` instead of fresh answers")
    parser.add_argument("-k", type=int, default=4, help="draft length")
    parser.add_argument("--config", default="default", help="router config")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", help="router settings, such as encoder=tfidf")
    args: argparse.Namespace = parser.parse_args(argv)
    pair = load_pair(args.models)
    folders = list_adapters(args.adapters) if args.adapters else installed(pair.name)
    if args.answers:
        answers = [stored.trajectory() for stored in read_answers(args.answers, pair.target_hash)]
        samples = [Sample(id=a.sample_id, domain=a.domain, prompt=a.prompt) for a in answers_in_folder(args.answers, pair)]
    else:
        samples = common.samples(args)
        answers = list(collect(pair, samples, max_tokens=args.tokens, out=answers_folder(pair)))
    bank = AdapterBank(pair.draft, folders)
    passes = {name: found for name, found in bank_passes(bank, answers).items() if name not in bank.ahead}
    names = list(passes)
    routed = routed_choices(passes, answers, samples, load_router_config(args.config, args.overrides), args.k)
    matches = [np.stack([np.asarray(passes[name][i].match) for name in names]) for i in range(len(answers))]
    emitted = [len(t.tokens) for t in answers]
    entries = compared(policies(matches, routed, names, args.k, [t.max_tokens for t in answers]), emitted, names, args.k)
    print(f"{len(answers)} answers, {sum(emitted)} tokens, K = {args.k}, drafts {', '.join(names)}\n")
    lines = [[e["policy"], f"{e['tau']:.3f}", common.text(e["over router"]), common.text(e["over best fixed"])] for e in entries]
    print(tabulate(lines, ["choice", "tau", "over the router", "over the best fixed"], tablefmt="github", disable_numparse=True))
    above = [e["policy"] for e in entries if e["policy"].startswith(("leader", "hedge")) and (e["over router"].low or 0) > 0]
    print(f"\nabove the router beyond the interval: {', '.join(above) or 'no switch'}")
    raw = [{name: vars(value) if isinstance(value, stats.Estimate) else value for name, value in e.items()} for e in entries]
    common.write(args.out, {"adapters": hash_adapters(folders), "entries": raw})


if __name__ == "__main__":
    main()
