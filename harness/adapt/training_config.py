"""Typed training configuration: every default lives here, YAML files only change it. No mlx import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from harness.adapt.loss_formulas import LOSSES
from harness.core.limits import TOP_K, WarmTemperature, joined_seed
from harness.core.yamlfile import Seed, Strict, load_config

LOSS_KINDS = (*LOSSES, "mix")
if TYPE_CHECKING:
    LossPart = str
    LossKind = str
else:
    LossPart, LossKind = Literal[tuple(LOSSES)], Literal[LOSS_KINDS]
_MIX: dict[str, float] = {"ce": 0.3, "forward_kl": 0.7}
Policy = Literal["fuse", "cached", "unfused"]


class LoraConfig(Strict):
    """Which weights are trained."""

    rank: int = Field(8, ge=1, le=1024)
    """Inner size of the low-rank update."""
    scale: float = Field(2.0, gt=0, le=1e6)
    """Factor of the update (``alpha / rank`` in PEFT's terms)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the input of the update."""
    num_layers: int = Field(-1, ge=-1, le=1000)
    """Blocks to adapt, counted from the output; -1 is all of them."""
    keys: list[str] | None = None
    """Linear layers inside a block, e.g. ``self_attn.q_proj``; None is all of them."""
    dora: bool = False
    """Train the magnitude of each output row too (DoRA)."""

    @model_validator(mode="after")
    def _some_layers(self) -> LoraConfig:
        if self.num_layers == 0:
            raise ValueError("num_layers must be -1 (all) or at least 1")
        return self


class LossConfig(Strict):
    """What is minimised at each output position."""

    kind: LossKind = "mix"
    """``ce`` on the target's token, a divergence on its cached top-k probabilities, or ``mix``."""
    weights: dict[LossPart, float] = Field(default_factory=lambda: dict(_MIX))
    """Weights of the parts when ``kind`` is ``mix``."""
    failure_weight: float = Field(2.0, gt=0, le=1e6)
    """Weight of a position where the draft disagreed with the target; others count 1."""

    @model_validator(mode="after")
    def _positive(self) -> LossConfig:
        if self.kind == "mix" and (not self.weights or min(self.weights.values()) < 0 or sum(self.weights.values()) <= 0):
            raise ValueError("loss.weights needs at least one positive weight and no negative ones")
        return self

    def parts(self) -> dict[str, float]:
        """Return loss name -> weight, zero weights left out."""
        if self.kind != "mix":
            return {self.kind: 1.0}
        return {str(name): weight for name, weight in self.weights.items() if weight > 0}


class OptimConfig(Strict):
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: float = Field(3e-4, gt=0, lt=1)
    """Peak of the rate."""
    warmup_steps: int = Field(10, ge=0, le=10**9)
    """Updates over which the rate rises from 0."""
    final_fraction: float = Field(0.1, ge=0, le=1)
    """Rate at the last update as a fraction of the peak; 1 is constant."""
    bias_correction: bool = False
    """Adam's correction of its first moments. Off, as in mlx-lm, the first hundred updates are three to six times what the rate says: right
    for a small draft that has far to go, wrong for a large one."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decay of the trained weights towards 0."""
    clip_norm: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0 is off."""
    epochs: int = Field(3, ge=1, le=10**6)
    """Passes over the data; ``max_steps`` may end earlier."""
    max_steps: int | None = Field(None, ge=1, le=10**9)
    """Largest number of updates."""
    batch_size: int = Field(8, ge=1, le=4096)
    """Examples per forward pass."""
    accumulate: int = Field(1, ge=1, le=10**6)
    """Forward passes per update."""
    max_tokens: int = Field(1024, ge=8, le=10**6)
    """Longest example (prompt and output); longer ones lose their tail, and are left out when the prompt alone is longer."""
    backend: Literal["mlx", "auto"] = "mlx"
    """What computes losses and gradients. ``auto``: torch where mlx computes on a CPU and the draft is a plain llama or qwen2, or a cut,
    several times faster and in bfloat16 where the processor has it; else, and for every validation, mlx."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    seed: Seed = 0
    """Seed of the first weights, of the order of examples and of dropout."""


class StopConfig(Strict):
    """Early stop on acceptance measured by replay over the validation trajectories."""

    metric: Literal["alpha", "rate", "tau"] = "alpha"
    """What must rise; docs/reports.md says how each is counted."""
    k: int = Field(4, ge=1, le=64)
    """Draft length of the replay."""
    every: int = Field(20, ge=1, le=10**9)
    """Updates between evaluations."""
    patience: int = Field(5, ge=1, le=10**9)
    """Evaluations without a new best before stopping."""
    min_gain: float = Field(0.0, ge=0)
    """Smallest gain over the starting draft that keeps the adapter."""
    beyond_noise: bool = False
    """Keep the adapter only if the whole 95% interval of its gain, paired by validation prompt, is above ``min_gain``."""
    guard_drop: float = Field(1.0, ge=0, le=1)
    """Largest fall of the metric that a domain with validation trajectories may suffer; a checkpoint beyond it is never the best."""


class CacheConfig(Strict):
    """Hidden states below the lowest trained layer, computed once per example."""

    enabled: bool = True
    """Keep them on disk; off, they are computed in every pass."""
    dtype: Literal["float16", "float32"] = "float16"
    """float32 doubles the disk use and equals training without the cache."""
    budget_bytes: int = Field(20_000_000_000, ge=0, le=10**18)
    """Most disk space of the cache; beyond it hidden states are computed again."""


class AdaptConfig(Strict):
    """Failure cases, replay buffer and trigger."""

    mine: bool = True
    """Look for the draft's mistakes first and train on what it got wrong. Off: train on every answer of the domain alike, the right
    choice for many answers that the draft has never seen."""
    threshold: float = Field(0.5, ge=0, le=1)
    """A generation whose draft acceptance rate is below is a failure case."""
    failure_fraction: float = Field(0.8, ge=0, le=1)
    """Share of failure cases among the training examples; the rest comes from the replay buffer."""
    min_failure_cases: int = Field(32, ge=1, le=10**6)
    """Failure cases that start a training round in a run or a chat; `harness train` trains on any number."""
    buffer_cases: int = Field(1000, ge=1, le=10**6)
    """Capacity of the replay buffer."""
    window: int = Field(50, ge=2, le=10**6)
    """Generations in the rolling acceptance."""
    top_k: int = Field(TOP_K, ge=1, le=1000)
    """Target probabilities kept per position."""


class SynthConfig(Strict):
    """Prompts that the target writes where a domain has too few."""

    min_prompts: int = Field(0, ge=0, le=10**6)
    """Training prompts a domain should have; missing ones are synthesised."""
    temperature: WarmTemperature = 0.8
    """Sampling temperature of the written prompts."""
    max_prompt_tokens: int = Field(128, ge=8, le=10**6)
    """Longest prompt that may be written."""
    min_words: int = Field(4, ge=1, le=10**6)
    """Shorter prompts are thrown away."""
    similarity: float = Field(0.6, gt=0, le=1)
    """Word-trigram Jaccard similarity from which a prompt is a duplicate."""


class ParallelConfig(Strict):
    """Masks with which one pass of the draft proposes several tokens."""

    k: int | None = Field(None, ge=2, le=32)
    """Tokens of a pass, the draft's own first one included; None trains an adapter of the draft itself."""
    keep: float = Field(0.7, gt=0, le=1)
    """Share of the places behind a token that are trained with one more mask than the place before: what is dropped costs no time."""
    by_length: float = Field(0.0, ge=0, le=1)
    """What a mask's loss counts by: 0, all alike; 1, the accepted tokens that a round would gain were this one likelier to stand; between
    them a mixture. What stands behind a token that the draft itself gets wrong is then left out as often as it counts for nothing, which
    saves its time."""


class TrainingConfig(Strict):
    """A file in ``configs/training``."""

    name: str = "default"
    """For readers; the file's name when absent."""
    lora: LoraConfig = LoraConfig()
    """Which weights are trained."""
    loss: LossConfig = LossConfig()
    """What is minimised."""
    optim: OptimConfig = OptimConfig()
    """How weights are updated."""
    stop: StopConfig = StopConfig()
    """When training ends, and what keeps the adapter."""
    cache: CacheConfig = CacheConfig()
    """Hidden states kept on disk."""
    adapt: AdaptConfig = AdaptConfig()
    """Which answers are trained on."""
    synth: SynthConfig = SynthConfig()
    """Prompts that the target writes."""
    parallel: ParallelConfig = ParallelConfig()
    """Masks for parallel drafting."""
    checkpoint_every: int = Field(20, ge=1, le=10**9)
    """Updates between checkpoints."""

    @model_validator(mode="after")
    def _masks_alone(self) -> TrainingConfig:
        if self.parallel.k is not None:
            odd = {"adapt.mine": self.adapt.mine, "lora.dora": self.lora.dora, "lora.dropout": self.lora.dropout > 0}
            if any(odd.values()):
                raise ValueError(f"parallel.k goes without {next(name for name, on in odd.items() if on)}")
        return self

    def replace(self, **changes: Any) -> TrainingConfig:
        """Return a checked copy; ``lora={"rank": 16}`` changes single keys of a section."""
        data = self.model_dump()
        for key, value in changes.items():
            data[key] = {**data[key], **value} if isinstance(value, dict) else value
        return TrainingConfig.model_validate(data)

    def seeded(self, seed: int) -> TrainingConfig:
        """Return the same settings for a suite or session with this seed: its own seed counts too."""
        return self.replace(optim={"seed": joined_seed(self.optim.seed, seed)})


def load_training_config(name_or_path: str = "default", overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read a training config by name (``configs/training``) or path; ``overrides`` are ``lora.rank=16`` strings.

    Raises:
        HarnessError: no such file, broken YAML, an unknown key or a wrong value; names file and line.
    """
    return load_config(TrainingConfig, name_or_path, "training", overrides)
