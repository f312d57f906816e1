"""The long-lived loop: answer with the best draft so far, keep what it got wrong, train on it, answer better.

Everything that must survive is on disk after every answer; a session that is opened again goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness import api
from harness.adapt.adapters.adapter_folder import adapter_folder, read_info
from harness.adapt.adapters.names import ROUTER, installed
from harness.adapt.memory_sources import Growth
from harness.adapt.training.learner import Learner
from harness.adapt.training.outcome import TrainProgress
from harness.adapt.training.rounds import RoundRecord, install
from harness.core.drafter_kinds import drafter_kinds, find_kind
from harness.core.errors import HarnessError
from harness.core.paths import found_memory
from harness.core.protocols import LoadedPair
from harness.core.records import Generation, Sample
from harness.datasets import load_samples
from harness.datasets.splits import leaks
from harness.decode.kept import KeptCaches
from harness.decode.making import DrafterOptions
from harness.decode.memory import Answer
from harness.models.pair import load_pair
from harness.models.pair_config import pair_k
from harness.session.session_config import ADAPTIVE, DEFAULT, SessionConfig, load_session_config
from harness.session.session_state import STATE, SessionStats, lock_session, read_totals, session_folder, write_totals

if TYPE_CHECKING:
    from harness.adapt.routers.routed import Routed
    from harness.decode.length import Costs
    from harness.session.session_evaluation import EvaluationRow

Prompt = str | list[dict] | Sequence[int]
WARM_UP_TOKENS = 8
CONTEXT_SHARE = 4
"""At least a quarter of the context is kept for the answer, when ``max_tokens`` asks for as much."""


class Session:
    """One user's loop on one pair. Use it as a context manager, or call :meth:`close`.

    Args:
        pair: loaded pair.
        config: settings.
        offline: never use the network.

    Raises:
        HarnessError: the session is open in another process, or a file of it is damaged.
    """

    def __init__(self, pair: LoadedPair, config: SessionConfig, *, offline: bool = False) -> None:
        self.pair, self.config, self.offline = pair, config, offline
        self.folder = session_folder(pair, config)
        self.drafter = config.drafter
        self.refusal: str | None = None
        self._refused_at = -1
        self._costs: dict[str, Costs] = {}
        self._held_out: list[Sample] | None = None
        self._growth: Growth | None = None
        self.caches = KeptCaches()
        self._lock = lock_session(self.folder)
        try:
            self.totals = read_totals(self.folder / STATE)
            draft = None if pair.draft is None or pair.draft.translation is not None else pair.draft
            self.learner = None if draft is None else Learner(draft, self.folder, config.training_config())
            self._growth = Growth(pair, self.folder / "memory.jsonl") if config.remember else None
            self._install_adapter()
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_config(
        cls,
        path: str | Path = DEFAULT,
        overrides: Sequence[str] = (),
        *,
        settings: str | Path | None = None,
        pair: LoadedPair | None = None,
        offline: bool = False,
        **changes: Any,
    ) -> Session:
        """Open the session a file describes, loading its pair.

        Args:
            path: session file.
            overrides: ``k=8`` strings.
            settings: a settings file, such as a report's, whose keys replace those of ``path``.
            pair: a loaded pair to use instead of the file's.
            offline: never use the network.
            **changes: keys of the file to replace.

        Raises:
            HarnessError: a mistake in the file, before any model loads, or what loading the pair refuses.
        """
        config = load_session_config(path, overrides, settings)
        config = config.replace(**changes) if changes else config
        if pair is not None:
            config = config.replace(models=pair.name)
            config.training_config()
        else:
            config.check()
            pair = load_pair(config.models, offline=offline, fallback=config.fallback)
        return cls(pair, config, offline=offline)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes open the session."""
        self._lock.close()

    @property
    def k(self) -> int | str:
        """Draft length of an answer that asks for none."""
        return pair_k(self.pair) if self.config.k is None else self.config.k

    # --- answers ---

    def warm_up(self) -> None:
        """Decode a few tokens with and without a draft, and measure what ``auto`` weighs: the first answer's times are no cold start's."""
        drafter = self._resolve(self.drafter)
        for name in {None, "generic" if self.learner is not None else drafter}:
            api.generate(self.pair, "Hello", drafter=name, max_tokens=WARM_UP_TOKENS)
        if self.k == "auto" and drafter is not None:
            self._calibrated(drafter)

    def generate(
        self, prompt: Prompt, *, drafter: str | None = "", train: bool | None = None, learn: bool = True, **settings: Any
    ) -> Generation:
        """Answer a prompt or a conversation, count it, and learn from it. A prompt that goes on from an earlier one is read from there.

        Args:
            prompt: text, chat messages, or token ids.
            drafter: another drafter for this answer; the session's without it.
            train: run a training round afterwards when one is due; the config's ``train_automatically`` when None.
            learn: keep what the draft got wrong, and what a memory may remember; False keeps counts alone.
            **settings: as for :func:`harness.api.generate`, instead of the config's.

        Raises:
            HarnessError: as :func:`harness.api.generate`.
        """
        name = self._resolve(self.drafter if drafter == "" else drafter)
        config = self.config
        chosen: dict[str, Any] = {"k": self.k, "rule": config.rule, "temperature": config.temperature, "max_tokens": config.max_tokens}
        chosen |= {"seed": config.seed, "lenience": config.lenience, **config.filters(), **settings}
        if chosen["k"] == "auto" and name is not None:
            chosen.setdefault("costs", self._calibrated(name))
        if name is None or (name == "router" and "k" not in settings):  # the router has a draft length of its own
            chosen.pop("k")
        if name == "router":
            api.pair_router(self.pair, offline=self.offline)
        watched = learn and name is not None and ((kind := find_kind(name)) is None or kind.trainable)
        if name is not None and config.options.given():
            chosen.setdefault("options", DrafterOptions(**config.options.given()))
        if watched and self.learner is not None:
            chosen["detailed"] = self.learner.config.adapt.top_k
        chosen.setdefault("caches", self.caches)
        generation = api.generate(self.pair, self._messages(prompt), drafter=name, **chosen)
        self.totals = self.totals.plus(generation)
        write_totals(self.folder / STATE, self.totals)
        if (learn and self._growth is not None) or (watched and generation.drafter is not None):
            sample, ids = self._sample(prompt), self.pair.encode(self._messages(prompt))
            if watched and self.learner is not None and generation.drafter is not None:
                self.learner.observe(sample, ids, generation)
            if learn and self._growth is not None and sample.split == "train":
                self._growth.add(Answer.of(sample, ids, generation.tokens))
        if config.train_automatically if train is None else train:
            self.train_if_due()
        return generation

    def use(self, drafter: str | None) -> None:
        """Answer with another drafter from now on.

        Raises:
            HarnessError: no such drafter; names the nearest.
        """
        self.config.check_drafter(self.pair.name, drafter)
        self.drafter = drafter

    def drafters(self) -> dict[str, str]:
        """Return name -> what it is, of everything :meth:`use` takes."""
        kinds = drafter_kinds()
        head = getattr(self.pair, "head_folder", None) is not None
        named = {name: kind.summary for name, kind in kinds.items() if head or not kind.needs_head}
        adapters = {name: "an installed adapter" for name in installed(self.pair.name) if name != self.config.name}
        if self.pair.draft is None:
            return {ADAPTIVE: "lookup: the pair has no draft", **{n: text for n, text in named.items() if not kinds[n].needs_draft}}
        own = f"this session's adapter, {self._rounds_text()}" if self._has_adapter() else "the plain draft until a round is accepted"
        return {ADAPTIVE: own, **named, ROUTER: "chooses an adapter for each prompt", **adapters}

    def fit(self, messages: Sequence[dict], max_tokens: int | None = None) -> tuple[list[dict], int]:
        """Drop the oldest turns until the conversation and an answer fit into the context.

        Returns:
            The messages to answer, and how many were dropped. A system message stays.

        Raises:
            HarnessError: the last message alone is too long.
        """
        room = self.pair.context_tokens
        wanted = min(max_tokens or self.config.max_tokens, room // CONTEXT_SHARE)
        system = [m for m in messages[:1] if m.get("role") == "system"]
        turns = list(messages[len(system) :])
        dropped = 0
        while True:
            try:
                ids = self.pair.encode(self._messages([*system, *turns]))
            except HarnessError:
                if len(turns) <= 1:
                    raise
                ids = None
            if ids is not None and (len(ids) + wanted <= room or (len(turns) <= 1 and len(ids) < room)):
                return [*system, *turns], dropped
            if len(turns) <= 1:
                raise HarnessError("the message fills the whole context", f"Shorten it: prompt and answer share {room} tokens.")
            # A turn goes with its answer, so that the roles still alternate.
            count = 2 if len(turns) > 2 and turns[1].get("role") == "assistant" else 1
            turns, dropped = turns[count:], dropped + count

    def route(self, prompt: str | list[dict]) -> Routed:
        """Ask the pair's router, without decoding.

        Raises:
            HarnessError: no router was trained for the pair.
        """
        from harness.adapt.routers.routed import route

        router = api.pair_router(self.pair, offline=self.offline)
        return route(prompt, router=router, bank=api.adapter_bank(self.pair))

    # --- learning ---

    @property
    def due(self) -> bool:
        """True when enough failure cases wait for a round, more than when one was last refused."""
        return self.learner is not None and self.learner.due and self._pending() > self._refused_at

    def train(self, *, progress: Callable[[TrainProgress], None] | None = None) -> RoundRecord:
        """Run one training round now; an accepted one puts its adapter into use and installs it under the session's name.

        Raises:
            HarnessError: nothing to train or to validate on, or no draft.
        """
        if self.learner is None:
            raise HarnessError(
                f"pair {self.pair.name!r} has no draft that can learn", "Name one of the target's family in the pair's YAML."
            )
        api.adapter_bank(self.pair).activate(None)
        try:
            record = self.learner.train(progress=progress)
        except (HarnessError, KeyboardInterrupt) as error:
            self.refusal, self._refused_at = getattr(error, "problem", "interrupted"), self._pending()
            raise
        self.refusal, self._refused_at = None, -1
        if record.accepted:
            self._install_adapter()
            self.caches = KeptCaches()  # those of the draft are of other weights now
        return record

    def train_if_due(self, *, progress: Callable[[TrainProgress], None] | None = None) -> RoundRecord | None:
        """Run a round when one is due; None when none is, or when it was refused (see ``stats().refusal``)."""
        if not self.due:
            return None
        try:
            return self.train(progress=progress)
        except HarnessError:
            return None

    def evaluate(self, samples: Sequence[Sample | str] | None = None) -> list[EvaluationRow]:
        """Compare the current drafter with the plain draft on held-out prompts, greedily, by replay.

        Args:
            samples: prompts; the config's ``evaluation`` when None.

        Returns:
            One row per domain and one over all of them.

        Raises:
            HarnessError: plain decoding is in use, or no prompts.
        """
        from harness.session.session_evaluation import evaluate

        return evaluate(self, samples)

    def stats(self) -> SessionStats:
        """Return where the session stands."""
        t, learner = self.totals, self.learner
        return SessionStats(
            generations=t.generations,
            tokens=t.tokens,
            tokens_per_s=t.tokens / t.wall_s if t.wall_s else None,
            rate=t.rate,
            alpha=t.alpha,
            tau=t.tau,
            rolling_rate=learner.tracker.rate if learner else None,
            trend=learner.tracker.trend if learner else None,
            failures=len(learner.store) if learner else 0,
            pending=self._pending(),
            needed=learner.tracker.min_failure_cases if learner else 0,
            due=self.due,
            rounds=len(learner.records) if learner else 0,
            rounds_accepted=sum(r.accepted for r in learner.records) if learner else 0,
            drafter=self._resolve(self.drafter),
            refusal=self.refusal,
        )

    # --- parts ---

    def _resolve(self, drafter: str | None) -> str | None:
        """Turn ``adaptive`` into what it stands for now."""
        if self._growth is not None and (kind := find_kind(drafter)) is not None and kind.needs_memory and not self._has_memory():
            return "hybrid" if kind.needs_draft else "lookup"  # until enough was said to make one
        if drafter != ADAPTIVE:
            return drafter
        if self.pair.draft is None:
            return "lookup"
        return self.config.name if self._has_adapter() else "generic"

    def _has_memory(self) -> bool:
        return found_memory(self.pair.name) is not None

    def _has_adapter(self) -> bool:
        return self.learner is not None and self.learner.adapter is not None

    def _rounds_text(self) -> str:
        assert self.learner is not None
        return f"{sum(r.accepted for r in self.learner.records)} of {len(self.learner.records)} rounds accepted"

    def _pending(self) -> int:
        return sum(self.learner.tracker.pending.values()) if self.learner else 0

    def _install_adapter(self) -> None:
        """Put the adapter of the latest accepted round where drafters are found by name."""
        if self.learner is None or self.learner.adapter is None or self.pair.draft is None:
            return
        read_info(self.learner.adapter, self.pair.draft.hash)
        install(self.learner.adapter, adapter_folder(self.pair.name, self.config.name), self.config.name)

    def _messages(self, prompt: Prompt) -> Prompt:
        """Put the system message first, where there is one and the conversation has none of its own."""
        if self.config.system is None or not prompt:
            return prompt
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        first = turns[0]
        if not isinstance(first, Mapping) or first.get("role") == "system":
            return prompt
        return [{"role": "system", "content": self.config.system}, *turns]  # type: ignore[list-item]

    def _calibrated(self, name: str) -> Costs:
        """Measured step costs; adapters cost what the draft costs."""
        from harness.decode.calibrate import calibrate
        from harness.decode.making import resolve_drafter

        kind = name if find_kind(name) is not None else "generic"
        if kind not in self._costs:
            self._costs[kind] = calibrate(self.pair, resolve_drafter(self.pair, kind)).costs
        return self._costs[kind]

    def _sample(self, prompt: Prompt) -> Sample:
        """The last turn of a prompt; what touches an evaluation prompt is of the split ``test``: never trained on nor remembered."""
        turns = _user_turns(self.pair, prompt)
        name = f"{self.config.name}/{self.totals.generations}"
        samples = [
            Sample(id=f"{name}.{i}", domain=self.config.domain, prompt=t, source="session", split="train") for i, t in enumerate(turns)
        ]
        split = "test" if leaks(samples, self.held_out()) else "train"
        return dataclasses.replace(samples[-1], id=name, split=split)

    def held_out(self) -> list[Sample]:
        """All prompts of the evaluation's splits, limits aside."""
        if self._held_out is None:
            specs = {d: spec.model_copy(update={"limit": None}) for d, spec in self.config.evaluation.items()}
            self._held_out = [
                s for d, spec in specs.items() for s in load_samples(spec, domain=d, seed=self.config.seed, offline=self.offline)
            ]
        return self._held_out


def _user_turns(pair: LoadedPair, prompt: Prompt) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    items = list(prompt)
    messages = [m for m in items if isinstance(m, Mapping)]
    if not messages:
        return [pair.decode(cast("list[int]", items))]
    return [str(m["content"]) for m in messages if m.get("role") == "user"] or [str(messages[-1]["content"])]
