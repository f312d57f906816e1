"""Does routing pay? Outcomes by replay, then grouped cross-validation of every router beside all baselines, and under domain shift.

    python tests/benchmarks/router_table.py --models smollm2 --prompts 120 --splits test validation --mixed 60 --out router_table.json

Four tables in Markdown: all kinds of router on prompts as they are; the configured router on prompts whose dataset wording was
exchanged; on domains it never saw; on prompts of two domains. Answers of the target are kept in the cache, so a second call is quick.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
from shift import held_out_domains, mix_domains, scramble_templates

from harness.adapt.adapters.adapter_folder import list_adapters
from harness.adapt.adapters.names import installed
from harness.adapt.routers.fitting import RouterData, replay_material
from harness.adapt.routers.judging import compare, report, show
from harness.adapt.routers.routed import RouterConfig, load_router_config
from harness.core.progress import notes_to
from harness.core.records import Sample
from harness.datasets.splits import cluster_labels
from harness.models.pair import load_pair
from routing.routers import grouped_folds

KINDS = ("auto", "logistic", "mlp", "boosting", "knn")
Folds = list[tuple[np.ndarray, np.ndarray]]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = common.parser(__doc__ or "", models="smollm2", prompts=100, tokens=128, domains=list(common.DATASETS))
    parser.add_argument("--splits", nargs="+", default=["test", "validation"], help="--prompts of each, per domain")
    parser.add_argument("--skip-train", type=int, default=0, help="first train prompts per domain to leave out: the adapters know them")
    parser.add_argument("--file", help="JSONL file of prompts instead of the datasets")
    parser.add_argument("-k", type=int, default=4, help="draft length")
    parser.add_argument("--config", default="default", help="router config")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", help="router settings, such as encoder=tfidf")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="routers of the first table")
    parser.add_argument("--adapters", type=Path, help="folder of adapters; default: the installed ones")
    parser.add_argument("--batch", type=int, default=32, help="prompts answered together")
    parser.add_argument(
        "--replay-scrambled", action="store_true", help="answer the exchanged wording too; else its counts are the original's"
    )
    parser.add_argument("--mixed", type=int, default=0, help="prompts of two domains to answer and replay")
    return parser.parse_args(argv)


def read(args: argparse.Namespace) -> list[Sample]:
    """The prompts asked for, train prompts after the first ``--skip-train`` of a domain."""
    if args.file:
        from harness.cli.generate import read_samples

        return [s for split in args.splits for s in read_samples(args.file, split=split, limit=args.prompts, seed=0, offline=True)]
    found: list[Sample] = []
    for split in args.splits:
        skip = args.skip_train if split == "train" else 0
        known = {s.id for s in common.samples(_limited(args, skip), split)} if skip else set()
        found += [s for s in common.samples(_limited(args, args.prompts + skip), split) if s.id not in known]
    return found


def _limited(args: argparse.Namespace, count: int) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), "prompts": count})


def scrambled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """The same tasks in a frame that tells nothing about the dataset."""
    texts = scramble_templates([s.prompt for s in samples], [s.source for s in samples], seed=seed)
    return [dataclasses.replace(s, id=f"{s.id}#scrambled", prompt=text) for s, text in zip(samples, texts, strict=True)]


def mixed(samples: Sequence[Sample], folds: Folds, count: int, seed: int) -> tuple[list[Sample], list[int]]:
    """``count`` prompts of two domains, both tasks from one test fold; and the fold of each."""
    found: list[Sample] = []
    fold_of: list[int] = []
    for f, (_, test) in enumerate(folds):
        own = [samples[i] for i in test]
        share = count // len(folds) + (f < count % len(folds))
        for m in mix_domains([s.prompt for s in own], [s.domain for s in own], share, seed=seed + f):
            found.append(Sample(id=f"mixed/{len(found)}", domain="+".join(m.domains), prompt=m.prompt, source="mixed"))
            fold_of.append(f)
    return found, fold_of


def rows_of(material: RouterData, samples: Sequence[Sample]) -> np.ndarray:
    """Rows of these samples in the table, in their order."""
    at = {sample: i for i, sample in enumerate(material.table.sample_ids)}
    return np.array([at[s.id] for s in samples], dtype=np.int64)


def shifted_folds(base: np.ndarray, folds: Folds, other: np.ndarray, fold_of: Sequence[int]) -> Folds:
    """Train on the base rows of a fold's training part, test on the other rows that belong to the fold."""
    marks = np.asarray(fold_of)
    return [(base[train], other[marks == f]) for f, (train, _) in enumerate(folds) if (marks == f).any()]


def section(title: str, found: dict[str, Any], sections: dict[str, Any]) -> None:
    """Print one table and keep it."""
    sections[title] = found
    print(f"\n## {title}\n\n{show(found, 'github')}", flush=True)


@notes_to(partial(print, flush=True))
def tables(args: argparse.Namespace, samples: Sequence[Sample], config: RouterConfig) -> dict[str, Any]:
    """Replay everything, then print and return the tables."""
    pair = load_pair(args.models)
    folders = list_adapters(args.adapters) if args.adapters else installed(pair.name)
    folds = grouped_folds(np.array(cluster_labels(samples)), config.folds, config.seed)
    fold_of = np.empty(len(samples), dtype=np.int64)
    for f, (_, test) in enumerate(folds):
        fold_of[test] = f
    other = scrambled(samples, config.seed)
    double, double_folds = mixed(samples, folds, args.mixed, config.seed) if args.mixed else ([], [])
    asked = [*samples, *(other if args.replay_scrambled else []), *double]
    how: dict[str, Any] = {"k": args.k, "max_tokens": args.tokens, "batch": args.batch, "memory": config.memory}
    everything = replay_material(pair, asked, folders, calibrated=config.reward == "speedup", **how)
    base = rows_of(everything, samples)
    plain = everything.take(base)
    sections: dict[str, Any] = {}

    def add(title: str, material: RouterData, **options: Any) -> None:
        section(title, report(compare(material, config, **options), config, args.k, material), sections)

    add("Prompts as they are, every kind of router", plain, kinds=args.kinds, folds=folds)
    if args.replay_scrambled:
        add("Exchanged wording, replayed", everything, folds=shifted_folds(base, folds, rows_of(everything, other), fold_of.tolist()))
    else:
        add("Exchanged wording, counts of the original", plain, folds=folds, test_prompts=[s.prompt for s in other])
    add("Domains never seen", plain, folds=held_out_domains(plain.table.domains))
    if double:
        add("Prompts of two domains", everything, folds=shifted_folds(base, folds, rows_of(everything, double), double_folds))
    return {"pair": pair.name, "adapters": everything.adapter_hashes, "config": config.model_dump(mode="json"), "sections": sections}


def main(argv: Sequence[str] | None = None) -> None:
    """Run and write the raw numbers."""
    args = parse(argv)
    config = load_router_config(args.config, args.overrides)
    samples = read(args)
    counts = {d: sum(s.domain == d for s in samples) for d in dict.fromkeys(s.domain for s in samples)}
    print(f"# Routing on {args.models}: {len(samples)} prompts {counts}, answers of at most {args.tokens} tokens, K = {args.k}")
    common.write(args.out, tables(args, samples, config))


if __name__ == "__main__":
    main()
