"""Typed configuration of ``harness distill``: every default lives here, files in ``configs/drafts`` only change it. No mlx import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from harness.core.limits import TOP_K, WarmTemperature
from harness.core.yamlfile import Count, Seed, Strict, load_config


class RolloutConfig(Strict):
    """What the target generates for the draft to learn from."""

    prompts: dict[str, Count] = Field(default_factory=lambda: {"math": 1000, "code": 1000, "chat": 1000, "structured": 500})
    """Domain -> training prompts."""
    skip: dict[str, Count] = Field(default_factory=dict)
    """Domain -> first training prompts left out: those that an earlier run has used."""
    more_answers: dict[str, Count] = Field(default_factory=dict)
    """Domain -> further answers, all of them sampled, to each training prompt of the domain's own datasets (templates left out), for
    datasets with few prompts."""
    written: dict[str, Count] = Field(default_factory=dict)
    """Domain -> prompts that the target writes itself, beside the others."""
    skip_answers: dict[str, Count] = Field(default_factory=dict)
    """Domain -> first of these further answers left out."""
    gsm8k_path: str | None = None
    """JSONL file of GSM8K training problems; without it the math prompts are the project's own word problems."""
    max_tokens: int = Field(192, ge=1, le=32_768)
    """Longest trajectory."""
    sampled_share: float = Field(0.25, ge=0, le=1)
    """Share of the prompts answered at ``temperature``; the rest is greedy."""
    temperature: WarmTemperature = 0.7
    """Sampling temperature of that share."""
    batch: int = Field(128, ge=1, le=4096)
    """Prompts decoded together."""
    top_k: int = Field(TOP_K, ge=1, le=1000)
    """Target probabilities kept per position."""
    seed: Seed = 0
    """Seed of prompts and sampling."""


class CutConfig(Strict):
    """The draft's form."""

    layers: int = Field(4, ge=1, le=1000)
    """Transformer blocks kept."""
    last: int = Field(0, ge=0, le=1000)
    """How many of them come from the target's end; the others are its first ones."""
    vocab: int = Field(8192, ge=2, le=10**7)
    """Output ids kept: the ones most frequent in the rollouts."""
    context_tokens: bool = True
    """Let the draft propose what stands in prompt and answer too, through the target's embedding rows: names and rare words come back."""
    attention_bits: Literal[4, 8] = 8
    """Bits per weight of the attention layers on disk."""
    mlp_bits: Literal[4, 8] = 8
    """Bits per weight of the feed-forward layers on disk."""
    head_bits: Literal[4, 8] = 8
    """Bits per weight of the output head on disk."""
    group_size: Literal[32, 64, 128] = 64
    """Weights that share a scale, outside the feed-forward layers."""
    mlp_group_size: Literal[32, 64, 128] = 64
    """Weights of the feed-forward layers that share a scale."""


class HeadConfig(Strict):
    """The form of a head that reads the target."""

    layers: int = Field(1, ge=1, le=8)
    """Transformer blocks of its own, as large as the target's."""
    taps: Annotated[tuple[int, ...], Field(min_length=1, max_length=8, strict=False)] | None = None
    """How many blocks of the target are behind each of the states that it reads; the second, the middle and the third from the end when
    absent."""
    vocab: int = Field(8192, ge=2, le=10**7)
    """Output ids kept: the ones most frequent in the rollouts. What stands in prompt and answer is proposed too."""
    unrolled: int = Field(3, ge=1, le=16)
    """Steps of a draft that are trained: the second and later ones read what the head gave one token before."""
    decay: float = Field(0.8, gt=0, le=1)
    """Weight of each further step's loss, as a share of the one before."""
    bits: Literal[4, 8] = 8
    """Bits per weight on disk."""
    group_size: Literal[32, 64, 128] = 64
    """Weights that share a scale."""


class FitConfig(Strict):
    """Full fine-tuning of the cut or the head: AdamW, linear warm-up, cosine decay."""

    start_from: str | None = None
    """A finished cut whose weights and output vocabulary this run starts from: its folder, or ``shipped:<name>``; None starts from the
    target's layers. A head starts anew."""

    learning_rate: float = Field(1.5e-3, gt=0, lt=1)
    """Peak of the rate."""
    warmup_steps: int = Field(50, ge=0, le=10**9)
    """Updates over which the rate rises from 0."""
    final_fraction: float = Field(0.0, ge=0, le=1)
    """Rate at the last update as a fraction of the peak; 1 is constant."""
    epochs: float = Field(3.0, gt=0, le=1e6)
    """Passes over the rollouts."""
    batch_tokens: int = Field(2048, ge=1, le=10**7)
    """Prompt and output tokens per update."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decay of the weights towards 0."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest global gradient norm."""
    kl_weight: float = Field(0.7, ge=0, le=1)
    """Weight of the forward KL on the cached top-k; the rest is cross-entropy on the target's token."""
    checkpoint_steps: int = Field(100, ge=1, le=10**9)
    """Updates between checkpoints."""
    eval_prompts: int = Field(40, ge=1, le=10**6)
    """Held-out prompts per domain that are replayed at the end."""
    seed: Seed = 0
    """Seed of the order of the rollouts."""


class DistillConfig(Strict):
    """A file in ``configs/drafts``."""

    name: str
    """Name of the draft; the file's name when absent."""
    pair: str
    """Pair whose target is distilled (``configs/models``)."""
    rollouts: RolloutConfig = RolloutConfig()
    """Stage collect: the target's answers."""
    kind: Literal["cut", "head"] = "cut"
    """``cut``: some layers of the target, a draft of its own. ``head``: a block that reads the target's hidden states."""
    cut: CutConfig = CutConfig()
    """A cut's form."""
    head: HeadConfig = HeadConfig()
    """A head's form."""
    fit: FitConfig = FitConfig()
    """Stage train."""


def load_distill_config(name_or_path: str, overrides: Sequence[str] = ()) -> DistillConfig:
    """Read a draft config by name (``configs/drafts``) or path; ``overrides`` are ``fit.epochs=1`` strings.

    Raises:
        HarnessError: no such file, broken YAML, an unknown key or a wrong value; names file and line.
    """
    return load_config(DistillConfig, name_or_path, "drafts", overrides)
