"""The work of a run in this process: one thing after the other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from harness.core.records import Generation, Place, Record, Sample, Trajectory
from harness.run.chain_task import Crew
from harness.run.context import Context, Prompt, Replayed, Until, generate_job
from harness.run.counting import replayed
from harness.run.jobs import calibrate, decode_job, time_reference, warm_up
from harness.suite.cells import Cell
from harness.suite.plan import Job


class ThisProcess:
    """An :class:`harness.run.context.Executor` without workers."""

    width = 1
    crew: Crew | None = None

    def answer(self, context: Context, samples: Sequence[Sample], **sampled: Any) -> Iterable[Trajectory]:
        """The target's answers, made in batches."""
        return context.engine.answer(context.pair, samples, context.max_tokens, **sampled)

    def placed(self, trajectory: Trajectory) -> Place | None:
        """Here."""
        return None

    def calibrate(self, context: Context, cells: Sequence[Cell]) -> None:
        """Measure every drafter whose costs are asked for."""
        calibrate(context, cells)

    def warm_up(self, context: Context, jobs: Sequence[Job], sample: Sample) -> None:
        """Run each kind of cell once untimed, then the reference clock."""
        warm_up(context, jobs)
        time_reference(context, sample, "calibration")

    def decode(self, context: Context, prompts: Sequence[Prompt], until: Until, sample: Sample | None = None) -> Iterator[Record]:
        """Job by job; the reference clock runs after each quarter of the prompts."""
        checkpoints = {len(prompts) * part // 4 for part in (1, 2, 3)}
        for i, (_, jobs) in enumerate(prompts):
            for job in jobs:
                if until():
                    return
                if job.key not in context.store:
                    record = decode_job(context, job)
                    context.store.append(record)
                    yield record
            if i in checkpoints and sample is not None and not until():
                time_reference(context, sample, f"{i + 1} of {len(prompts)} prompts")

    def look(self, context: Context, sample: Sample, after: str) -> None:
        """Run the reference clock."""
        time_reference(context, sample, after)

    def ties(self, context: Context, answers: Sequence[Trajectory]) -> list[int]:
        """Per answer, the positions where another machine may flip the target's favourite."""
        return context.engine.ties(context.pair, answers)

    def replay(self, context: Context, groups: Sequence[Sequence[Job]], until: Until) -> Iterator[Replayed]:
        """Group by group."""
        for number, group in enumerate(groups):
            if until():
                return
            started = time.perf_counter()
            with context.stages("replay"):
                records = replayed(context, group)
            yield Replayed(group=number, records=tuple(records), seconds=time.perf_counter() - started)

    def check(self, context: Context, job: Job, max_tokens: int) -> Generation:
        """Decode one job for real."""
        generation, _ = generate_job(context, job, max_tokens)
        return generation
