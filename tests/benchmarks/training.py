"""Training throughput against mlx-lm's LoRA trainer: same draft, data, batches, layers, rank and optimiser, epoch by epoch in turns.

    python tests/benchmarks/training.py --models qwen-coder --prompts 16 --tokens 128 --layers 8 --rank 8 --epochs 4 --out training.json

Both start from the same weights and see the same batches in the same order; mlx-lm's are padded by its own rule. The first epoch
fills this project's cache of hidden states and mlx-lm's compiled graphs; throughput is that of the later ones. Nothing that this
script switches on by itself changes the mathematics (cross-entropy, float32 hidden states), so the two loss curves must agree; with
``--backend auto`` products may be bfloat16, and the curves differ by its rounding.
"""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np

from harness.adapt.adapters.surface import adapter_weights, attached
from harness.adapt.training.examples import Example, epoch_batches
from harness.adapt.training.judged import Course
from harness.adapt.training.material import as_examples
from harness.adapt.training.torch_step import torch_step
from harness.adapt.training.trainer import _Run
from harness.adapt.training_config import TrainingConfig
from harness.answers.collect import collect
from harness.core import stats
from harness.core.errors import HarnessError
from harness.models.mlx_names import mx, nn, optim
from harness.models.pair import load_pair

PAD_TO = 32
"""mlx-lm pads batches to one more than a multiple of this."""


@dataclass
class Curve:
    """Losses and seconds of one trainer."""

    losses: list[float] = field(default_factory=list)
    """One per update."""
    epoch_s: list[float] = field(default_factory=list)
    """One per epoch."""


def training_config(args: Any) -> TrainingConfig:
    """Plain cross-entropy at a constant rate, as mlx-lm trains."""
    return TrainingConfig().replace(
        lora={"rank": args.rank, "num_layers": args.layers},
        loss={"kind": "ce"},
        optim={
            "batch_size": args.batch,
            "epochs": args.epochs,
            "learning_rate": args.learning_rate,
            "warmup_steps": 0,
            "final_fraction": 1.0,
            "clip_norm": 0.0,
            "max_tokens": args.max_example_tokens,
            "backend": args.backend,
        },
        cache={"dtype": args.dtype},
        adapt={"mine": False},
    )


def padded(group: Sequence[Example]) -> tuple[mx.array, mx.array]:
    """One batch as mlx-lm's iterator yields it: token ids (B, L) and (first answer token, length) per row (B, 2)."""
    longest = max(len(e.tokens) for e in group)
    rows = np.zeros((len(group), 1 + PAD_TO * -(-longest // PAD_TO)), np.int32)
    for row, example in zip(rows, group, strict=True):
        row[: len(example.tokens)] = example.tokens
    return mx.array(rows), mx.array([[e.start, len(e.tokens) - 1] for e in group])


def loss_for(inverse: np.ndarray | None) -> Any:
    """mlx-lm's loss; for a draft with a pruned vocabulary the same over its own ids, leaving out tokens it cannot produce."""
    from mlx_lm.tuner.trainer import default_loss

    if inverse is None:
        return default_loss
    own_ids = mx.array(inverse)

    def loss(model: Any, batch: mx.array, spans: mx.array) -> tuple[mx.array, mx.array]:
        targets = own_ids[batch[:, 1:]]
        steps = mx.arange(1, batch.shape[1])
        mask = (steps >= spans[:, :1]) & (steps <= spans[:, 1:]) & (targets >= 0)
        ce = nn.losses.cross_entropy(model(batch[:, :-1]), mx.maximum(targets, 0)) * mask
        count = mask.sum()  # once: mx.compile fails when an output is also a repeated expression
        return ce.astype(mx.float32).sum() / count, count

    return loss


def own_epoch(run: Any, curve: Curve) -> None:
    """One epoch of this project's trainer, without evaluations and checkpoints."""
    start = time.perf_counter()
    for _ in range(run.per_epoch):
        curve.losses.append(run.update())
        run.step += 1
    curve.epoch_s.append(time.perf_counter() - start)


def race(run: Any, other: Any, examples: Sequence[Example], config: TrainingConfig) -> tuple[Curve, Curve]:
    """Train both, epoch by epoch in turns, the first one changing; returns this project's curve and mlx-lm's.

    mlx-lm trains in one call, so that it compiles once; this project's epochs run inside the iterator that feeds it.
    """
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.trainer import TrainingArgs, train

    own, theirs = Curve(), Curve()
    settings = config.optim

    class Report(TrainingCallback):
        def on_train_loss_report(self, train_info: dict) -> None:
            theirs.losses.append(train_info["train_loss"])
            if len(theirs.losses) % run.per_epoch == 0:
                theirs.epoch_s.append(time.perf_counter() - began[0])

    began = [0.0]

    def batches(**_: Any) -> Iterator[tuple[mx.array, mx.array]]:
        for epoch in range(settings.epochs):
            if epoch % 2 == 0:
                own_epoch(run, own)
            groups = epoch_batches(examples, settings.batch_size, seed=settings.seed, epoch=epoch)
            began[0] = time.perf_counter()
            for group in groups:
                yield padded(group)
            if epoch % 2 and epoch + 1 < settings.epochs:
                own_epoch(run, own)

    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        limits = TrainingArgs(
            batch_size=settings.batch_size,
            iters=run.per_epoch * settings.epochs,
            steps_per_report=1,
            steps_per_save=10**9,
            max_seq_length=settings.max_tokens,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )
        optimiser = optim.AdamW(learning_rate=settings.learning_rate, weight_decay=settings.weight_decay)
        train(other, optimiser, examples, args=limits, loss=loss_for(run.inverse), iterate_batches=batches, training_callback=Report())
    if len(own.epoch_s) < settings.epochs:
        own_epoch(run, own)
    return own, theirs


def measure(draft: Any, examples: list[Example], config: TrainingConfig, folder: Path) -> tuple[Curve, Curve]:
    """Put the same LoRA update on the draft and on a copy of it, and train both."""
    mx.random.seed(config.optim.seed)
    other, in_torch = copy.deepcopy(draft.model), torch_step(draft, config)
    with attached(draft.model, config.lora), attached(other, config.lora):
        course = Course(draft=draft, train=examples, held_out=examples[:1], config=config, domain=None, out=folder)
        run = _Run(course, folder / "hidden", in_torch)
        other.load_weights(list(adapter_weights(draft.model).items()), strict=False)
        return race(run, other, examples, config)


def show(own: Curve, theirs: Curve, examples: Sequence[Example]) -> None:
    """Print both throughputs, their ratio from the second epoch on, and the largest difference of the loss curves."""
    tokens = sum(len(e.tokens) - 1 for e in examples)
    for name, curve in (("this project", own), ("mlx-lm", theirs)):
        later = curve.epoch_s[1:]
        print(
            f"{name:12} epoch 1 {tokens / curve.epoch_s[0]:.0f} tok/s, later {tokens * len(later) / sum(later):.0f} tok/s,"
            f" loss {curve.losses[0]:.4f} -> {curve.losses[-1]:.4f}"
        )
    ratio = stats.ratio(theirs.epoch_s[1:], own.epoch_s[1:])
    print(f"throughput over mlx-lm's from the second epoch on: {common.text(ratio)} over {len(own.epoch_s) - 1} epochs")
    print(f"largest difference of the loss curves: {np.abs(np.array(own.losses) - np.array(theirs.losses)).max():.2e} nats")


def main(argv: list[str] | None = None) -> None:
    """Collect the target's answers, train, print the comparison; raw numbers go to ``--out``."""
    parser = common.parser(__doc__, models="qwen-coder", prompts=16, tokens=128)
    parser.add_argument("--layers", type=int, default=8, help="blocks with an update, counted from the output; -1 is all")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--max-example-tokens", type=int, default=1024, help="longest prompt and answer")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of the cached hidden states")
    parser.add_argument("--backend", choices=["mlx", "auto"], default="mlx", help="of this project's updates")
    parser.add_argument("--answers", type=Path, help="folder that keeps the target's answers for the next call")
    args = parser.parse_args(argv)
    if args.epochs < 2:
        parser.error("--epochs must be 2 or more: the first one is not counted")
    pair = load_pair(args.models)
    if pair.draft is None:
        raise HarnessError(f"pair {pair.name} has no draft to train", "Name a pair with one.")
    config = training_config(args)
    found = collect(pair, common.samples(args, "train"), max_tokens=args.tokens, batch=8, out=args.answers)
    examples, _ = as_examples(pair.draft, list(found), config)
    with tempfile.TemporaryDirectory() as folder:
        own, theirs = measure(pair.draft, examples, config, Path(folder))
    show(own, theirs, examples)
    raw = {"own": own.__dict__, "mlx_lm": theirs.__dict__, "tokens": sum(len(e.tokens) - 1 for e in examples)}
    common.write(args.out, {**raw, "examples": len(examples), "config": config.model_dump()})


if __name__ == "__main__":
    main()
