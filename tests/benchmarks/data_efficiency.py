"""Acceptance of drafts against the answers they learned from: a cut, a head, parallel masks and a memory, from the same tokens.

    python tests/benchmarks/data_efficiency.py --train answers/train --test answers/test --tokens 50000 100000 --work work/

Both folders come from ``harness collect``: ``--train`` of training prompts, ``--test`` of held-out ones. Whole shards are taken in the
order of their names until a size is reached, the same ones for every kind. A cut starts from the target's layers, a head from random
blocks, masks stand behind the pair's draft as it is. Everything is replayed greedily at K = 2 and 4; hours on a CPU, and it goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tabulate import tabulate

from harness.adapt.memory_sources import answers_in_folder
from harness.adapt.training.examples import from_stored
from harness.adapt.training.parallel_training import train_parallel
from harness.adapt.training_config import load_training_config
from harness.answers.collect import read_answers, shard_names
from harness.core.progress import notes_to
from harness.core.records import Trajectory
from harness.decode.making import memory_drafter
from harness.decode.memory import write_memory
from harness.decode.parallel_drafter import parallel_drafter
from harness.decode.replay import ReplayRow, replay
from harness.distill import fit
from harness.distill.distill_config import load_distill_config
from harness.distill.distillation import Distillation
from harness.distill.forms import JUDGED, form_of
from harness.distill.pipeline import train
from harness.models.pair import load_pair, vocab_size
from harness.models.weights import pull_pair

Rows = Sequence[ReplayRow]


def taken(source: Path, folder: Path, size: int, target_hash: str) -> int:
    """Copy shards to ``folder`` until they hold ``size`` answer tokens; return how many they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in shard_names(source):
        if shard_names(folder) and sum(len(s.rollout.tokens) for s in read_answers(folder, target_hash)) >= size:
            break
        for suffix in ("safetensors", "jsonl"):  # a shard is there once its jsonl is
            shutil.copy(source / f"{name}.{suffix}", folder)
    return sum(len(s.rollout.tokens) for s in read_answers(folder, target_hash))


def of_memory(args: argparse.Namespace, pair: Any, work: Path, test: Sequence[Trajectory]) -> Rows:
    """Counts of what followed."""
    with tempfile.TemporaryDirectory() as folder:
        memory = write_memory(Path(folder) / "memory", pair.name, pair.target_hash, answers_in_folder(work / "rollouts", pair))
        return replay(pair, test, [memory_drafter(memory.walker)], JUDGED)


def of_parallel(args: argparse.Namespace, pair: Any, work: Path, test: Sequence[Trajectory]) -> Rows:
    """Masks behind the pair's draft; the best by the held-out answers, so a little flattered."""
    config = load_training_config("parallel", args.set_parallel)
    examples = [from_stored(stored) for stored in read_answers(work / "rollouts", pair.target_hash)]
    done = work / "parallel"
    if not (done / "adapters.safetensors").is_file():
        train_parallel(pair.draft, examples, config, validation=test, out=done, resume=True)
    return replay(pair, test, [parallel_drafter(pair.draft, done)], JUDGED)


def distilled(kind: str) -> Callable[[argparse.Namespace, Any, Path, Sequence[Trajectory]], Rows]:
    """A cut or a head, as ``harness distill`` makes them, on shards that are there."""

    def run(args: argparse.Namespace, pair: Any, work: Path, test: Sequence[Trajectory]) -> Rows:
        config = load_distill_config(args.distill, [*args.set_distill, f"kind={kind}"])
        own = work / kind
        if not (own / "rollouts").exists():
            own.mkdir(parents=True, exist_ok=True)
            (own / "rollouts").symlink_to((work / "rollouts").resolve())
        folder = pull_pair(args.models, offline=True)["target"]
        assert folder is not None
        job = Distillation(config=config, pair=pair, folder=folder.path, work=own, out=own / "made", command="")
        train(job)
        form = form_of(job)
        start = form.start(None, fit.read_vocab_ids(job.fitted / "vocab.npy", vocab_size(job.folder)))
        form.save(start, fit.load_weights(job.fitted, start.weights))
        return form.replayed(test)

    return run


KINDS = {"memory": of_memory, "parallel": of_parallel, "head": distilled("head"), "cut": distilled("cut")}


def line(kind: str, tokens: int, rows: Rows) -> list[Any]:
    """Acceptance rate and tokens per target pass at each K, pooled."""
    cells: list[Any] = [kind, tokens]
    for k in JUDGED:
        own = [row for row in rows if row.k == k]
        drafted, rounds = sum(row.drafted for row in own), sum(row.rounds for row in own)
        cells += [sum(row.accepted for row in own) / drafted if drafted else None, sum(row.emitted for row in own) / rounds]
    return cells


@notes_to(partial(print, file=sys.stderr, flush=True))
def main(argv: Sequence[str] | None = None) -> None:
    """Print one table: a line per kind and size, and one for the pair's own draft."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="smollm2")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[50_000, 100_000, 200_000, 500_000])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--distill", default="smollm2-head", help="config of `harness distill` for cut and head")
    parser.add_argument("--set-distill", nargs="*", default=[], metavar="KEY=VALUE", help="settings of cut and head")
    parser.add_argument("--set-parallel", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the masks")
    parser.add_argument("--work", type=Path, required=True, help="what is made, and checkpoints")
    args = parser.parse_args(argv)
    pair = load_pair(args.models, offline=True)
    test = [stored.trajectory() for stored in read_answers(args.test, pair.target_hash)]
    table = [] if pair.draft is None else [line("the pair's draft", 0, replay(pair, test, ["generic"], JUDGED))]
    for size in args.tokens:
        work = args.work / str(size)
        tokens = taken(args.train, work / "rollouts", size, pair.target_hash)
        table += [line(kind, tokens, KINDS[kind](args, pair, work, test)) for kind in args.kinds]
    headers = ["draft", "answer tokens", *(f"{name} at K = {k}" for k in JUDGED for name in ("rate", "tau"))]
    print(tabulate(table, headers, tablefmt="github", floatfmt=".3f"))


if __name__ == "__main__":
    main()
