"""What adapters and routers of a run learn from: prompts by split and the target's answers to them, loaded once per size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from harness.core.limits import TOP_K
from harness.core.progress import counted, note
from harness.core.protocols import LoadedPair
from harness.core.records import Sample, Trajectory
from harness.datasets.splits import refuse_leaks
from harness.models.cache_key import answers_folder
from harness.run.chain_task import Crew

if TYPE_CHECKING:
    from harness.adapt.training.rounds import Known
    from harness.suite.suite import Suite

COLLECT_BATCH = 32
"""Training prompts that are answered together."""
Check = Callable[[], None]
"""Called between two steps; may raise to stop there."""


class Prepared:
    """Loads and keeps them.

    Args:
        pair: loaded pair.
        suite: names the datasets.
        evaluation: prompts that nothing close to is learned from.
        load_samples: :func:`harness.datasets.load_samples`, knowing whether it may use the network.
        check: called after every answer.
        crew: who answers elsewhere; this process where None.
    """

    def __init__(
        self, pair: LoadedPair, suite: Suite, evaluation: Sequence[Sample], load_samples: Any, check: Check, crew: Crew | None
    ) -> None:
        self.pair, self.suite, self.evaluation, self.load_samples = pair, suite, evaluation, load_samples
        self.check, self.crew = check, crew
        self._prompts: dict[tuple[str, int, int], list[Sample]] = {}
        self._answers: dict[tuple[int, str], Trajectory] = {}
        self.known: dict[int, Known] = {}
        """Training prompts per domain to what replays over them gave: chains that start alike share it."""

    def prompts(self, split: str, limit: int, skip: int = 0) -> list[Sample]:
        """``limit`` prompts per domain of a split after the first ``skip``, none of them close to an evaluation prompt."""
        key = (split, limit, skip)
        if key not in self._prompts:
            self._prompts[key] = self._read(*key)
        return self._prompts[key]

    def _read(self, split: str, limit: int, skip: int) -> list[Sample]:
        found: list[Sample] = []
        for domain, spec in self.suite.domains.items():
            first = [self._load(spec, domain, split, n) for n in (skip + limit, skip) if n]
            known = {s.id for s in first[1]} if skip else set()
            found += [s for s in first[0] if s.id not in known]
        refuse_leaks(found, self.evaluation)
        return found

    def _load(self, spec: Any, domain: str, split: str, limit: int) -> list[Sample]:
        own = spec.model_copy(update={"split": split, "limit": limit})
        loaded: list[Sample] = self.load_samples(own, domain=domain, seed=self.suite.seed)
        return loaded

    def answers(self, prompts: Sequence[Sample], top_k: int = TOP_K) -> list[Trajectory]:
        """The target's greedy answers with ``top_k`` probabilities per token, in the order of ``prompts``; kept in the cache by batch."""
        from harness.answers.collect import collect

        todo = [s for s in prompts if (top_k, s.id) not in self._answers]
        if todo:
            note(f"the target answers {len(todo)} training prompts")
        tokens, folder = self.suite.max_tokens, answers_folder(self.pair)
        how: dict[str, Any] = {"max_tokens": tokens, "batch": COLLECT_BATCH, "top_k": top_k, "out": folder}
        found = collect(self.pair, todo, **how, pool=None if self.crew is None else self.crew.pool) if todo else ()
        for trajectory in counted(found, len(todo), "answered"):
            self._answers[top_k, trajectory.sample_id] = trajectory
            self.check()
        return [self._answers[top_k, s.id] for s in prompts]
