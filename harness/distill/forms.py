"""What can be distilled from a target: a cut of its layers, or a head that reads its states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from harness.adapt.training.hidden import PrefixCache
from harness.answers import torch_llama
from harness.answers.collect import Stored
from harness.answers.torch_llama import Shape, Weights
from harness.core.errors import HarnessError
from harness.core.records import Trajectory
from harness.decode.head import HeadDrafter
from harness.decode.replay import ReplayRow, replay, replay_model
from harness.distill import fit, lessons
from harness.distill.cut_weights import mlx_weights, read_start
from harness.distill.distill_config import CutConfig
from harness.distill.distillation import Distillation
from harness.distill.fit import CutForward, Forward
from harness.distill.head_fit import HeadForward, head_weights, initial_head, load_target, places, read_states
from harness.models.blas import mx
from harness.models.cut import load_cut, save_cut
from harness.models.head_config import HeadInfo
from harness.models.reading_head import load_head, save_head

JUDGED = [2, 4]
"""Draft lengths at which a finished draft is replayed."""
BLOCK = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Matrices of a block."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A draft before its training."""

    shape: Shape
    weights: Weights
    embed: Any
    """The target's embeddings, float32 in torch."""
    ids: np.ndarray
    """(vocab,) int32 target ids of its output head."""
    vocab: lessons.Vocabulary
    forward: Forward
    earlier: dict[str, Any] | None = None
    """Configuration of the draft whose weights it goes on from."""


class Form(Protocol):
    """One kind of draft."""

    def check(self) -> None:
        """Refuse what cannot be trained or stored, before hours of answers.

        Raises:
            HarnessError: says what to change.
        """

    def start(self, stored: Sequence[Stored] | None, ids: np.ndarray | None = None) -> Start:
        """The untrained draft; its output ids follow from the answers where they are not given."""

    def save(self, start: Start, step: int) -> str:
        """Quantise and write the weights, which saw ``step`` updates; return their hash."""

    def replayed(self, held_out: Sequence[Trajectory]) -> list[ReplayRow]:
        """Replay what was written."""


def form_of(job: Distillation) -> Form:
    """The kind of draft that a job makes."""
    return HeadForm(job) if job.config.kind == "head" else CutForm(job)


class CutForm:
    """Some of the target's layers and a short output head: a draft of its own."""

    def __init__(self, job: Distillation) -> None:
        self.job = job

    def check(self) -> None:
        _check_cut(torch_llama.shape_of(self.job.folder, ("llama",)), self.job.config.cut)

    def start(self, stored: Sequence[Stored] | None, ids: np.ndarray | None = None) -> Start:
        cut, start_from = self.job.config.cut, self.job.config.fit.start_from
        shape, target = torch_llama.load_llama(self.job.folder)
        earlier, begun = None, None
        if stored is not None and start_from:
            earlier, ids, begun = read_start(start_from, cut.layers)
        if ids is None:
            rollouts = (s.rollout for s in stored or ())
            ids = lessons.choose_vocab(rollouts, cut.vocab, len(target["embed"]), self.job.pair.eos_token_ids)
        shape, weights = fit.initial_weights(shape, target, cut, ids)
        return Start(
            shape=shape,
            weights=begun or weights,
            embed=target["embed"],
            ids=ids,
            vocab=lessons.vocabulary(ids, len(target["embed"]), context_tokens=cut.context_tokens),
            forward=CutForward(shape, target["embed"]),
            earlier=earlier,
        )

    def save(self, start: Start, step: int) -> str:
        job, cut = self.job, self.job.config.cut
        return save_cut(
            job.out,
            mlx_weights(start.shape, start.weights),
            mx.array(start.ids),
            name=job.config.name,
            target_hash=job.pair.target_hash,
            quantise=dict.fromkeys(BLOCK[:4], (cut.attention_bits, cut.group_size))
            | dict.fromkeys(BLOCK[4:], (cut.mlp_bits, cut.mlp_group_size))
            | {"lm_head": (cut.head_bits, cut.group_size)},
            about={"base": job.config.pair, "steps": step, "context_tokens": cut.context_tokens},
        )

    def replayed(self, held_out: Sequence[Trajectory]) -> list[ReplayRow]:
        draft = load_cut(self.job.out, self.job.pair.target)
        return replay_model(draft.name, *draft.proposer, held_out, JUDGED)


class HeadForm:
    """A block or two that read the target's states; of a llama or a qwen2 with tied embeddings."""

    def __init__(self, job: Distillation) -> None:
        self.job = job

    def check(self) -> None:
        if self.job.config.fit.start_from:
            raise HarnessError("a head cannot start from a finished draft", "Leave out fit.start_from.")
        places(torch_llama.shape_of(self.job.folder), self.job.config.head)

    def start(self, stored: Sequence[Stored] | None, ids: np.ndarray | None = None) -> Start:
        head, whole = self.job.config.head, torch_llama.shape_of(self.job.folder)
        (target, embed), taps = load_target(self.job.folder, whole), places(whole, head)
        if ids is None:
            rollouts = (s.rollout for s in stored or ())
            ids = lessons.choose_vocab(rollouts, head.vocab, len(embed), self.job.pair.eos_token_ids, key="head.vocab")
        shape, weights = initial_head(whole, target, head, ids, self.job.config.fit.seed)
        cache = PrefixCache(
            None,
            max(taps),
            folder=self.job.work / "states",
            model_hash=f"{self.job.pair.target_hash}|{taps}|{torch_llama.fast_dtype()}",
            compute=lambda tokens: read_states(whole, target, taps, tokens),
        )
        return Start(
            shape=shape,
            weights=weights,
            embed=embed,
            ids=ids,
            vocab=lessons.vocabulary(ids, len(embed), context_tokens=True),
            forward=HeadForward(shape, embed, cache.states, head),
        )

    def save(self, start: Start, step: int) -> str:
        job, head, shape = self.job, self.job.config.head, start.shape
        info = HeadInfo(
            name=job.config.name, target_hash=job.pair.target_hash, taps=places(torch_llama.shape_of(job.folder), head),
            layers=shape.layers, vocab=len(start.ids), hidden=shape.hidden, heads=shape.heads, kv_heads=shape.kv_heads,
            head_dim=shape.head_dim, intermediate=shape.intermediate, eps=shape.eps, rope_theta=shape.rope_theta,
            quantised=dict.fromkeys((*BLOCK, "fuse", "join", "lm_head"), (head.bits, head.group_size)), sha256="",
            base=job.config.pair, steps=step,
        )  # fmt: skip
        return save_head(job.out, info, head_weights(shape, start.weights), mx.array(start.ids))

    def replayed(self, held_out: Sequence[Trajectory]) -> list[ReplayRow]:
        pair = self.job.pair
        return replay(pair, held_out, [HeadDrafter(load_head(self.job.out, pair.target, pair.target_hash))], JUDGED)


def _check_cut(shape: Shape, cut: CutConfig) -> None:
    """Refuse a cut that does not exist, or that could not be quantised once it is trained."""
    if cut.layers > shape.layers or cut.last > cut.layers:
        raise HarnessError(f"cannot take {cut.layers} layers ({cut.last} from the end) of {shape.layers}", "Lower cut.layers or cut.last.")
    inputs = {"group_size": (shape.hidden, shape.heads * shape.head_dim), "mlp_group_size": (shape.hidden, shape.intermediate)}
    for key, widths in inputs.items():
        size = getattr(cut, key)
        for width in widths:
            if width % size:
                fitting = [str(n) for n in (32, 64, 128) if not any(w % n for w in widths)]
                advice = f"Set it to {' or '.join(fitting)}." if fitting else "This target's layers cannot be stored in 4 or 8 bits."
                raise HarnessError(f"cut.{key} is {size}, which does not divide the target's width of {width}", advice)
