"""Batched target trajectories with top-k log-probabilities, written in shards that survive a kill at any moment.

A shard is a pair of files named after a hash of what went in: ``<hash>.safetensors`` (arrays) is written first, ``<hash>.jsonl``
(ids and tokens, one trajectory a line) last, each under a temporary name and then renamed. A shard exists once its jsonl does, so
an interrupted run loses at most the batch it was working on, and the resumed one gives the same shards as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from typing_extensions import NotRequired, TypedDict

from harness.answers.memory_fit import Fitting
from harness.answers.rollout import Decoder, Rollout
from harness.core.errors import HarnessError
from harness.core.files import parse_json, read_text, reading, this_version, typed, write_atomic
from harness.core.limits import BATCH, COUNT, MAX_TOKENS, TOP_K, check, ended, joined_seed, room
from harness.core.protocols import LoadedPair
from harness.core.records import SCHEMA_VERSION, Finish, Sample, Trajectory
from harness.models.tensors import read_header

_ADVICE = "Delete the shard and collect again, or restore it."


class _Head(TypedDict):
    """Settings that a shard's answers were made with."""

    target: str
    max_tokens: int
    temperature: float
    top_k: int
    seed: int


class _Line(TypedDict):
    """One answer of a shard, its arrays apart."""

    sample_id: str
    domain: str
    finish: Finish
    prompt_tokens: list[int]
    tokens: list[int]
    max_tokens: NotRequired[int]


def collect(
    pair: LoadedPair,
    samples: Sequence[Sample],
    *,
    max_tokens: int = MAX_TOKENS,
    temperature: float = 0.0,
    batch: int = BATCH,
    top_k: int = TOP_K,
    out: Path | None = None,
    seed: int = 0,
    decoder: Decoder | None = None,
    pool: Pool | None = None,
) -> Iterator[Trajectory]:
    """Yield one trajectory per sample, batch by batch, in the order of :func:`plan_batches`.

    Args:
        pair: target, tokenizer and end-of-sequence ids; a draft is not needed.
        samples: prompts; ids must be distinct.
        max_tokens: limit per trajectory; less where the context ends before.
        temperature: 0 is greedy.
        batch: prompts decoded together, fewer where the free memory does not hold their keys and values.
        top_k: log-probabilities kept per position.
        out: folder of shards; finished batches found there are read back instead of decoded. None keeps nothing.
        seed: seed of sampling at temperature > 0.
        decoder: how a batch is decoded; :func:`default_decoder` by default.
        pool: decodes batches elsewhere, in place of ``decoder``.

    Raises:
        HarnessError: repeated sample ids, a bad number, a prompt that does not fit, or shards of another target.
    """
    how: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "batch": batch, "top_k": top_k, "seed": seed}
    yield from gather(pair, planned(pair, samples, **how), out=out, pool=pool or _here(pair, decoder))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Prompts that are decoded together, and how: the arguments of a :class:`harness.answers.rollout.Decoder`."""

    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int
    temperature: float
    top_k: int
    seed: int

    def decoded(self, decoder: Decoder, fitting: Fitting) -> list[Rollout]:
        """One rollout per prompt, part by part where the keys and values of all of them do not fit into the free memory."""
        rows = fitting.rows(max(map(len, self.prompts)) + self.max_tokens)
        found: list[Rollout] = []
        for i, start in enumerate(range(0, len(self.prompts), rows)):
            part, seed = [list(ids) for ids in self.prompts[start : start + rows]], joined_seed(self.seed, i)
            found += decoder(part, max_tokens=self.max_tokens, temperature=self.temperature, top_k=self.top_k, seed=seed)
        return found


class Pool(Protocol):
    """Decodes batches, here or elsewhere."""

    def __call__(self, batches: Sequence[Batch], /) -> Iterator[tuple[int, list[Rollout]]]:
        """The number of every batch and its rollouts, each once, in the order in which they are ready."""
        ...


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A shard to be: its samples, and what decoding them needs."""

    name: str
    samples: tuple[Sample, ...]
    rooms: tuple[int, ...]
    """Longest answer of each."""
    batch: Batch
    settings: Mapping[str, Any]
    """What :class:`_Head` keeps."""


def planned(
    pair: LoadedPair, samples: Sequence[Sample], *, max_tokens: int, temperature: float, batch: int, top_k: int, seed: int
) -> list[Planned]:
    """The shards that :func:`collect` makes of ``samples``, with its arguments and errors."""
    if len({s.id for s in samples}) != len(samples):
        raise HarnessError("two samples share an id", "Give every sample its own id.")
    check(max_tokens=max_tokens, temperature=temperature, seed=seed)
    for name, value in (("batch", batch), ("top_k", top_k)):
        COUNT.check(name, value)
    settings = {"target": pair.target_hash, "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "seed": seed}
    encoded = {s.id: pair.encode(s.asked) for s in samples}
    rooms = {s.id: room(pair.context_tokens, len(encoded[s.id]), max_tokens) for s in samples}
    return [_planned(group, encoded, rooms, settings) for group in plan_batches(samples, encoded, batch)]


def _planned(group: Sequence[Sample], encoded: dict[str, list[int]], rooms: dict[str, int], settings: dict[str, Any]) -> Planned:
    name, own = _batch_hash(group, encoded, rooms, settings), tuple(rooms[s.id] for s in group)
    batch = Batch(
        prompts=tuple(tuple(encoded[s.id]) for s in group),
        max_tokens=max(own),
        temperature=settings["temperature"],
        top_k=settings["top_k"],
        seed=int(name[:8], 16),
    )
    return Planned(name=name, samples=tuple(group), rooms=own, batch=batch, settings=settings)


def gather(pair: LoadedPair, plan: Sequence[Planned], *, out: Path | None, pool: Pool) -> Iterator[Trajectory]:
    """Yield the trajectories of planned shards in their order; those that ``out`` lacks are decoded by ``pool`` and written there."""
    lacking = [i for i, shard in enumerate(plan) if out is None or not (out / f"{shard.name}.jsonl").is_file()]
    coming, made = pool([plan[i].batch for i in lacking]), dict[int, list[Stored]]()
    left = set(lacking)
    for i, shard in enumerate(plan):
        while i in left and i not in made:
            at, rollouts = next(coming, (None, ()))
            if at is None:  # whoever asked for the answers wants no more
                return
            made[lacking[at]] = _finished(pair, plan[lacking[at]], rollouts, out)
        stored = made.pop(i) if i in left else read_shard(out, shard.name) if out else None
        if stored is None:
            raise HarnessError(f"shard {shard.name} was removed while it was read", "Collect again.")
        yield from (one.trajectory() for one in stored)


def _here(pair: LoadedPair, decoder: Decoder | None) -> Pool:
    """Decodes in this process, one batch after the other, when it is asked for the next."""

    def pool(batches: Sequence[Batch]) -> Iterator[tuple[int, list[Rollout]]]:
        if not batches:
            return
        own, fitting = decoder or default_decoder(pair), Fitting(pair.target)
        for number, batch in enumerate(batches):
            yield number, batch.decoded(own, fitting)

    return pool


def _finished(pair: LoadedPair, shard: Planned, rollouts: Sequence[Rollout], out: Path | None) -> list[Stored]:
    """The answers of a shard, written to ``out`` where that is given."""
    stored = []
    for sample, prompt, most, whole in zip(shard.samples, shard.batch.prompts, shard.rooms, rollouts, strict=True):
        rollout = whole.first(most)
        by_model = rollout.tokens[-1] in pair.eos_token_ids
        stored.append(
            Stored(
                sample_id=sample.id,
                domain=sample.domain,
                prompt_tokens=list(prompt),
                finish="eos" if by_model else ended(pair.context_tokens, len(prompt), len(rollout.tokens)),
                rollout=rollout,
                max_tokens=most,
                temperature=shard.batch.temperature,
            )
        )
    if out:
        _write_shard(out, shard.name, stored, shard.settings)
    return stored


def plan_batches(samples: Sequence[Sample], encoded: dict[str, list[int]], batch: int) -> list[list[Sample]]:
    """Group samples into batches of similar prompt length, so that little is padded; the same plan for the same input.

    Samples are sorted within windows of 8 batches, and the batches of one window keep its samples' order in ``samples`` roughly:
    a run that is cut short has seen all domains of the first samples.
    """
    window = 8 * batch
    groups: list[list[Sample]] = []
    for start in range(0, len(samples), window):
        part = sorted(samples[start : start + window], key=lambda s: (len(encoded[s.id]), s.id))
        groups += [part[i : i + batch] for i in range(0, len(part), batch)]
    return groups


def default_decoder(pair: LoadedPair) -> Decoder:
    """mlx-lm's batched generation, which knows every model; on a CPU torch in float32 where it can, about twice as fast.

    Torch cannot take the part of a target that one of several processes has.
    """
    from harness.answers.mlx_batch import BatchedTarget
    from harness.answers.torch_batch import torch_decoder
    from harness.models.shards import is_split

    torch = None if is_split(pair.target) else torch_decoder(pair, "float32")
    return torch or BatchedTarget(pair.target, pair.eos_token_ids)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One trajectory of a shard, arrays kept as arrays: what training reads."""

    sample_id: str
    domain: str
    prompt_tokens: list[int]
    finish: Finish
    rollout: Rollout
    max_tokens: int
    temperature: float

    def trajectory(self) -> Trajectory:
        """The same as a record."""
        return Trajectory(
            sample_id=self.sample_id,
            domain=self.domain,
            prompt_tokens=tuple(self.prompt_tokens),
            tokens=tuple(self.rollout.tokens),
            finish=self.finish,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            logprobs=self.rollout.logprobs,
            top_tokens=self.rollout.top_tokens,
            top_logprobs=self.rollout.top_logprobs.astype(np.float32),
        )


def read_shard(folder: Path, name: str) -> list[Stored] | None:
    """Trajectories of one shard in ``folder``, or None when it was not finished.

    Raises:
        HarnessError: written by a newer version.
    """
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        return None
    arrays = _read_arrays(folder / f"{name}.safetensors")
    head, lines = _read_lines(path)
    stored, start = [], 0
    for line in lines:
        tokens = line.pop("tokens")
        part = {key: array[start : start + len(tokens)] for key, array in arrays.items()}
        start += len(tokens)
        limits = {"max_tokens": head["max_tokens"], "temperature": head["temperature"]}
        stored.append(Stored(rollout=Rollout(tokens=tokens, **part), **{**limits, **line}))
    if any(len(array) != start for array in arrays.values()):
        raise HarnessError(f"{path} has {start} tokens, its arrays another number", _ADVICE)
    return stored


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    ranks = {name: len(shape) for name, shape in read_header(path, advice=_ADVICE).shapes.items()}
    if ranks != {"logprobs": 1, "top_tokens": 2, "top_logprobs": 2}:
        raise HarnessError(f"{path} holds other arrays than answers have", _ADVICE)
    with reading(path, advice=_ADVICE):
        return dict(load_file(path))


def _read_lines(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings and answers of a shard's JSON lines."""
    rows = [parse_json(line, f"{path}:{i}") for i, line in enumerate(read_text(path, most=2**31).splitlines(), 1)]
    head = typed(_Head, this_version(rows[0] if rows else {}, str(path), advice=_ADVICE), str(path), advice=_ADVICE)
    return head, [typed(_Line, row, f"{path}:{i}", advice=_ADVICE) for i, row in enumerate(rows[1:], 2)]


def read_answers(folder: Path, target_hash: str) -> Iterator[Stored]:
    """Yield every trajectory in a folder of :func:`collect`.

    Raises:
        HarnessError: none there, answers of another target, or written by a newer version.
    """
    names = shard_names(folder)
    if not names:
        raise HarnessError(f"no answers in {folder}", "Collect some with `harness collect` or the first stage of `harness distill`.")
    for name in names:
        path = folder / f"{name}.jsonl"
        if _read_lines(path)[0].get("target") != target_hash:
            raise HarnessError(f"{path} holds answers of another target", "Give the folder of answers of this pair's target.")
        yield from read_shard(folder, name) or []


def shard_names(folder: Path) -> list[str]:
    """Names of the finished shards in ``folder``, sorted."""
    return sorted(p.stem for p in folder.glob("*.jsonl"))


def _batch_hash(group: Sequence[Sample], encoded: dict[str, list[int]], rooms: dict[str, int], settings: dict[str, Any]) -> str:
    shorter = {s.id: rooms[s.id] for s in group if rooms[s.id] < settings["max_tokens"]}
    key = [settings, [[s.id, s.domain, encoded[s.id]] for s in group], *([shorter] if shorter else [])]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _write_shard(folder: Path, name: str, stored: Sequence[Stored], settings: Mapping[str, Any]) -> None:
    from safetensors.numpy import save

    arrays = {key: np.concatenate([getattr(s.rollout, key) for s in stored]) for key in ("logprobs", "top_tokens", "top_logprobs")}
    lines = [{"schema_version": SCHEMA_VERSION, **settings}]
    for s in stored:
        line = {"sample_id": s.sample_id, "domain": s.domain, "finish": s.finish, "prompt_tokens": s.prompt_tokens}
        shorter = {"max_tokens": s.max_tokens} if s.max_tokens < settings["max_tokens"] else {}
        lines.append({**line, **shorter, "tokens": s.rollout.tokens})
    write_atomic(folder / f"{name}.safetensors", save(arrays))
    write_atomic(folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
