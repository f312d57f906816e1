"""Build a small draft from its target: collect -> train -> ship. Every stage resumes where it was stopped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from harness.adapt.training import checkpoint as checkpoints
from harness.adapt.training.synth import SOURCE, synthesise
from harness.adapt.training_config import SynthConfig
from harness.answers.collect import Stored, collect, gather, planned, read_answers
from harness.answers.rollout import Decoder
from harness.answers.torch_batch import TorchTarget
from harness.core.errors import HarnessError
from harness.core.files import parse_json, read_json, read_text, typed, write_atomic
from harness.core.progress import NowAndThen, note
from harness.core.records import Sample, Trajectory
from harness.datasets.jsonl_file import read_jsonl
from harness.distill import fit, lessons
from harness.distill.card import DataFacts, HeldOut, LossRow, card, score_rows
from harness.distill.distillation import Distillation
from harness.distill.forms import form_of
from harness.distill.prompts import evaluation_samples, held_out_samples, repeated_samples, split_by_temperature, training_samples
from harness.models.pair import vocab_size

STAGES = ("collect", "train", "ship")
CHUNKS = 4
"""Batches of prompts collected per step: greedy ones first, then the sampled ones."""


def distill(job: Distillation, stages: Sequence[str] = STAGES) -> list[HeldOut]:
    """Run the stages in order; return the scores of the shipped draft on held-out prompts (empty without the last stage).

    Raises:
        HarnessError: unknown stage, nothing collected yet, or a target from which no such draft can be made.
    """
    unknown = set(stages) - set(STAGES)
    if unknown:
        raise HarnessError(f"no stage {sorted(unknown)[0]!r}", f"Choose among {', '.join(STAGES)}.")
    if "train" in stages or "ship" in stages:  # what cannot be made is refused before hours of answers
        form_of(job).check()
    if "collect" in stages:
        collect_rollouts(job)
    if "train" in stages:
        train(job)
    return ship(job) if "ship" in stages else []


def collect_rollouts(job: Distillation) -> None:
    """Let the target answer all training prompts."""
    config = job.config.rollouts
    decoder = TorchTarget(job.folder, job.pair.eos_token_ids)
    once, again, step = training_samples(config), repeated_samples(config), CHUNKS * config.batch
    once = [*once, *_written(job, once, decoder)]
    chunks = [(once[at : at + step], config.sampled_share) for at in range(0, len(once), step)]
    chunks += [(again[at : at + step], 1.0) for at in range(0, len(again), step)]
    total, tokens, timer = len(once) + len(again), 0, NowAndThen()
    found: Iterator[Trajectory]
    if job.pool is None:
        found = (t for samples, share in chunks for t in _collect(job, samples, share, decoder))
    else:  # all batches at once, so that no worker waits for a chunk to end
        plan = [shard for samples, share in chunks for how in _requests(job, samples, share) for shard in planned(job.pair, **how)]
        found = gather(job.pair, plan, out=job.rollouts, pool=job.pool)
    for prompts, trajectory in enumerate(found, start=1):
        tokens += len(trajectory.tokens)
        if timer.due(always=prompts == total):
            note(f"collected {prompts} of {total} answers, {tokens} tokens")


def _written(job: Distillation, known: Sequence[Sample], decoder: Decoder) -> list[Sample]:
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


def _collect(job: Distillation, samples: list[Sample], sampled_share: float, decoder: Decoder) -> Iterator[Trajectory]:
    for how in _requests(job, samples, sampled_share):
        yield from collect(job.pair, **how, out=job.rollouts, decoder=decoder)


def _requests(job: Distillation, samples: list[Sample], sampled_share: float) -> list[dict[str, Any]]:
    """Arguments of :func:`harness.answers.collect.planned` for the greedy and for the sampled part."""
    config = job.config.rollouts
    shared = {"max_tokens": config.max_tokens, "batch": config.batch, "top_k": config.top_k, "seed": config.seed}
    greedy, sampled = split_by_temperature(samples, sampled_share)
    return [{"samples": part, "temperature": t, **shared} for part, t in ((greedy, 0.0), (sampled, config.temperature))]


def train(job: Distillation) -> None:
    """Fit the draft on everything collected."""
    stored = list(read_answers(job.rollouts, job.pair.target_hash))
    start = form_of(job).start(stored)
    examples, config = lessons.prepare(stored), job.config.fit
    what = (start.shape, start.weights)
    fit.check_checkpoint(job.fitted, *what, examples, start.vocab, config, start.forward)  # before what belongs to it is replaced
    job.fitted.mkdir(parents=True, exist_ok=True)
    np.save(job.fitted / "vocab.npy", start.ids)
    outputs = _outputs_by_domain(stored)
    facts = {"prompts": Counter(s.domain for s in stored), "outputs": outputs, "earlier": start.earlier}
    (job.fitted / "data.json").write_text(json.dumps(facts))
    note(f"training on {len(stored)} trajectories, {sum(outputs.values())} output tokens")
    report = partial(_note_row, job)
    fit.fit(*what, start.embed, examples, start.vocab, config, job.fitted, report, start.forward)


def _note_row(job: Distillation, row: dict[str, float]) -> None:
    if job.numbers is not None:
        job.numbers(row)
    note(f"step {row['step']} of {row['steps']}: loss {row['loss']:.3f}, match {row['match']:.3f}, {row['tokens_per_s']:.0f} tokens/s")


def _outputs_by_domain(stored: Sequence[Stored]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for s in stored:
        counts[s.domain] += len(s.rollout.tokens)
    return dict(counts)


def ship(job: Distillation) -> list[HeldOut]:
    """Quantise the trained draft into ``job.out``, replay it on held-out prompts and write its card."""
    if not (job.fitted / checkpoints.FILE).is_file():
        raise HarnessError(f"no trained draft in {job.fitted}", "Run the train stage first.")
    form = form_of(job)
    ids = fit.read_vocab_ids(job.fitted / "vocab.npy", vocab_size(job.folder))
    start = form.start(None, ids)
    step = fit.load_weights(job.fitted, start.weights)
    digest = form.save(start, step)
    scores = score_draft(job)
    log = job.fitted / fit.LOG
    loss = [typed(LossRow, parse_json(line, f"{log}:{i}"), f"{log}:{i}") for i, line in enumerate(read_text(log).splitlines()[:step], 1)]
    facts = typed(DataFacts, read_json(job.fitted / "data.json"), str(job.fitted / "data.json"))
    text = card(job.config, facts, loss, scores, sha256=digest, command=job.command, target_hash=job.pair.target_hash)
    (job.out / "card.md").write_text(text, encoding="utf-8")
    return scores


def score_draft(job: Distillation) -> list[HeldOut]:
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
    return score_rows(form_of(job).replayed(held_out))
