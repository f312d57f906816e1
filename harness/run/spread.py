"""The work of a run on the workers of a cluster. The client alone writes the store: what a worker did is stored once, or done again."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.adapt.routers.on_workers import bare, described
from harness.cluster import sent_files as files
from harness.cluster.answering import ClusterPool
from harness.cluster.client import Cluster
from harness.cluster.pairs import PairSpec
from harness.cluster.shares import shares
from harness.core.errors import HarnessError
from harness.core.progress import note
from harness.core.records import Generation, Place, Record, Sample, Trajectory
from harness.decode.length import Costs
from harness.results.work import cost_label
from harness.run import remote
from harness.run.chain_task import Crew
from harness.run.context import Context, Prompt, Replayed, Until, costs_now
from harness.run.counting import answer
from harness.run.crew import ClusterCrew
from harness.run.engine import answers_by
from harness.run.trained import Trained
from harness.suite.cells import Cell
from harness.suite.plan import Job, settings_of

TIE_PROMPTS = 8
SAME_PROMPTS = 2
"""Prompts that every kind of machine must count alike before counts pool."""


class OnCluster:
    """An :class:`harness.run.context.Executor` on workers.

    Args:
        cluster: whose.
        spec: the run's pair.
        one_kind: clock on one kind of machine only: where clocks decide what is clocked next, they must be comparable.

    Attributes:
        sources: SHA-256 of files that workers may lack to where they are here.
        until: no more answers are asked for once this is true.
    """

    def __init__(self, cluster: Cluster, spec: PairSpec, *, one_kind: bool = False) -> None:
        self.cluster, self.one_kind = cluster, one_kind
        self.sources: dict[str, Path] = {}
        self.until: Until = lambda: False
        self._places: dict[tuple[int, ...], Place] = {}
        self._spec, self._cells = spec, tuple[Cell, ...]()
        self._alike: set[str] = set()
        self._setup: tuple[Trained, remote.Setup] | None = None
        self.crew: Crew | None = ClusterCrew(cluster, spec)

    @property
    def width(self) -> int:
        """Prompts that are decoded at the same time: one per worker."""
        return max(1, len(self.cluster.workers))

    def answer(self, context: Context, samples: Sequence[Sample], **sampled: Any) -> Iterable[Trajectory]:
        """The target's answers, made in batches by all workers."""
        pool = ClusterPool(self.cluster, self._spec, until=self.until, seen=lambda reply: self._check_kind(context, reply.machine))
        self._places = pool.places
        return answers_by(context.pair, samples, context.max_tokens, pool=pool, **sampled)

    def placed(self, trajectory: Trajectory) -> Place | None:
        """The worker that answered; None where the answer was in the cache."""
        return self._places.get(tuple(trajectory.prompt_tokens))

    def calibrate(self, context: Context, cells: Sequence[Cell]) -> None:
        """Every worker measures its own costs. Those of the run, for ``auto`` along answers and for predictions, are one worker's."""
        self._cells = tuple(dict.fromkeys(cells))
        calls = [(self.setup(context), self._cells)] * self.width
        replies = self.cluster.all(remote.learned, calls, sources=self.sources, until=self.until)
        if not replies:
            return
        kinds = Counter(reply.machine for reply in replies)
        known, reference = context.facts.measured.calibration, context.facts.measured.reference_machine
        if reference is None or not any(r.machine == reference and r.method == "decode" for r in context.store.records):
            reference, known = max(kinds, key=lambda kind: kinds[kind]), {}
        for reply in replies:
            self._learn(context, reply.value)
        first: Mapping[str, Any] = next((reply.value.facts["calibration"] for reply in replies if reply.machine == reference), {})
        calibration = {**first, **known}
        context.costs |= {
            label: Costs(c=facts["c"], v=tuple(facts["v"]), once=facts.get("once", 0.0)) for label, facts in calibration.items()
        }
        context.facts.update(reference_machine=reference, calibration=calibration)
        note(f"{len(replies)} workers on {len(kinds)} kind{'s' if len(kinds) > 1 else ''} of machine, {reference}")
        for reply in replies:
            self._check_kind(context, reply.machine)

    def warm_up(self, context: Context, jobs: Sequence[Job], sample: Sample) -> None:
        """Every worker does, with its first prompt."""

    def decode(self, context: Context, prompts: Sequence[Prompt], until: Until, sample: Sample | None = None) -> Iterator[Record]:
        """A prompt with all of its jobs is one task: its records are stored together."""
        todo = [(s, left) for s, jobs in prompts if (left := [job for job in jobs if job.key not in context.store])]
        if not todo:
            return
        setup = self.setup(context)
        calls = [(setup, self._cells, context.prompts[s.id], jobs, _known(context, s)) for s, jobs in todo]
        only = context.facts.measured.reference_machine if self.one_kind else None
        with context.stages("decode"):
            for _, reply in self.cluster.each(remote.decoded, calls, sources=self.sources, only=only, until=until):
                records, learned = reply.value
                self._check_kind(context, reply.machine)
                context.store.extend(records)
                self._learn(context, learned)
                self._remember(context, records)
                yield from records

    def look(self, context: Context, sample: Sample, after: str) -> None:
        """Every worker looks after its own speed."""

    def ties(self, context: Context, answers: Sequence[Trajectory]) -> list[int]:
        """Per answer, the positions where another machine may flip the target's favourite."""
        parts = [[bare(t) for t in answers[at : at + TIE_PROMPTS]] for at in range(0, len(answers), TIE_PROMPTS)]
        replies = self.cluster.all(remote.ties, [(self.setup(context), part) for part in parts], sources=self.sources)
        return [n for reply in replies for n in reply.value]

    def replay(self, context: Context, groups: Sequence[Sequence[Job]], until: Until) -> Iterator[Replayed]:
        """Groups in parts of several prompts."""
        parts = [(number, *part) for number, group in enumerate(groups) for part in self._parts(context, group, len(groups))]
        setup = self.setup(context)
        calls = [(setup, jobs, answers, _costs(context, jobs)) for _, jobs, answers in parts]
        with context.stages("replay"):
            for number, reply in self.cluster.each(remote.replayed_jobs, calls, sources=self.sources, until=until):
                self._check_kind(context, reply.machine)
                records, seconds = reply.value
                yield Replayed(group=parts[number][0], records=tuple(records), seconds=seconds)

    def check(self, context: Context, job: Job, max_tokens: int) -> Generation:
        """Decode one job for real."""
        call = (self.setup(context), context.prompts[job.sample.id], job, max_tokens)
        (reply,) = self.cluster.all(remote.checked, [call], sources=self.sources)
        found: Generation = reply.value
        return found

    def setup(self, context: Context) -> remote.Setup:
        """What workers are told of the run."""
        trained = context.trained
        if self._setup is None or self._setup[0] is not trained:
            setup = remote.Setup(
                run=uuid.uuid4().hex,
                spec=self._spec,
                max_tokens=context.max_tokens,
                clock_tokens=context.clock_tokens,
                clock=context.clock,
                profile=context.profile,
                memory=context.store.manifest.models.get("memory"),
                trained=trained.bank is not None,
                adapters=described(trained.folders, self.sources),
                routers=_routers(trained, trained.folders, self.sources),
            )
            self._setup = (trained, setup)
        return self._setup[1]

    # --- parts ---

    def _parts(self, context: Context, group: Sequence[Job], groups: int) -> Iterator[tuple[list[Job], list[Trajectory]]]:
        """Jobs of a group that one task replays, and the answers to their prompts; prompts are kept whole."""
        by_prompt: dict[str, list[Job]] = {}
        for job in group:
            by_prompt.setdefault(job.sample.id, []).append(job)
        prompts = list(by_prompt.values())
        answers = [bare(answer(context, jobs[0])) for jobs in prompts]
        for share in shares(answers, self.width, groups):
            yield [job for i in share for job in prompts[i]], [answers[i] for i in share]

    def _learn(self, context: Context, learned: remote.Learned) -> None:
        """Keep what a worker knows of its machine; the file is written only where there is news."""
        known = context.facts.measured
        if known.workers.get(learned.calibration) == learned.facts:
            return
        context.facts.update(
            workers={**known.workers, learned.calibration: dict(learned.facts)},
            machines={**known.machines, learned.facts["machine"]: dict(learned.machine)},
        )

    def _remember(self, context: Context, records: Sequence[Record]) -> None:
        """Baselines for replay, and clocks of the reference machine for ``auto`` along answers."""
        for record in records:
            if record.machine == context.facts.measured.reference_machine:
                context.timings.add(record)
            if record.drafter is None and record.temperature == 0 and record.tokens is not None:
                context.baselines.setdefault(record.sample_id, record.tokens)

    def _check_kind(self, context: Context, machine: str) -> None:
        """Let a kind of machine in where a few prompts count there as on another one.

        Raises:
            HarnessError: they do not, so that counts must not pool.
        """
        if machine in self._alike:
            return
        if context.facts.measured.reference_machine is None:
            context.facts.update(reference_machine=machine)
        other = next(iter(self._alike), machine)
        if other != machine:
            samples = list(context.prompts)[:SAME_PROMPTS]
            calls = [(self.setup(context), context.prompts[sample]) for sample in samples]
            ours, theirs = (self.cluster.all(remote.counted, calls, sources=self.sources, only=kind) for kind in (other, machine))
            for sample, here, there in zip(samples, ours, theirs, strict=True):
                if here.value != there.value:
                    raise HarnessError(
                        f"machines of the kinds {other!r} and {machine!r} count {sample} differently, so their counts must not pool",
                        "Keep workers of one kind, and resume.",
                    )
            note(f"{len(samples)} prompts have equal counts on {machine}")
        self._alike.add(machine)


def _costs(context: Context, jobs: Sequence[Job]) -> dict[str, Any]:
    """Costs that the jobs' ``auto`` goes by."""
    cells = [job.cell for job in jobs if job.cell.k == "auto"]
    return {cost_label(cell.drafter, settings_of(cell)): costs_now(context, cell) for cell in cells}


def _known(context: Context, sample: Sample) -> Trajectory | None:
    """The target's answer from a batch, where there is one."""
    found = context.answers.get((sample.id, 0.0))
    return None if found is None else bare(found)


def _routers(trained: Trained, folders: Mapping[str, Path], sources: dict[str, Path]) -> tuple[tuple[Any, Any, str | None], ...]:
    """Routers as files for workers; ``sources`` learns where they are here."""
    from harness.adapt.routers.routed import hash_adapters, save_router

    found: list[tuple[Any, Any, str | None]] = []
    for (recipe, k), router in trained.routers.items():
        digest = None
        if router is not None:
            path = files.kept(uuid.uuid4().hex)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_router(router, path, run_id="cluster", adapter_hashes=hash_adapters(folders))
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            os.replace(path, files.kept(digest))
            sources[digest] = files.kept(digest)
        found.append((recipe, k, digest))
    return tuple(found)
