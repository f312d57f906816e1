"""Build a small draft from its target: collect -> train -> ship. Every stage resumes where it was stopped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.adapt.training.synth import SOURCE, synthesise
from harness.adapt.training_config import SynthConfig
from harness.answers import torch_llama
from harness.answers.collect import Stored, collect, read_answers
from harness.answers.rollout import Decoder
from harness.answers.torch_batch import TorchTarget
from harness.answers.torch_llama import Shape
from harness.core.errors import HarnessError
from harness.core.files import parse_json, read_json, read_text, typed, write_atomic
from harness.core.progress import NowAndThen, note
from harness.core.records import Sample, Trajectory
from harness.datasets.jsonl_file import read_jsonl
from harness.decode.replay import replay_model
from harness.distill import fit, lessons
from harness.distill.card import DataFacts, HeldOut, LossRow, card, score_rows
from harness.distill.cut_weights import mlx_weights, read_start
from harness.distill.distill_config import CutConfig, DistillConfig
from harness.distill.prompts import evaluation_samples, held_out_samples, repeated_samples, split_by_temperature, training_samples
from harness.models.blas import mx
from harness.models.cut import load_cut, save_cut
from harness.models.pair import Pair

_ANEW = "Delete it and run the stage that makes it again."
STAGES = ("collect", "train", "ship")
CHUNKS = 4
"""Batches of prompts collected per step: greedy ones first, then the sampled ones."""

"""Called with a line of progress, often enough to pause a run in it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all stages share."""

    config: DistillConfig
    pair: Pair
    folder: Path
    """Folder of the target's weights."""
    work: Path
    """Rollouts, checkpoints and the loss log."""
    out: Path
    """Where the finished draft goes."""
    command: str
    """How to repeat the run, for the card."""
    numbers: Callable[[Mapping[str, float]], None] | None = None
    """Told the numbers of every update that is noted."""

    @property
    def rollouts(self) -> Path:
        """Shards of training trajectories."""
        return self.work / "rollouts"

    @property
    def fitted(self) -> Path:
        """Checkpoint, loss log and vocabulary."""
        return self.work / "fit"


def distill(job: Job, stages: Sequence[str] = STAGES) -> list[HeldOut]:
    """Run the stages in order; return the scores of the shipped draft on held-out prompts (empty without the last stage).

    Raises:
        HarnessError: unknown stage, nothing collected yet, or a target that cannot be cut.
    """
    unknown = set(stages) - set(STAGES)
    if unknown:
        raise HarnessError(f"no stage {sorted(unknown)[0]!r}", f"Choose among {', '.join(STAGES)}.")
    if "train" in stages or "ship" in stages:  # a target that cannot be cut is refused before hours of answers
        _check_cut(torch_llama.shape_of(job.folder, ("llama",)), job.config.cut)
    if "collect" in stages:
        collect_rollouts(job)
    if "train" in stages:
        train(job)
    return ship(job) if "ship" in stages else []


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


def collect_rollouts(job: Job) -> None:
    """Let the target answer all training prompts."""
    config = job.config.rollouts
    decoder = TorchTarget(job.folder, job.pair.eos_token_ids)
    once, again, step = training_samples(config), repeated_samples(config), CHUNKS * config.batch
    once = [*once, *_written(job, once, decoder)]
    chunks = [(once[at : at + step], config.sampled_share) for at in range(0, len(once), step)]
    chunks += [(again[at : at + step], 1.0) for at in range(0, len(again), step)]
    total, tokens, timer = len(once) + len(again), 0, NowAndThen()
    found = (t for samples, share in chunks for t in _collect(job, samples, share, decoder))
    for prompts, trajectory in enumerate(found, start=1):
        tokens += len(trajectory.tokens)
        if timer.due(always=prompts == total):
            note(f"collected {prompts} of {total} answers, {tokens} tokens")


def _written(job: Job, known: Sequence[Sample], decoder: Decoder) -> list[Sample]:
    """Prompts that the target writes itself, kept in the working folder."""
    config = job.config.rollouts
    found: list[Sample] = []
    for domain, count in config.written.items():
        path = job.work / f"written-{domain}-{count}-{config.seed}.jsonl"
        if not path.is_file():
            note(f"{domain}: the target writes {count} prompts")
            evaluation = evaluation_samples(config, [domain])
            own = [s for s in known if s.domain == domain]
            new = synthesise(
                job.pair, count, domain=domain, config=SynthConfig(), known=own, evaluation=evaluation, seed=config.seed,
                decoder=decoder, rows=config.batch,
            )  # fmt: skip
            job.work.mkdir(parents=True, exist_ok=True)
            write_atomic(path, "".join(json.dumps({"id": s.id, "prompt": s.prompt}) + "\n" for s in new))
        rows = read_jsonl(path, required=("id", "prompt"))
        found += [Sample(id=row["id"], domain=domain, prompt=row["prompt"], source=SOURCE, split="train") for row in rows]
    return found


def _collect(job: Job, samples: list[Sample], sampled_share: float, decoder: Decoder) -> Iterator[Trajectory]:
    config = job.config.rollouts
    greedy, sampled = split_by_temperature(samples, sampled_share)
    for part, temperature in ((greedy, 0.0), (sampled, config.temperature)):
        yield from collect(
            job.pair,
            part,
            max_tokens=config.max_tokens,
            temperature=temperature,
            batch=config.batch,
            top_k=config.top_k,
            out=job.rollouts,
            seed=config.seed,
            decoder=decoder,
        )


def train(job: Job) -> None:
    """Fit the cut on everything collected."""

    stored = list(read_answers(job.rollouts, job.pair.target_hash))
    shape, target = torch_llama.load_llama(job.folder)
    start_from = job.config.fit.start_from
    earlier: dict[str, Any] | None = None
    if start_from:
        earlier, ids, start = read_start(start_from, job.config.cut.layers)
    else:
        ids = lessons.choose_vocab((s.rollout for s in stored), job.config.cut.vocab, len(target["embed"]), job.pair.eos_token_ids)
    vocab = lessons.vocabulary(ids, len(target["embed"]), context_tokens=job.config.cut.context_tokens)
    shape, weights = fit.initial_weights(shape, target, job.config.cut, ids)
    if start_from:
        weights = start
    examples = lessons.prepare(stored)
    fit.check_checkpoint(job.fitted, shape, weights, examples, vocab, job.config.fit)  # before what belongs to it is replaced
    job.fitted.mkdir(parents=True, exist_ok=True)
    np.save(job.fitted / "vocab.npy", ids)
    outputs = _outputs_by_domain(stored)
    facts = {"prompts": Counter(s.domain for s in stored), "outputs": outputs, "earlier": earlier}
    (job.fitted / "data.json").write_text(json.dumps(facts))
    note(f"training on {len(stored)} trajectories, {sum(outputs.values())} output tokens")
    fit.fit(shape, weights, target["embed"], examples, vocab, job.config.fit, job.fitted, lambda row: _note_row(job, row))


def _note_row(job: Job, row: dict[str, float]) -> None:
    if job.numbers is not None:
        job.numbers(row)
    note(f"step {row['step']} of {row['steps']}: loss {row['loss']:.3f}, match {row['match']:.3f}, {row['tokens_per_s']:.0f} tokens/s")


def _outputs_by_domain(stored: Sequence[Stored]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for s in stored:
        counts[s.domain] += len(s.rollout.tokens)
    return dict(counts)


def ship(job: Job) -> list[HeldOut]:
    """Quantise the trained cut into ``job.out``, replay it on held-out prompts and write its card."""

    if not (job.fitted / "checkpoint.safetensors").is_file():
        raise HarnessError(f"no trained draft in {job.fitted}", "Run the train stage first.")
    shape, target = torch_llama.load_llama(job.folder)
    vocab = fit.read_vocab_ids(job.fitted / "vocab.npy", len(target["embed"]))
    shape, weights = fit.initial_weights(shape, target, job.config.cut, vocab)
    step = fit.load_weights(job.fitted, weights)
    cut = job.config.cut
    digest = save_cut(
        job.out,
        mlx_weights(shape, weights),
        mx.array(vocab),
        name=job.config.name,
        target_hash=job.pair.target_hash,
        quantise=dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (cut.attention_bits, cut.group_size))
        | dict.fromkeys(("gate_proj", "up_proj", "down_proj"), (cut.mlp_bits, cut.mlp_group_size))
        | {"lm_head": (cut.head_bits, cut.group_size)},
        about={"base": job.config.pair, "steps": step, "context_tokens": cut.context_tokens},
    )
    scores = evaluate(job)
    log = job.fitted / fit.LOG
    loss = [typed(LossRow, parse_json(line, f"{log}:{i}"), f"{log}:{i}") for i, line in enumerate(read_text(log).splitlines()[:step], 1)]
    facts = typed(DataFacts, read_json(job.fitted / "data.json"), str(job.fitted / "data.json"))
    text = card(job.config, facts, loss, scores, sha256=digest, command=job.command, target_hash=job.pair.target_hash)
    (job.out / "card.md").write_text(text, encoding="utf-8")
    return scores


def evaluate(job: Job) -> list[HeldOut]:
    """Replay the draft in ``job.out`` on greedy target trajectories of held-out prompts, one score per domain and K."""
    samples = held_out_samples(job.config.rollouts, job.config.fit.eval_prompts)
    decoder = TorchTarget(job.folder, job.pair.eos_token_ids)
    config = job.config.rollouts
    held_out = list(
        collect(
            job.pair,
            samples,
            max_tokens=config.max_tokens,
            batch=config.batch,
            top_k=config.top_k,
            out=job.work / "held_out",
            decoder=decoder,
        )
    )
    draft = load_cut(job.out, job.pair.target)
    return score_rows(replay_model(draft.name, *draft.proposer, held_out, [2, 4]))
