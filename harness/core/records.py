"""Frozen records that flow between the stages. Counts are raw, times are seconds, missing is None, never 0."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from harness.core.counts import Rates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

SCHEMA_VERSION = 1
"""Version of files written, runs apart. Newer ones are refused."""
RUN_VERSION = 2
"""Version of manifests and records of runs. Older ones upgrade on read, newer ones are refused."""

Count = Annotated[int, Ge(0), Le(10**9)]
Length = Annotated[int, Ge(0), Le(4096)]
"""Tokens that one round drafted or accepted."""
Time = Annotated[float, Ge(0), Le(1e9)]
"""Seconds."""
Rule = Literal["match", "rejection"]
Loop = Literal["own", "mlx-lm"]
"""Whose loop decodes: this project's, or mlx-lm's own."""
Metric = Literal["pass@1", "exact_match", "agreement"]
Status = Literal["passed", "failed", "unscored"]
Scalar = str | int | float | bool | None
Finish = Literal["eos", "length", "context", "stopped"]
"""End-of-sequence token, ``max_tokens``, a context that is full, or a caller that asked for an end."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt of a dataset."""

    id: str
    """Unique across datasets, e.g. ``humaneval/12``."""
    domain: str
    """``code``, ``math``, ``chat``, ``structured`` or a user's own."""
    prompt: str
    """The user turn, before the chat template; of a conversation all user turns."""
    messages: tuple[tuple[str, str], ...] = ()
    """A conversation as pairs of role and text, its last user turn included; empty where ``prompt`` is all of it."""
    reference: Mapping[str, str] | None = None
    """What a scorer needs: ``answer`` for math; ``prompt``, ``test``, ``entry_point`` and ``canonical_solution`` for code."""
    source: str = ""
    """Dataset name the sample came from."""
    split: str = "test"
    """``train``, ``validation`` or ``test``."""

    @property
    def asked(self) -> str | list[dict[str, str]]:
        """What the target is asked, as :meth:`harness.models.pair.Pair.encode` takes it."""
        return [{"role": role, "content": text} for role, text in self.messages] if self.messages else self.prompt


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """Tokens the target produced for one prompt: what replay and training read."""

    sample_id: str
    """``Sample.id``."""
    domain: str
    """``Sample.domain``."""
    prompt_tokens: tuple[int, ...]
    """Token ids fed to the target, chat template applied."""
    tokens: tuple[int, ...]
    """Emitted token ids; the end-of-sequence token is included when it was produced."""
    finish: Finish
    """Why it ended: end-of-sequence token, ``max_tokens``, or a full context."""
    max_tokens: int
    """The limit it was generated under."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    logprobs: Array | None = None
    """(n,) target log p of each emitted token (natural log), after temperature."""
    top_tokens: Array | None = None
    """(n, k) target token ids per position, most likely first."""
    top_logprobs: Array | None = None
    """(n, k) their log p."""

    def __eq__(self, other: object) -> bool:
        import numpy as np

        fields = dataclasses.fields(self)
        return isinstance(other, Trajectory) and all(np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields)

    def __hash__(self) -> int:
        return hash((self.sample_id, self.tokens))


@dataclass(frozen=True, kw_only=True)
class Position:
    """One drafted position of a detailed generation."""

    position: int
    """Index into ``Generation.tokens`` of the token the target decided here."""
    draft_token: int
    """What the draft proposed."""
    target_token: int
    """What was emitted."""
    draft_p: float | None
    """Draft probability of its own proposal (None for drafters without one, such as lookup)."""
    target_p: float
    """Target probability of the emitted token."""
    target_rank: int | None
    """Rank of the emitted token under the draft; 0 is the draft's favourite. None where the draft cannot propose it."""
    top_tokens: tuple[int, ...] = ()
    """Top-k target token ids."""
    top_logprobs: tuple[float, ...] = ()
    """Their log p: the distillation targets."""

    @property
    def agrees(self) -> bool:
        """True when the draft proposed the emitted token."""
        return self.draft_token == self.target_token


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where the rounds of an answer spent their time: every moment of a round belongs to exactly one part."""

    draft_s: Time
    """Proposing tokens: launching the drafter and waiting for it."""
    verify_s: Time
    """Launching the target's passes and waiting for them, acceptance included."""
    sync_s: Time
    """Reading finished results to the host."""
    host_s: Time
    """Everything else in Python: bookkeeping, rewinding the cache, per-position records."""

    def __add__(self, other: Profile) -> Profile:
        return Profile(
            draft_s=self.draft_s + other.draft_s,
            verify_s=self.verify_s + other.verify_s,
            sync_s=self.sync_s + other.sync_s,
            host_s=self.host_s + other.host_s,
        )


@dataclass(frozen=True, kw_only=True)
class Generation(Rates):
    """One decoded answer with its raw counts and times."""

    tokens: tuple[int, ...]
    """Emitted token ids, end-of-sequence token included when produced."""
    text: str
    """Detokenised answer without special tokens."""
    finish: Finish
    """Why it ended."""
    prompt_tokens: int
    """Length of the prompt in tokens."""
    rounds: int
    """Target passes that emitted tokens. Plain decoding: one per token."""
    drafted: int
    """Draft tokens proposed and verified, those after a rejection included."""
    accepted: int
    """Draft tokens emitted."""
    rejected: int
    """Rounds that a rejection ended."""
    accept_lengths: tuple[int, ...]
    """Accepted tokens per round."""
    draft_lengths: tuple[int, ...]
    """Drafted tokens per round."""
    prefill_s: float | None
    """Prompt processing, target and draft. None where the loop cannot tell (mlx-lm's)."""
    ttft_s: float
    """Start of the call to the first emitted token."""
    draft_s: float | None
    """Total time drafting. None where the loop cannot tell (fast mode, plain decoding)."""
    verify_s: float | None
    """Total time in target passes after prefill. None where the loop cannot tell."""
    wall_s: float
    """Whole call; tokenisation, detokenisation and what the caller did between the rounds excluded."""
    route_s: float | None = None
    """Embedding the prompt and choosing the adapter."""
    swap_s: float | None = None
    """Putting the adapter into the draft."""
    drafter: str | None = None
    """Drafter that ran; None is plain decoding."""
    k: int | str | None = None
    """Draft length setting: an int, ``dynamic``, ``auto``, or None for plain decoding."""
    lossy: bool = False
    """True when lenience > 1: output may differ from the target's."""
    positions: tuple[Position, ...] | None = None
    """Per-position details in detailed mode."""
    profile: Profile | None = None
    """Where the rounds' time went, prefill apart; None unless asked for."""
    sources: tuple[str, ...] | None = None
    """Who proposed, per round: a source of the drafter, or empty where nothing was drafted; None where the loop cannot tell."""
    draft_times_s: tuple[float, ...] | None = None
    """Seconds drafting per round; None where the loop cannot tell."""
    verify_times_s: tuple[float, ...] | None = None
    """Seconds verifying per round; None where the loop cannot tell."""

    @property
    def emitted(self) -> int:
        """Number of emitted tokens."""
        return len(self.tokens)


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """First place where a lossless greedy output differs from the target-only output."""

    position: int
    """Index of the first differing token."""
    gap: float
    """Gap between the target's top two logits there, in nats, recomputed by one full pass."""
    kind: Literal["tie", "bug"]
    """``tie`` when the gap is below the measured noise bound of the kernels, else ``bug``."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How good one answer is. Average ``value`` over the answers whose status is not ``unscored``, and report how many those are."""

    metric: Metric
    """``pass@1`` (code that passes its tests), ``exact_match`` (final number), or ``agreement`` (with the target's own answer)."""
    status: Status
    """``unscored`` when the machine, the tests or a missing reference is at fault; never counted as wrong."""
    value: Annotated[float, Ge(0), Le(1)] | None
    """1 or 0 for ``pass@1`` and ``exact_match``, 0 to 1 for ``agreement``; None when unscored."""
    reason: str = ""
    """Why it failed or is unscored. May quote the answer, so escape it in HTML."""
    details: Mapping[str, float | int | str] = field(default_factory=dict)
    """Raw values: ``sandbox``; ``expected`` and ``found``; ``words``, ``target_words``, ``common_prefix_words``."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What else the machine did while an answer was decoded. None where the system does not say."""

    average: Annotated[float, Ge(0)] | None = None
    """Load average over the last minute: processes that ran or waited."""
    pressure: Annotated[float, Ge(0), Le(100)] | None = None
    """Percent of the last ten seconds in which some process waited for a processor."""
    steal: Annotated[float, Ge(0), Le(1)] | None = None
    """Share of the processors' time that the host gave to other machines during the answer."""


@dataclass(frozen=True, kw_only=True)
class Try:
    """An answer that was decoded again because something disturbed its clock."""

    wall_s: Time
    expected_s: Time
    """What its rounds take by the medians of the run."""
    load: Load | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a record of a run on a cluster was made."""

    worker: str
    """Name of the worker."""
    machine: str
    """Kind of its machine: clocks of two kinds are never pooled."""
    calibration: str | None = None
    """Whose costs `auto` went by, a key of the manifest's ``measured.workers``; None where nothing was clocked."""


@dataclass(frozen=True, kw_only=True)
class Record(Rates):
    """One line of records.jsonl: one sample decoded (or replayed) in one cell."""

    schema_version: int = RUN_VERSION
    experiment: str
    """Suite entry the cell belongs to."""
    method: Literal["decode", "replay", "answer"]
    """``decode`` was timed; ``answer`` is the target's own, made in a batch with others; ``replay`` has counts along the target's answer.
    The last two have no times."""
    loop: Loop = "own"
    sample_id: str
    domain: str
    drafter: str | None
    """None is the target-only baseline."""
    adapter: str | None = None
    """Adapter fused or attached to the draft."""
    k: int | str | None
    rule: Rule = "match"
    temperature: float = 0.0
    seed: int = 0
    repeat: Count = 0
    """Which of several equal decodes, to see the spread of the clock."""
    lossy: bool = False
    prompt_tokens: Count
    rounds: Count
    drafted: Count
    accepted: Count
    rejected: Count
    accept_lengths: tuple[Length, ...]
    draft_lengths: tuple[Length, ...]
    emitted: Count
    finish: Finish
    reused_tokens: Count = 0
    """Prompt tokens that the target had read for an earlier turn of the conversation."""
    prefill_s: Time | None = None
    ttft_s: Time | None = None
    draft_s: Time | None = None
    verify_s: Time | None = None
    route_s: Time | None = None
    swap_s: Time | None = None
    wall_s: Annotated[Time, Gt(1e-9)] | None = None
    tokens: tuple[int, ...] | None = None
    """Emitted ids (decoded cells): the losslessness audit recomputes from these."""
    thinking: Count | None = None
    """How many of the emitted tokens are the model's thinking, its end marker included; None where the model has no such markers."""
    divergence: Divergence | None = None
    """Difference from the baseline's greedy output; None when equal or when there is nothing to compare."""
    compared: bool = False
    """True when the output was compared with the baseline's."""
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    """Settings of the cell that are no field here, such as ``lenience``, ``rank`` or ``round``."""
    score: Score | None = None
    """None where nothing scored the answer."""
    profile: Profile | None = None
    """Where the rounds' time went, in a profiled run."""
    near_ties: Count | None = None
    """Positions of a replayed answer where the draft's favourite may differ on another machine; None where nothing counted them."""
    choice: str | None = None
    """What a router picked."""
    sources: tuple[str, ...] | None = None
    """Who proposed, per round: ``draft``, ``lookup`` and so on, empty where nothing was drafted; None where the loop cannot tell."""
    draft_times_s: tuple[Time, ...] | None = None
    """Seconds drafting per round; None where the loop cannot tell, and in runs of versions that did not store it."""
    verify_times_s: tuple[Time, ...] | None = None
    """Seconds verifying per round (a plain step, where nothing is drafted); None as above."""
    load: Load | None = None
    """What else the machine did meanwhile."""
    tries: tuple[Try, ...] = ()
    """Earlier tries whose clock was disturbed; the record holds the last, or the fastest, one."""
    place: Place | None = None
    """Where it was made; None in runs of one process, and for answers that were there already."""

    @property
    def machine(self) -> str | None:
        """Kind of machine it was made on; None in runs of one process."""
        return None if self.place is None else self.place.machine

    @property
    def read_tokens(self) -> int:
        """Tokens of the prompt that the target read for this answer."""
        return self.prompt_tokens - self.reused_tokens


def to_dict(record: Any) -> dict[str, Any]:
    """Return a record as plain JSON types (tuples become lists when dumped)."""
    return dataclasses.asdict(record)
