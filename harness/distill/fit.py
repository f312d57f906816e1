"""Training of a draft made from its target, in torch: bfloat16 products where they are fast, float32 weights, loss on output tokens only.

It runs where the weights are, on a GPU or the processor.

The run is a fixed sequence of updates decided by the data and the configuration, so a resumed run repeats nothing and skips nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from harness.adapt.loss_formulas import mixed
from harness.adapt.training import checkpoint as checkpoints
from harness.adapt.training.loop import Training, learning_rate
from harness.answers import torch_llama
from harness.answers.torch_llama import Shape, Weights
from harness.core import files
from harness.core.errors import HarnessError
from harness.core.files import read_text
from harness.distill.distill_config import CutConfig, FitConfig
from harness.distill.lessons import Head, Lesson, Vocabulary, plan_updates
from routing.apart import apart

if TYPE_CHECKING:
    import torch

LOG = "loss.jsonl"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps per weight, beside the step."""

Report = Callable[[dict[str, float]], None]
"""Called with the numbers of a finished update."""


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


class Forward(Protocol):
    """How what is trained runs."""

    @property
    def about(self) -> dict[str, Any]:
        """What decides that beside its weights."""

    @property
    def decay(self) -> float:
        """Weight of each further step's loss, as a share of the one before."""

    def __call__(self, weights: Weights, batch: Sequence[Lesson], head: Head) -> list[tuple[torch.Tensor, Sequence[Lesson]]]:
        """Per step of a draft, the logits (N, V) at all outputs that it predicts, and the lessons cut to these outputs."""


class CutForward:
    """A cut: one step, as every further one is the same.

    Args:
        shape: of the cut.
        embed: the target's embeddings.
    """

    about: dict[str, Any] = {}  # noqa: RUF012
    decay = 1.0

    def __init__(self, shape: Shape, embed: torch.Tensor) -> None:
        self._shape, self._embed = shape, embed

    def __call__(self, weights: Weights, batch: Sequence[Lesson], head: Head) -> list[tuple[torch.Tensor, Sequence[Lesson]]]:
        return [(output_logits(self._shape, weights, self._embed, batch, head), batch)]


def output_logits(shape: Shape, weights: Weights, embed: torch.Tensor, batch: Sequence[Lesson], head: Head) -> torch.Tensor:
    """Draft logits (N, V_draft + e) at every output position of ``batch``, example after example.

    Rows are padded on the right, where padding never reaches earlier positions. Behind the last attention only output positions go on.
    """
    import torch

    tokens = padded(batch)
    width = tokens.shape[1]
    where = torch.cat([torch.arange(e.prompt - 1, len(e.tokens) - 1) + row * width for row, e in enumerate(batch)])
    where = where.to(embed.device)
    h = embed[tokens.to(embed.device)]
    rope = torch_llama.rope_tables(shape, torch.arange(width, device=embed.device)[None], h.dtype)
    for i in range(shape.layers):
        h = torch_llama.block(shape, weights, i, h, rope, rows=where if i == shape.layers - 1 else None)
    return named_logits(torch_llama.norm(shape, h, weights["norm"]), weights, embed, head)


def named_logits(h: torch.Tensor, weights: Weights, embed: torch.Tensor, head: Head) -> torch.Tensor:
    """Logits (N, V_draft + e) of normed states (N, hidden): the trained head's ids, then those of the context."""
    import torch
    import torch.nn.functional as fn

    logits = fn.linear(h, weights["head"])
    return torch.cat([logits, fn.linear(h, embed[torch.from_numpy(head.extra).to(embed.device)])], dim=1) if len(head.extra) else logits


def padded(batch: Sequence[Lesson]) -> torch.Tensor:
    """Tokens (B, L) of a batch but for each one's last, zeros behind."""
    import torch

    tokens = torch.zeros(len(batch), max(len(e.tokens) for e in batch) - 1, dtype=torch.long)
    for row, e in enumerate(batch):
        tokens[row, : len(e.tokens) - 1] = torch.from_numpy(e.tokens[:-1]).long()
    return tokens


def batch_loss(logits: torch.Tensor, batch: Sequence[Lesson], head: Head, kl_weight: float) -> torch.Tensor:
    """Mean over output positions of cross-entropy on the target's token mixed with the KL of its top-k, rescaled over what can be said.

    Positions whose target token the draft cannot produce count in neither.
    """
    import torch

    labels = torch.from_numpy(head.index[np.concatenate([e.labels for e in batch])]).long()
    top = torch.from_numpy(head.index[np.concatenate([e.top for e in batch])]).long()
    top_p = torch.from_numpy(np.concatenate([e.top_p for e in batch])) * (top >= 0)
    top_p = top_p / top_p.sum(dim=1, keepdim=True).clamp(min=1e-9)
    labels, top, top_p = (part.to(logits.device) for part in (labels, top, top_p))
    known = labels >= 0
    named = torch.log_softmax(logits.float(), dim=-1).gather(1, torch.cat([labels[:, None], top], dim=1).clamp(min=0))
    loss = mixed(torch, named, top >= 0, top_p, {"ce": 1 - kl_weight, "forward_kl": kl_weight})
    return loss[known].sum() / known.sum().clamp(min=1)


@apart
def fit(
    shape: Shape,
    weights: Weights,
    embed: torch.Tensor,
    examples: Sequence[Lesson],
    vocab: Vocabulary,
    config: FitConfig,
    folder: Path,
    report: Report | None = None,
    forward: Forward | None = None,
) -> Weights:
    """Train ``weights`` in place and return them; resumes from the checkpoint in ``folder`` when there is one.

    ``folder/loss.jsonl`` gets one line per update. A checkpoint of another run (data or settings differ) is refused. ``forward`` is
    how the weights run, as a cut of that ``shape`` where it is None.
    """
    run = _Fit(shape, weights, embed, examples, vocab, config, folder, report, forward or CutForward(shape, embed))
    run.step = _resume(folder, run.fingerprint, run.names, weights, run.optimizer)
    run.loop()
    return {name: weights[name].detach() for name in run.names}


class _Fit(Training):
    """State of one run."""

    def __init__(
        self,
        shape: Shape,
        weights: Weights,
        embed: torch.Tensor,
        examples: Sequence[Lesson],
        vocab: Vocabulary,
        config: FitConfig,
        folder: Path,
        report: Report | None,
        forward: Forward,
    ) -> None:
        import torch

        super().__init__()
        self.shape, self.weights, self.embed, self.examples, self.vocab = shape, weights, embed, examples, vocab
        self.config, self.folder, self.report, self.forward = config, folder, report, forward
        self.updates = plan_updates(examples, config)
        self.total, self.save_every, self.judge_every = len(self.updates), config.checkpoint_steps, len(self.updates)
        self.fingerprint = _fingerprint(shape, weights, examples, vocab, config, forward)
        self.names = sorted(weights)
        self.parameters = [weights[name].requires_grad_() for name in self.names]
        decayed, plain = [p for p in self.parameters if p.ndim > 1], [p for p in self.parameters if p.ndim == 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
        self.row: dict[str, float] = {}

    def update(self) -> float:
        """Do one update, add its line to the log and return its loss."""
        import torch

        began = time.perf_counter()
        batch = [self.examples[i] for i in self.updates[self.step]]
        head = self.vocab.head(batch)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.total)
        with torch.autocast(self.embed.device.type, dtype=torch.bfloat16, enabled=torch_llama.fast_dtype() == torch.bfloat16):
            steps = self.forward(self.weights, batch, head)
            shares = [self.forward.decay**i for i in range(len(steps))]
            losses = [share * batch_loss(*step, head, self.config.kl_weight) for share, step in zip(shares, steps, strict=True)]
            loss = torch.stack(losses).sum() / sum(shares)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        tokens = sum(len(e.tokens) for e in batch)
        matches = [_match(logits, part, head) for logits, part in steps]
        self.row = {
            "step": self.step + 1,
            "steps": self.total,
            "loss": round(loss.item(), 4),
            "match": matches[0],
            **{f"match_{i}": match for i, match in enumerate(matches[1:], 2)},
            "tokens": tokens,
            "outputs": sum(len(e.labels) for e in batch),
            "tokens_per_s": round(tokens / (time.perf_counter() - began), 1),
        }
        with open(self.folder / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(self.row) + "\n")
        return float(loss.item())

    def save(self) -> None:
        """Replace the checkpoint."""
        from safetensors.torch import save

        state: Weights = {}
        for name in self.names:
            moments = self.optimizer.state[self.weights[name]]
            state[f"weights/{name}"] = self.weights[name].detach()
            state |= {f"optimiser/{moment}.{name}": moments[moment] for moment in MOMENTS}
        about = checkpoints.metadata(checkpoints.State(self.fingerprint, self.step))
        files.write_atomic(self.folder / checkpoints.FILE, save(state, about))

    def done(self, loss: float) -> None:
        """Pass the numbers of the update on."""
        if self.report:
            self.report(self.row)


def _match(logits: torch.Tensor, batch: Sequence[Lesson], head: Head) -> float:
    """Share of the outputs at which the favourite is the target's."""
    labels = head.index[np.concatenate([e.labels for e in batch])]
    return round(float((logits.argmax(dim=1).cpu().numpy() == labels).mean()), 4)


@apart
def check_checkpoint(
    folder: Path, shape: Shape, weights: Weights, examples: Sequence[Lesson], vocab: Vocabulary, config: FitConfig, forward: Forward
) -> None:
    """Refuse a checkpoint in ``folder`` that :func:`fit` with these arguments would not go on from.

    Raises:
        HarnessError: it belongs to a run with another start, other data, another vocabulary or other settings.
    """
    if (folder / checkpoints.FILE).is_file():
        checkpoints.read_state(folder, _fingerprint(shape, weights, examples, vocab, config, forward))


def _fingerprint(shape: Shape, weights: Weights, examples: Sequence[Lesson], vocab: Vocabulary, config: FitConfig, forward: Forward) -> str:
    """Hash of what decides a run: the weights it starts from, which the cut and the target decide, its data, vocabulary and settings."""
    start, data = hashlib.sha256(), hashlib.sha256()
    for name in sorted(weights):
        start.update(name.encode() + weights[name].detach().cpu().numpy().tobytes())
    for e in examples:
        data.update(b"".join(part.tobytes() for part in (np.array([len(e.tokens), e.prompt]), e.tokens, e.labels, e.top, e.top_p)))
    facts = {
        "config": config.model_dump(),
        "layers": shape.layers,
        "context_tokens": vocab.context_tokens,
        "vocabulary": hashlib.sha256(vocab.index.tobytes()).hexdigest(),
        "start": start.hexdigest(),
        "data": data.hexdigest(),
        **forward.about,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@apart
def load_weights(folder: Path, weights: Weights) -> int:
    """Copy the checkpoint in ``folder`` into ``weights``; return how many updates it has seen."""
    state = checkpoints.read_state(folder, None)
    assert state is not None
    with _tensors(folder) as read:
        for name, weight in weights.items():
            weight.copy_(read(f"weights/{name}"))
    return state.step


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
def _tensors(folder: Path) -> Iterator[Callable[[str], torch.Tensor]]:
    """Reads tensors of the checkpoint in ``folder`` by name; whatever fails meanwhile is one sentence."""
    from safetensors import safe_open

    path = folder / checkpoints.FILE
    with files.reading(path, advice=checkpoints.ADVICE), safe_open(path, framework="pt") as file:
        yield file.get_tensor


def _resume(folder: Path, fingerprint: str, names: list[str], weights: Weights, optimizer: torch.optim.Optimizer) -> int:
    """Load the checkpoint into ``weights`` and ``optimizer``; return the number of finished updates and cut the log to them."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    log, state = folder / LOG, checkpoints.read_state(folder, fingerprint)
    if state is None:
        log.write_text("")
        return 0
    with _tensors(folder) as read, torch.no_grad():
        for name in names:
            weight = weights[name]
            weight.copy_(read(f"weights/{name}"))
            moments = {moment: read(f"optimiser/{moment}.{name}").to(weight.device) for moment in MOMENTS}
            optimizer.state[weight] = {"step": torch.tensor(float(state.step), device=weight.device), **moments}
    lines = read_text(log).splitlines(keepends=True)
    files.write_atomic(log, "".join(lines[: state.step]))
    return state.step
