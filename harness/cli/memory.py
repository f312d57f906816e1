"""``harness memory``: build, list and show what a pair's target has said before, which the drafter ``memory`` proposes again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli.generate import PAIR_HELP, OfflineOption
from harness.cli.run import ResultsOption
from harness.core.terminal import say

if TYPE_CHECKING:
    from harness.core.records import Sample
    from harness.decode.memory import Memory

memory_app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="markdown")

EVALUATED = ("humaneval", "wordproblems", "chat", "structured")
"""Datasets whose test prompts no memory may hold answers to, whatever suite is run."""

PairArgument = Annotated[str, typer.Argument(metavar="PAIR", help=PAIR_HELP)]


@memory_app.command("build")
def build(
    pair: PairArgument,
    folders: Annotated[list[Path] | None, typer.Option("--from", metavar="DIR", help="Answers of `harness collect`; repeatable.")] = None,
    runs: Annotated[list[str] | None, typer.Option("--run", metavar="RUN", help="A run on training prompts; repeatable.")] = None,
    sessions: Annotated[list[Path] | None, typer.Option("--session", metavar="DIR", help="Folder of a session; repeatable.")] = None,
    against: Annotated[list[str] | None, typer.Option(metavar="SUITE", help="Refuse answers to this suite's prompts; repeatable.")] = None,
    most_tokens: Annotated[int, typer.Option(min=1, help="Answer tokens kept; the oldest answers go when there are more.")] = 2_000_000,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew instead of adding to the pair's memory.")] = False,
    condense: Annotated[
        int | None,
        typer.Option(metavar="COUNTS", min=1, help="Begin anew, and keep so many counts, the most useful, instead of the answers."),
    ] = None,
    results: ResultsOption = Path("results"),
    offline: OfflineOption = False,
) -> None:
    """Make a pair's memory out of what its target has said, or add to it. Answers to test prompts are refused.

    Example: `harness memory build smollm2 --from answers/`
    """
    from functools import partial

    from harness.core.errors import HarnessError
    from harness.models.naming import pair_name
    from harness.results.manifest import run_folder

    if not (folders or runs or sessions):
        raise HarnessError("nothing to remember", "Give --from with answers of `harness collect`, --run or --session.")
    pair_name(pair)
    run_folders = [run_folder(results, run) for run in runs or []]
    evaluation = _evaluation(against or [], offline)
    from harness.adapt.memory_sources import answers_in_folder, answers_of_run, answers_of_session, build_memory, condense_memory
    from harness.core.paths import memory_path
    from harness.datasets import load_samples
    from harness.models.pair import load_pair

    loaded = load_pair(pair, offline=offline, draft=False)
    answers = [a for folder in folders or [] for a in answers_in_folder(folder, loaded)]
    answers += [a for folder in run_folders for a in answers_of_run(folder, loaded, partial(load_samples, offline=offline))]
    answers += [a for folder in sessions or [] for a in answers_of_session(folder, loaded)]
    path = memory_path(loaded.name)
    if condense is not None:
        training = _shipped("train", offline)
        say(_line(condense_memory(loaded, answers, evaluation, training, path=path, most_states=condense)))
        return
    if fresh:
        path.unlink(missing_ok=True)
    say(_line(build_memory(loaded, answers, evaluation, path=path, most_tokens=most_tokens)))


@memory_app.command("list")
def list_memories() -> None:
    """Show every pair's memory.

    Example: `harness memory list`
    """
    from harness.core.errors import HarnessError
    from harness.core.paths import memory_path, shipped_memories
    from harness.decode.memory import Memory

    own = {path.stem: path for path in memory_path("any").parent.glob("*.safetensors")}
    shipped = {path.stem: path for path in shipped_memories()}
    for name, path in sorted({**shipped, **own}.items()):
        try:
            say(_line(Memory(path)) + ("" if name in own else ", comes with the package"))
        except HarnessError as error:
            say(f"{path.stem}: {error.problem}")


@memory_app.command("show")
def show(pair: PairArgument) -> None:
    """Show what a pair's memory holds.

    Example: `harness memory show smollm2`
    """
    from harness.core.drafter_kinds import no_memory
    from harness.core.paths import found_memory
    from harness.decode.memory import Memory
    from harness.models.naming import pair_name

    name = pair_name(pair)
    path = found_memory(name)
    if path is None:
        raise no_memory(name)
    memory = Memory(path)
    say(f"{_line(memory)}\nfile:    {path}\nsha256:  {memory.hash}\ntarget:  {memory.info.target_hash}")
    answers, tokens = Counter[str](), Counter[str]()
    for answer in memory.answers():
        answers[answer.domain] += 1
        tokens[answer.domain] += len(answer.tokens)
    for domain, count in answers.most_common():
        say(f"{domain:<12} {count} answers, {tokens[domain]} tokens")
    if memory.base is not None:
        behind = Counter(sample.domain for sample in memory.base_samples())
        say(f"base:    {len(memory.base.counts.keys)} counts; prompts: {', '.join(f'{n} {d}' for d, n in behind.most_common())}")


def _line(memory: Memory) -> str:
    info, size = memory.info, memory.file_bytes
    base = f", on counts over {info.base_answers} answers, {info.base_tokens} tokens" if memory.base else ""
    each = size / (info.tokens + info.base_tokens)
    return f"{info.pair}: {info.answers} answers, {info.tokens} tokens{base}, {size / 2**20:.1f} MiB ({each:.0f} bytes per token)"


def _evaluation(suites: list[str], offline: bool) -> list[Sample]:
    """Test prompts of the datasets that ship, and all prompts of these suites."""
    from harness.datasets import load_samples
    from harness.suite.suite import load_suite

    found = _shipped("test", offline)
    for suite in map(load_suite, suites):
        for domain, spec in suite.domains.items():
            found += load_samples(spec, domain=domain, seed=suite.seed, offline=offline)
    return found


def _shipped(split: Literal["train", "test"], offline: bool) -> list[Sample]:
    """Prompts of the datasets that ship."""
    from harness.datasets import DatasetSpec, load_samples

    specs = [(name, DatasetSpec(dataset=name, split=split)) for name in EVALUATED]  # type: ignore[arg-type]
    return [sample for name, spec in specs for sample in load_samples(spec, domain=name, offline=offline)]
