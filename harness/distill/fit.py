"""Full fine-tuning of a cut of the target, in torch: bfloat16 products where they are fast, float32 weights, loss on output positions only.

It runs where the weights are, on a GPU or the processor.

The run is a fixed sequence of updates decided by the data and the configuration, so a resumed run repeats nothing and skips nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.adapt.training.examples import invert
from harness.answers import torch_llama
from harness.answers.collect import Stored
from harness.answers.rollout import Rollout
from harness.answers.torch_llama import Shape, Weights
from harness.core import files
from harness.core.errors import HarnessError
from harness.core.files import read_text
from harness.distill.distill_config import CutConfig, FitConfig
from harness.models.tensors import read_header
from routing.apart import apart

if TYPE_CHECKING:
    import torch

Report = Callable[[dict[str, float]], None]
"""Called with the numbers of a finished update."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One trajectory prepared for training; ids are the target's."""

    domain: str
    tokens: np.ndarray
    """(prompt + n,) int32."""
    prompt: int
    """Prompt length; the position before each of the n outputs predicts it."""
    labels: np.ndarray
    """(n,) int32: the target's most likely token."""
    top: np.ndarray
    """(n, k) int32: the target's top-k."""
    top_p: np.ndarray
    """(n, k) float32: their probabilities."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """Which target ids the draft can propose in one batch."""

    index: np.ndarray
    """(target vocab,) int32: output id of each target id, -1 where there is none. The trained head comes first."""
    extra: np.ndarray
    """(e,) int64 target ids beyond the trained head, whose rows are the target's embeddings."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The trained head's target ids, and whether those of the context are proposed beside them."""

    index: np.ndarray
    """(target vocab,) int32: output id of each target id of the trained head, else -1."""
    context_tokens: bool

    def head(self, batch: Sequence[Example]) -> Head:
        """The head for a batch: all its prompts' tokens together, for each of its examples; decoding adds those of the answer."""
        if not self.context_tokens:
            return Head(index=self.index, extra=np.empty(0, dtype=np.int64))
        seen = np.unique(np.concatenate([e.tokens[: e.prompt] for e in batch])).astype(np.int64)
        extra = seen[self.index[seen] < 0]
        index = self.index.copy()
        index[extra] = self.index.max() + 1 + np.arange(len(extra))
        return Head(index=index, extra=extra)


def vocabulary(ids: np.ndarray, target_vocab: int, *, context_tokens: bool) -> Vocabulary:
    """The vocabulary whose trained head names ``ids`` (V_draft,) in this order."""
    index = invert(ids, target_vocab)
    assert index is not None
    return Vocabulary(index=index, context_tokens=context_tokens)


def choose_vocab(rollouts: Iterable[Rollout], size: int, target_vocab: int, always: Iterable[int]) -> np.ndarray:
    """Sorted target ids (size,) int32 that a pruned head keeps: ``always``, then the ids with most probability in the rollouts' top-k.

    Raises:
        HarnessError: the rollouts name fewer distinct ids than ``size``.
    """
    mass = np.zeros(target_vocab)
    for rollout in rollouts:
        np.add.at(mass, rollout.top_tokens.ravel(), np.exp(rollout.top_logprobs.ravel().astype(np.float64)))
    mass[list(always)] = np.inf
    named = int((mass > 0).sum())
    if named < size:
        raise HarnessError(f"the rollouts name only {named} distinct tokens, the head needs {size}", "Collect more, or lower cut.vocab.")
    return np.sort(np.argsort(-mass, kind="stable")[:size]).astype(np.int32)


def prepare(stored: Iterable[Stored]) -> list[Example]:
    """Turn trajectories into training examples."""
    return [
        Example(
            domain=s.domain,
            tokens=np.array([*s.prompt_tokens, *s.rollout.tokens], dtype=np.int32),
            prompt=len(s.prompt_tokens),
            labels=s.rollout.top_tokens[:, 0],
            top=s.rollout.top_tokens,
            top_p=np.exp(s.rollout.top_logprobs.astype(np.float32)),
        )
        for s in stored
    ]


@apart
def initial_weights(shape: Shape, target: Weights, cut: CutConfig, vocab: np.ndarray) -> tuple[Shape, Weights]:
    """Weights of the untrained cut: chosen layers, final norm, and the target's output rows of ``vocab``; embeddings not included."""
    import dataclasses

    import torch

    chosen = [*range(cut.layers - cut.last), *range(shape.layers - cut.last, shape.layers)]
    weights = {"norm": target["norm"].clone(), "head": target["embed"][torch.from_numpy(vocab).long().to(target["embed"].device)].clone()}
    for new, old in enumerate(chosen):
        for name in torch_llama.LAYERS:
            weights[f"layers.{new}.{name}"] = target[f"layers.{old}.{name}"].clone()
    return dataclasses.replace(shape, layers=cut.layers), {k: v.float() for k, v in weights.items()}


def output_logits(shape: Shape, weights: Weights, embed: torch.Tensor, batch: Sequence[Example], head: Head) -> torch.Tensor:
    """Draft logits (N, V_draft + e) at every output position of ``batch``, example after example.

    Rows are padded on the right, where padding never reaches earlier positions. Behind the last attention only output positions go on.
    """
    import torch
    import torch.nn.functional as fn

    width = max(len(e.tokens) for e in batch) - 1
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    for row, e in enumerate(batch):
        tokens[row, : len(e.tokens) - 1] = torch.from_numpy(e.tokens[:-1]).long()
    where = torch.cat([torch.arange(e.prompt - 1, len(e.tokens) - 1) + row * width for row, e in enumerate(batch)])
    where = where.to(embed.device)
    h = embed[tokens.to(embed.device)]
    cos, sin = torch_llama.rope_tables(shape, torch.arange(width, device=embed.device)[None], h.dtype)
    for i in range(shape.layers):
        layer = f"layers.{i}"
        qkv = fn.linear(torch_llama.norm(shape, h, weights[f"{layer}.norm1"]), weights[f"{layer}.qkv"])
        q, k, v = torch_llama.split_heads(shape, qkv, cos, sin)
        a = fn.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).reshape(len(batch), width, -1)
        if i == shape.layers - 1:
            a, h = a.flatten(0, 1)[where], h.flatten(0, 1)[where]
        h = torch_llama.mlp(shape, weights, layer, h + fn.linear(a, weights[f"{layer}.o"]))
    h = torch_llama.norm(shape, h, weights["norm"])
    logits = fn.linear(h, weights["head"])
    return torch.cat([logits, fn.linear(h, embed[torch.from_numpy(head.extra).to(embed.device)])], dim=1) if len(head.extra) else logits


def batch_loss(logits: torch.Tensor, batch: Sequence[Example], head: Head, kl_weight: float) -> torch.Tensor:
    """Mean over output positions of cross-entropy on the target's token mixed with cross-entropy on its top-k (KL up to a constant).

    Positions whose target token the draft cannot produce count in neither.
    """
    import torch

    labels = torch.from_numpy(head.index[np.concatenate([e.labels for e in batch])]).long()
    top = torch.from_numpy(head.index[np.concatenate([e.top for e in batch])]).long()
    top_p = torch.from_numpy(np.concatenate([e.top_p for e in batch])) * (top >= 0)
    top_p = top_p / top_p.sum(dim=1, keepdim=True).clamp(min=1e-9)
    labels, top, top_p = (part.to(logits.device) for part in (labels, top, top_p))
    top, known = top.clamp(min=0), labels >= 0
    logp = torch.log_softmax(logits.float(), dim=-1)
    hard = -logp.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    soft = -(logp.gather(1, top) * top_p).sum(dim=1)
    return ((1 - kl_weight) * hard + kl_weight * soft)[known].sum() / known.sum().clamp(min=1)


def plan_updates(examples: Sequence[Example], config: FitConfig) -> list[list[int]]:
    """Example indices of every update: batches of similar length, at most ``batch_tokens`` with padding, reshuffled each epoch."""
    rng = np.random.default_rng(config.seed)
    updates: list[list[int]] = []
    for _ in range(math.ceil(config.epochs)):
        order = rng.permutation(len(examples))
        batches: list[list[int]] = []
        for start in range(0, len(order), 512):
            part = sorted(order[start : start + 512].tolist(), key=lambda i: len(examples[i].tokens))
            current: list[int] = []
            for i in part:
                if current and (len(current) + 1) * len(examples[i].tokens) > config.batch_tokens:
                    batches.append(current)
                    current = []
                current.append(i)
            batches.append(current)
        rng.shuffle(batches)
        updates += batches
    return updates[: math.ceil(len(updates) * config.epochs / math.ceil(config.epochs))]


def rate_at(step: int, steps: int, config: FitConfig) -> float:
    """Learning rate of update ``step`` (from 0) of ``steps``."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    decay = 0.5 * (1 + math.cos(math.pi * step / steps))
    return config.learning_rate * warm * (config.final_fraction + (1 - config.final_fraction) * decay)


@apart
def fit(
    shape: Shape,
    weights: Weights,
    embed: torch.Tensor,
    examples: Sequence[Example],
    vocab: Vocabulary,
    config: FitConfig,
    folder: Path,
    report: Report | None = None,
) -> Weights:
    """Train ``weights`` in place and return them; resumes from the checkpoint in ``folder`` when there is one.

    ``folder/loss.jsonl`` gets one line per update. A checkpoint of another run (data or settings differ) is refused.
    """
    import torch

    updates = plan_updates(examples, config)
    names = sorted(weights)
    parameters = [weights[name].requires_grad_() for name in names]
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
    key = _run_key(shape, weights, examples, vocab, config)
    start = _resume(folder, key, names, weights, optimizer)
    for step in range(start, len(updates)):
        began = time.perf_counter()
        batch = [examples[i] for i in updates[step]]
        head = vocab.head(batch)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, len(updates), config)
        with torch.autocast(embed.device.type, dtype=torch.bfloat16, enabled=torch_llama.fast_dtype() == torch.bfloat16):
            logits = output_logits(shape, weights, embed, batch, head)
            loss = batch_loss(logits, batch, head, config.kl_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        tokens = sum(len(e.tokens) for e in batch)
        labels = head.index[np.concatenate([e.labels for e in batch])]
        row = {
            "step": step + 1,
            "steps": len(updates),
            "loss": round(loss.item(), 4),
            "match": round(float((logits.argmax(dim=1).cpu().numpy() == labels).mean()), 4),
            "tokens": tokens,
            "outputs": len(labels),
            "tokens_per_s": round(tokens / (time.perf_counter() - began), 1),
        }
        with open(folder / "loss.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if (step + 1) % config.checkpoint_steps == 0 or step + 1 == len(updates):
            _checkpoint(folder, key, step + 1, names, weights, optimizer)
        if report:
            report(row)
    return {name: weights[name].detach() for name in names}


@apart
def check_checkpoint(
    folder: Path, shape: Shape, weights: Weights, examples: Sequence[Example], vocab: Vocabulary, config: FitConfig
) -> None:
    """Refuse a checkpoint in ``folder`` that :func:`fit` with these arguments would not go on from.

    Raises:
        HarnessError: it belongs to a run with another start, other data, another vocabulary or other settings.
    """
    if (folder / "checkpoint.safetensors").is_file():
        with _open_checkpoint(folder) as (_, header):
            _check_key(folder, header, _run_key(shape, weights, examples, vocab, config))


def _run_key(shape: Shape, weights: Weights, examples: Sequence[Example], vocab: Vocabulary, config: FitConfig) -> dict[str, Any]:
    """What decides a run: the weights it starts from, which the cut and the target decide, its data, vocabulary and settings."""
    start, data = hashlib.sha256(), hashlib.sha256()
    for name in sorted(weights):
        start.update(name.encode() + weights[name].detach().cpu().numpy().tobytes())
    for e in examples:
        data.update(b"".join(part.tobytes() for part in (np.array([len(e.tokens), e.prompt]), e.tokens, e.labels, e.top, e.top_p)))
    return {
        "config": config.model_dump(),
        "layers": shape.layers,
        "context_tokens": vocab.context_tokens,
        "vocabulary": hashlib.sha256(vocab.index.tobytes()).hexdigest(),
        "start": start.hexdigest(),
        "data": data.hexdigest(),
    }


@apart
def load_weights(folder: Path, weights: Weights) -> int:
    """Copy the checkpoint in ``folder`` into ``weights``; return how many updates it has seen."""
    with _open_checkpoint(folder) as (file, header):
        for name, weight in weights.items():
            weight.copy_(file.get_tensor(f"w.{name}"))
        return int(header["step"])


def read_vocab_ids(path: Path, size: int) -> np.ndarray:
    """The output ids (vocab,) that :mod:`harness.distill.pipeline` stored, all below ``size``.

    Raises:
        HarnessError: damaged, or not such ids.
    """
    advice = "Run the train stage again."
    files.open_regular(path, advice=advice).close()
    with files.reading(path, advice=advice):
        ids: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids) or not 0 <= ids.min() <= ids.max() < size:
        raise HarnessError(f"{path} is no list of token ids below {size}", advice)
    return np.array(ids)


@contextlib.contextmanager
def _open_checkpoint(folder: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The checkpoint in ``folder`` and its metadata; whatever fails while it is read is one sentence."""
    from safetensors import safe_open

    path, advice = folder / "checkpoint.safetensors", f"Delete {folder} and run the train stage again."
    header = read_header(path, advice=advice).metadata
    with files.reading(path, advice=advice), safe_open(path, framework="pt") as file:
        yield file, header


def _checkpoint(folder: Path, key: dict[str, Any], step: int, names: list[str], weights: Weights, optimizer: torch.optim.Optimizer) -> None:
    from safetensors.torch import save

    state: Weights = {}
    for name in names:
        moments = optimizer.state[weights[name]]
        state |= {f"w.{name}": weights[name].detach(), f"m.{name}": moments["exp_avg"], f"v.{name}": moments["exp_avg_sq"]}
    files.write_atomic(folder / "checkpoint.safetensors", save(state, {"key": json.dumps(key), "step": str(step)}))


def _check_key(folder: Path, header: dict[str, str], key: dict[str, Any]) -> None:
    if json.loads(header["key"]) != json.loads(json.dumps(key)):
        raise HarnessError(
            f"{folder / 'checkpoint.safetensors'} belongs to a run with other data or settings",
            f"Delete {folder} to start over, or undo the change.",
        )


def _resume(folder: Path, key: dict[str, Any], names: list[str], weights: Weights, optimizer: torch.optim.Optimizer) -> int:
    """Load the checkpoint into ``weights`` and ``optimizer``; return the number of finished updates and cut the log to them."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    path, log = folder / "checkpoint.safetensors", folder / "loss.jsonl"
    if not path.is_file():
        log.write_text("")
        return 0
    with _open_checkpoint(folder) as (file, header):
        _check_key(folder, header, key)
        step = int(header["step"])
        with torch.no_grad():
            for name in names:
                weight = weights[name]
                weight.copy_(file.get_tensor(f"w.{name}"))
                optimizer.state[weight] = {
                    "step": torch.tensor(float(step), device=weight.device),
                    "exp_avg": file.get_tensor(f"m.{name}").to(weight.device),
                    "exp_avg_sq": file.get_tensor(f"v.{name}").to(weight.device),
                }
    lines = read_text(log).splitlines(keepends=True)
    files.write_atomic(log, "".join(lines[:step]))
    return step
