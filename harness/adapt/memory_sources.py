"""Where a memory's answers come from: folders of ``harness collect``, runs and sessions. Nothing said to a test prompt is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.adapt.training.failures import Case, FailureStore
from harness.answers.collect import read_answers
from harness.core import journal
from harness.core.errors import HarnessError
from harness.core.files import typed
from harness.core.paths import found_memory, memory_path
from harness.core.protocols import LoadedPair
from harness.core.records import Sample
from harness.datasets.splits import leaks, refuse_leaks
from harness.decode.accept import common_prefix
from harness.decode.memory import Answer, Base, Memory, grow_memory, pair_memory, write_memory
from harness.results.manifest import read_manifest
from harness.results.reading import read_records
from harness.suite.suite import recorded_suite

if TYPE_CHECKING:
    from harness.decode.drafters import MemoryDrafter

GROWTH = 50
"""A growing memory is made anew once a fiftieth of it is new: each token then costs the same, however large it is."""
FIRST_TOKENS = 256
"""Tokens that a small memory waits for before it is made anew."""


def answers_in_folder(folder: Path, pair: LoadedPair) -> list[Answer]:
    """Answers that ``harness collect`` wrote.

    Raises:
        HarnessError: none there, or another target's.
    """
    words = UserWords(pair)
    found = []
    for stored in read_answers(folder, pair.target_hash):
        sample = Sample(id=stored.sample_id, domain=stored.domain, prompt=words(stored.prompt_tokens), split="train")
        found.append(Answer.of(sample, stored.prompt_tokens, stored.rollout.tokens))
    return found


def answers_of_run(folder: Path, pair: LoadedPair, load_samples: Callable[..., list[Sample]]) -> list[Answer]:
    """The target's own greedy answers of a run to prompts of the train split.

    Args:
        folder: run folder.
        pair: loaded pair.
        load_samples: reads the run's datasets, as :func:`harness.datasets.load_samples`.

    Raises:
        HarnessError: the run is of another target, or all its prompts are kept for evaluation.
    """
    manifest = read_manifest(folder)
    if manifest.models.get("target") != pair.target_hash:
        raise HarnessError(f"the run {folder.name} is of another target than {pair.name!r}", "Name the pair that the run was made with.")
    suite = recorded_suite(manifest.suite)
    samples = [s for domain, spec in suite.domains.items() for s in load_samples(spec, domain=domain, seed=suite.seed)]
    train = {sample.id: sample for sample in samples if sample.split == "train"}
    said = {r.sample_id: r.tokens for r in read_records(folder) if r.drafter is None and r.temperature == 0 and r.tokens}
    if not train.keys() & said.keys():
        raise HarnessError(
            f"the run {folder.name} has answers to evaluation prompts only, and none of those may be remembered",
            "Run a suite whose domains have `split: train`, or collect answers to training prompts with `harness collect`.",
        )
    return [Answer.of(train[i], pair.encode(train[i].asked), tokens) for i, tokens in said.items() if i in train]


def answers_of_session(folder: Path, pair: LoadedPair) -> list[Answer]:
    """What the target said in a session where the draft was wrong; what resembles an evaluation prompt was never trainable.

    Raises:
        HarnessError: no failure cases there, or another pair's.
    """
    path = folder / "failures.jsonl"
    if not path.is_file():
        raise HarnessError(f"no failure cases in {folder}", "Name the folder of a session that has drafted.")
    cases = [case for case in FailureStore(path) if case.split != "test"]
    for case in cases:
        _same_tokenizer(case, pair, path)
    samples = [Sample(id=c.sample_id, domain=c.domain, prompt=c.prompt, split=c.split) for c in cases]
    return [Answer.of(sample, case.prompt_tokens, case.output_tokens) for sample, case in zip(samples, cases, strict=True)]


def _same_tokenizer(case: Case, pair: LoadedPair, path: Path) -> None:
    """Refuse ids of another pair: they must be known, and end as this pair's prompts do."""
    ids = pair.encode([*case.prompt_tokens, *case.output_tokens][-pair.context_tokens :])
    if ids and pair.encode(case.prompt)[-2:] != list(case.prompt_tokens[-2:]):
        raise HarnessError(f"{path} is of another pair than {pair.name!r}", "Name the folder of a session on this pair.")


def build_memory(pair: LoadedPair, answers: Iterable[Answer], evaluation: Sequence[Sample], *, path: Path, **limits: Any) -> Memory:
    """Add answers to the memory at ``path``.

    Raises:
        HarnessError: an answer is to an evaluation prompt, or to one near it.
    """
    answers = list(answers)
    refuse_leaks(_asked(answers), evaluation)
    return grow_memory(path, pair.name, pair.target_hash, answers, **limits)


def condense_memory(
    pair: LoadedPair, answers: Iterable[Answer], evaluation: Sequence[Sample], training: Sequence[Sample], *, path: Path, most_states: int
) -> Memory:
    """Replace the memory at ``path`` by the most useful counts over many answers, which are not kept.

    Nothing can be taken out of them later, so answers to ``training`` prompts, on which routers may be trained, are left out now.

    Raises:
        HarnessError: an answer is to an evaluation prompt, or to one near it, or none is left.
    """
    answers = list(answers)
    asked = _asked(answers)
    refuse_leaks(asked, evaluation)
    near = {own for _, own in leaks(training, asked)}
    base = Base.of((a for a in answers if a.sample_id not in near), most_states)
    return write_memory(path, pair.name, pair.target_hash, [], base=base)


def _asked(answers: Iterable[Answer]) -> list[Sample]:
    return [Sample(id=a.sample_id, domain=a.domain, prompt=a.prompt, split="train") for a in answers]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A pair's memory without its answers to some prompts, which can then be replayed with it: the same here and on a worker."""

    hash: str
    """:attr:`Memory.hash` of the whole one."""
    left_out: frozenset[str]
    """``Answer.sample_id`` of what is left out."""

    @classmethod
    def of(cls, pair: LoadedPair, samples: Sequence[Sample]) -> HeldOut | None:
        """The pair's memory without answers to these prompts, or to any near one of them; None where it has nothing else, or no memory."""
        if found_memory(pair.name) is None:
            return None
        memory = pair_memory(pair)
        known = memory.samples()
        left_out = frozenset(near for _, near in leaks(samples, known))
        return cls(hash=memory.hash, left_out=left_out) if left_out < {sample.id for sample in known} else None

    def drafter(self, pair: LoadedPair) -> MemoryDrafter:
        """What drafts from it.

        Raises:
            HarnessError: the memory is another one here, or nothing is left of it.
        """
        from harness.decode.making import memory_drafter

        memory = pair_memory(pair)
        if memory.hash != self.hash:
            raise HarnessError(f"the memory of {pair.name!r} is not the client's", "Copy the client's memory to that machine's cache.")
        return memory_drafter(memory.without(self.left_out))


class UserWords:
    """Finds the user's words in the tokens of a prompt: what the chat template adds is the same around every one.

    Args:
        pair: the pair whose template it is.
    """

    def __init__(self, pair: LoadedPair) -> None:
        self._pair = pair
        one, two = pair.encode("a"), pair.encode("7")
        self._head = common_prefix(one, two)
        self._tail = common_prefix(one[::-1], two[::-1])

    def __call__(self, prompt_tokens: Sequence[int]) -> str:
        """The words of one prompt."""
        return str(self._pair.decode(prompt_tokens[self._head : len(prompt_tokens) - self._tail]))


class Growth:
    """Answers that wait to become part of a pair's memory, on disk as soon as they are said.

    Args:
        pair: loaded pair.
        path: journal of what waits.
    """

    def __init__(self, pair: LoadedPair, path: Path) -> None:
        self._pair, self._path = pair, path
        journal.repair_tail(path)
        self._tokens = sum(len(answer.tokens) for answer in self._waiting())

    def add(self, answer: Answer) -> None:
        """Keep an answer; the memory is made anew when enough of them wait."""
        journal.append(self._path, [dataclasses.asdict(answer)])
        self._tokens += len(answer.tokens)
        path = memory_path(self._pair.name)
        known = Memory(path).info.tokens if path.is_file() else 0
        if self._tokens >= max(known // GROWTH, FIRST_TOKENS):
            self.finish()

    def finish(self) -> None:
        """Make the memory anew with everything that waits."""
        if self._tokens:
            grow_memory(memory_path(self._pair.name), self._pair.name, self._pair.target_hash, self._waiting())
            self._path.unlink()
            self._tokens = 0

    def _waiting(self) -> Iterator[Answer]:
        for number, row in enumerate(journal.read(self._path), start=1):
            yield typed(Answer, row, f"{self._path}:{number}", advice="Delete that line.")
