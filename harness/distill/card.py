"""Scores of a finished draft and the card that ships with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import NotRequired, TypedDict

from harness.core.counts import Counts, total
from harness.decode.replay import ReplayRow
from harness.distill.distill_config import DistillConfig
from harness.report.escape import code, markdown
from harness.report.tables import number


class LossRow(TypedDict):
    """One line of ``loss.jsonl``."""

    step: int
    steps: int
    loss: float
    match: float
    tokens: int


class Earlier(TypedDict):
    """The draft that a run started from."""

    sha256: str
    steps: NotRequired[int | None]


class DataFacts(TypedDict):
    """What ``data.json`` says of the answers trained on."""

    prompts: dict[str, int]
    outputs: dict[str, int]
    earlier: Earlier | None


@dataclass(frozen=True, kw_only=True)
class HeldOut(Counts):
    """Pooled replay counts of one domain at one K."""

    domain: str
    """``all`` pools every domain."""
    k: int
    prompts: int


def score_rows(rows: Sequence[ReplayRow]) -> list[HeldOut]:
    """Sum replay rows by domain and K, then over all domains."""
    domains = [*dict.fromkeys(r.domain for r in rows), "all"]
    return [
        HeldOut(domain=domain, k=k, prompts=len(chosen), **dataclasses.asdict(total(chosen)))
        for domain in domains
        for k in sorted({r.k for r in rows if isinstance(r.k, int)})
        if (chosen := [r for r in rows if r.k == k and domain in (r.domain, "all")])
    ]


def card(
    config: DistillConfig,
    facts: dict[str, Any],
    loss: Sequence[dict[str, float]],
    scores: Sequence[HeldOut],
    *,
    sha256: str,
    command: str,
    target_hash: str,
) -> str:
    """The draft's card in Markdown: data, training, loss curve, command, hash, held-out acceptance."""
    fit, rollouts = config.fit, config.rollouts
    tokens = sum(int(row["tokens"]) for row in loss)
    lines = [
        f"# {'Head' if config.kind == 'head' else 'Draft'} of {markdown(config.pair)}",
        "",
        _form(config),
        "",
        f"- target: sha256 {code(target_hash)}, licence as the target's (Apache-2.0 for SmolLM2)",
        f"- {config.kind if config.kind == 'head' else 'draft'}.safetensors: sha256 {code(sha256)}",
        f"- made by: {code(command)}",
        "",
        "## Data",
        f"Answers of the target itself, at most {rollouts.max_tokens} tokens, {rollouts.sampled_share:.0%} of them sampled at temperature "
        f"{rollouts.temperature}, the rest greedy.{_further(config)} "
        "No prompt of a validation or test split, and none that nearly repeats one.",
        "",
        "| domain | prompts | output tokens |",
        "| --- | ---: | ---: |",
        *(f"| {markdown(d)} | {facts['prompts'][d]} | {facts['outputs'][d]} |" for d in sorted(facts["prompts"])),
        "",
        "## Training",
        f"All weights{_unrolled(config)}, AdamW, peak learning rate {fit.learning_rate}, warm-up {fit.warmup_steps} updates, "
        f"{'constant rate' if fit.final_fraction == 1 else f'cosine to {fit.final_fraction} of it'}, {fit.batch_tokens} tokens per update. "
        f"{len(loss)} updates of {loss[-1]['steps'] if loss else 0} planned, {tokens} tokens"
        f"{_earlier(facts.get('earlier'))}. Loss on output positions: {1 - fit.kl_weight:.1f} x "
        f"cross-entropy on the target's most likely token + {fit.kl_weight:.1f} x cross-entropy on its top {rollouts.top_k}.",
        "",
        "| updates | loss | match on training batches |",
        "| ---: | ---: | ---: |",
        *_curve(loss),
        "",
        "## Acceptance on held-out prompts (replay of the shipped weights, greedy)",
        "| domain | prompts | K | acceptance rate | tokens per target pass |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(f"| {markdown(s.domain)} | {s.prompts} | {s.k} | {number(s.rate)} | {number(s.tau, 2)} |" for s in scores),
        "",
    ]
    return "\n".join(lines)


def _form(config: DistillConfig) -> str:
    """What it is made of."""
    cut, head = config.cut, config.head
    beside = ", and what stands in prompt and answer through the target's embeddings"
    if config.kind == "head":
        places = f"after {', '.join(map(str, head.taps))} blocks" if head.taps else "at a low, a middle and a high place"
        return (
            f"{head.layers} block{'s' if head.layers > 1 else ''} that read the target's hidden states {places}; "
            f"embeddings shared with the target; output head of {head.vocab} tokens{beside}. "
            f"{head.bits} bits on disk, {head.group_size} weights per scale."
        )
    layers = f"{cut.layers} blocks" + (f", the last {cut.last} of them from the target's end" if cut.last else ", the target's first ones")
    return (
        f"{layers}; embeddings shared with the target; output head of {cut.vocab} tokens{beside if cut.context_tokens else ''}. "
        f"Bits on disk (weights per scale): attention {cut.attention_bits} ({cut.group_size}), MLP {cut.mlp_bits} ({cut.mlp_group_size}), "
        f"head {cut.head_bits} ({cut.group_size})."
    )


def _unrolled(config: DistillConfig) -> str:
    """How many steps of a draft were trained."""
    head = config.head
    return (
        f" of the head, {head.unrolled} steps of a draft (each weighs {head.decay} of the one before)"
        if config.kind == "head"
        else " of the cut"
    )


def _further(config: DistillConfig) -> str:
    """A sentence on the further answers to the prompts of small datasets."""
    wanted = config.rollouts.more_answers
    counts = {d: n - config.rollouts.skip_answers.get(d, 0) for d, n in wanted.items()}
    named = ", ".join(f"{markdown(d)} {n}" for d, n in counts.items() if n > 0)
    return f" Further answers to each prompt of small datasets, all sampled: {named}." if named else ""


def _earlier(run: dict[str, Any] | None) -> str:
    """Half a sentence on the run whose weights this one started from."""
    if run is None:
        return ""
    return f", starting from a draft trained before ({run.get('steps')} updates, sha256 {code(run['sha256'])}) on other answers"


def _curve(loss: Sequence[dict[str, float]], points: int = 12) -> list[str]:
    """Table rows: means over ``points`` equal stretches of the run."""
    rows = []
    for i in range(min(points, len(loss))):
        part = loss[i * len(loss) // points : max((i + 1) * len(loss) // points, i * len(loss) // points + 1)]
        mean = {key: sum(r[key] for r in part) / len(part) for key in ("loss", "match")}
        rows.append(f"| {part[-1]['step']:.0f} | {mean['loss']:.3f} | {mean['match']:.3f} |")
    return rows
