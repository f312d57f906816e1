"""The memory of a pair: its target's answers and the counts over them, one file that is opened by memory map and never unpickled.

It drafts for nothing (:mod:`harness.decode.suffix_counts`) and belongs to one target. Answers are kept as they are, so that more can be
added, a foreign one found, and the oldest dropped; the counts are made anew from them each time. A memory may stand on a base: the
most useful counts over many more answers, which are not kept.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import mmap
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.core import files
from harness.core.drafter_kinds import no_memory
from harness.core.errors import HarnessError
from harness.core.lock import wait_for_lock
from harness.core.paths import found_memory, memory_path
from harness.core.protocols import LoadedPair
from harness.core.records import SCHEMA_VERSION, Sample
from harness.decode.suffix_counts import END, LONGEST, SuffixCounts, Walker, count_suffixes
from harness.models.tensors import read_header

MOST_TOKENS = 2_000_000
"""Answer tokens a memory holds; the oldest answers go when more come."""
AGAIN = "Make it again with `harness memory build`."
_COUNTS = {"keys": "uint64", "following": "int32", "links": "int32", "shares": "uint16"}
_ARRAYS = {**_COUNTS, "text": "int32", "starts": "int64", "said": "int64", "prompts": "uint8"}
"""Arrays of the file and their types: the counts, then the answers (see :func:`count_suffixes`) and their prompts as JSON lines."""
_BASE = "base_"
_BASE_ARRAYS = {_BASE + name: dtype for name, dtype in {**_COUNTS, "prompts": "uint8"}.items()}
"""Arrays of a base, in files that have one; its prompts are compressed."""
_MOST_PROMPTS = 2**28
"""Largest size of a base's prompts, unpacked."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of the target."""

    sample_id: str
    """``Sample.id`` of its prompt."""
    domain: str
    """``Sample.domain``."""
    prompt: str
    """The user's words: what is compared with evaluation prompts."""
    before: tuple[int, ...]
    """The prompt's last tokens, under the chat template: what an answer's first words follow."""
    tokens: tuple[int, ...]
    """The answer."""

    @classmethod
    def of(cls, sample: Sample, prompt_tokens: Sequence[int], tokens: Sequence[int]) -> Answer:
        """The answer to a sample."""
        before, said = tuple(map(int, prompt_tokens[-LONGEST:])), tuple(map(int, tokens))
        return cls(sample_id=sample.id, domain=sample.domain, prompt=sample.prompt, before=before, tokens=said)


@dataclass(frozen=True, kw_only=True)
class MemoryInfo:
    """What the file says of itself."""

    pair: str
    """Name of the pair whose target spoke."""
    target_hash: str
    """``Pair.target_hash``: the memory is of use to no other target, nor to another tokenizer."""
    answers: int
    """Number of answers."""
    tokens: int
    """Their tokens."""
    base_answers: int = 0
    """Number of answers behind the base."""
    base_tokens: int = 0
    """Their tokens."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """Counts over answers that are not kept."""

    counts: SuffixCounts
    """The most useful ones."""
    prompts: np.ndarray
    """(bytes,) uint8: the different prompts as JSON lines, compressed by zlib."""
    answers: int
    """Number of answers that were counted."""
    tokens: int
    """Their tokens."""

    @classmethod
    def of(cls, answers: Iterable[Answer], most_states: int) -> Base:
        """The base of these answers, with so many states at most.

        Raises:
            HarnessError: no answers.
        """
        kept, total = _newest(answers, None)
        if not kept:
            raise _nothing()
        lines = "".join(dict.fromkeys(_line(a) for a in kept)).encode()
        packed = np.frombuffer(zlib.compress(lines, 9), dtype=np.uint8)
        return cls(counts=count_suffixes(*_texts(kept), most_states), prompts=packed, answers=len(kept), tokens=total)


class Memory:
    """A memory that is open.

    Args:
        path: its file.

    Raises:
        HarnessError: no memory there, a damaged one, or one of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path, advice=AGAIN)
        about = files.parse_json(header.metadata.get("memory", "{}"), str(path), advice=AGAIN)
        self.info: MemoryInfo = files.typed(MemoryInfo, files.this_version(about, str(path), advice=AGAIN), str(path), advice=AGAIN)
        self._arrays = _map(path)
        own = self._counts()
        self.base = self._read_base()
        self.walker = Walker(own, *([self.base.counts] if self.base else []))
        self._without = {frozenset[str](): self.walker}

    def _read_base(self) -> Base | None:
        if _BASE + "keys" not in self._arrays:
            return None
        about = self.info.base_answers, self.info.base_tokens
        return Base(counts=self._counts(_BASE), prompts=self._arrays[_BASE + "prompts"], answers=about[0], tokens=about[1])

    def _counts(self, prefix: str = "") -> SuffixCounts:
        """Refuse what the walk could leave; drafts are verified by the target, so wrong counts cost time and nothing else."""
        own = {name: self._arrays[prefix + name] for name in _COUNTS}
        states, links = len(own["keys"]), own["links"]
        sound = {len(array) for array in own.values()} == {states} and len(self._arrays["starts"]) == len(self._arrays["said"])
        if not sound or (states and (links.min() < -1 or links.max() >= states or own["following"].min() < 0)):
            raise HarnessError(f"{self.path} is damaged: its counts do not fit each other", AGAIN)
        return SuffixCounts(**own)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the file: the same answers in the same order give the same one."""
        return files.sha256(self.path, advice=AGAIN)

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def answers(self) -> list[Answer]:
        """Every answer that is kept, oldest first."""
        with files.reading(self.path, advice=AGAIN):
            lines = bytes(self._arrays["prompts"]).decode().splitlines()
            text, starts, said = (self._arrays[name] for name in ("text", "starts", "said"))
            ends = np.append(starts, len(text))[1:] - 1
            found = []
            for line, start, first, end in zip(lines, starts.tolist(), said.tolist(), ends.tolist(), strict=True):
                sample_id, domain, prompt = json.loads(line)
                before, tokens = text[start : start + first].tolist(), text[start + first : end].tolist()
                found.append(Answer(sample_id=sample_id, domain=domain, prompt=prompt, before=tuple(before), tokens=tuple(tokens)))
        return found

    def samples(self) -> list[Sample]:
        """The prompts behind all that it knows, for the check that none of them is evaluated."""
        with files.reading(self.path, advice=AGAIN):
            own = [_sample(line) for line in bytes(self._arrays["prompts"]).decode().splitlines()]
        return [*own, *self.base_samples()]

    def base_samples(self) -> list[Sample]:
        """The prompts behind the base; none where there is no base."""
        with files.reading(self.path, advice=AGAIN):
            return [_sample(line) for line in _unpacked(self.base.prompts).decode().splitlines()] if self.base else []

    def without(self, sample_ids: frozenset[str]) -> Walker:
        """Counts over the answers to all prompts but these, without the base if one of them is behind it; kept until others are asked for.

        Raises:
            HarnessError: nothing else is left.
        """
        if sample_ids not in self._without:
            kept = [answer for answer in self.answers() if answer.sample_id not in sample_ids]
            base = [self.base.counts] if self.base and sample_ids.isdisjoint(s.id for s in self.base_samples()) else []
            if not kept and not base:
                raise HarnessError(f"{self.path} holds answers to these prompts alone", "Remember answers to other prompts too.")
            self._without = {sample_ids: Walker(count_suffixes(*_texts(kept)), *base)}
        return self._without[sample_ids]

    def require(self, pair_name: str, target_hash: str) -> None:
        """Check that it is the memory of a target.

        Raises:
            HarnessError: it is another's.
        """
        if self.info.target_hash != target_hash:
            raise HarnessError(
                f"the memory in {self.path} is of the target of {self.info.pair!r} ({self.info.target_hash[:12]}), "
                f"not of {pair_name!r} ({target_hash[:12]})",
                f"Make one of this pair: `harness memory build {pair_name} --fresh --from answers/`.",
            )


def pair_memory(pair: LoadedPair) -> Memory:
    """The memory of a loaded pair, opened once until its file changes.

    Raises:
        HarnessError: the pair has none, or it is damaged or another target's.
    """
    path = found_memory(pair.name)
    if path is None:
        raise no_memory(pair.name)
    memory = _opened(path, path.stat().st_mtime_ns)
    memory.require(pair.name, pair.target_hash)
    return memory


@functools.lru_cache(maxsize=4)
def _opened(path: Path, changed: int) -> Memory:
    return Memory(path)


def write_memory(
    path: Path,
    pair_name: str,
    target_hash: str,
    answers: Iterable[Answer],
    *,
    most_tokens: int = MOST_TOKENS,
    base: Base | None = None,
) -> Memory:
    """Make the memory of these answers, oldest first, and replace the file at ``path`` by it.

    An answer that stands there twice is kept once. When there are more than ``most_tokens``, the oldest go.

    Args:
        path: file.
        pair_name: pair whose target spoke.
        target_hash: hash of the target.
        answers: what it said.
        most_tokens: answer tokens kept.
        base: what the memory stands on.

    Raises:
        HarnessError: no answers and no base.
    """
    kept, total = _newest(answers, most_tokens)
    if not kept and base is None:
        raise _nothing()
    text, starts, said = _texts(kept)
    arrays = {**_fields(count_suffixes(text, starts, said)), "text": text, "starts": starts, "said": said}
    arrays["prompts"] = np.frombuffer("".join(map(_line, kept)).encode(), dtype=np.uint8)
    info = MemoryInfo(pair=pair_name, target_hash=target_hash, answers=len(kept), tokens=total)
    if base is not None:
        arrays |= {_BASE + name: array for name, array in {**_fields(base.counts), "prompts": base.prompts}.items()}
        info = dataclasses.replace(info, base_answers=base.answers, base_tokens=base.tokens)
    from safetensors.numpy import save

    about = json.dumps({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(info)})
    files.write_atomic(path, save(arrays, {"memory": about}))
    return Memory(path)


def _fields(counts: SuffixCounts) -> dict[str, np.ndarray]:
    return {field.name: getattr(counts, field.name) for field in dataclasses.fields(counts)}


def _nothing() -> HarnessError:
    return HarnessError("a memory needs at least one answer", "Collect some with `harness collect`.")


def _line(answer: Answer) -> str:
    return json.dumps([answer.sample_id, answer.domain, answer.prompt]) + "\n"


def _sample(line: str) -> Sample:
    sample_id, domain, prompt = json.loads(line)
    return Sample(id=sample_id, domain=domain, prompt=prompt, source="memory", split="train")


def _unpacked(prompts: np.ndarray) -> bytes:
    """JSON lines of a base, of a bounded size."""
    reader = zlib.decompressobj()
    found = reader.decompress(bytes(prompts), _MOST_PROMPTS)
    if not reader.eof:
        raise zlib.error("cut off, or larger than a memory's prompts can be")
    return found


def grow_memory(path: Path, pair_name: str, target_hash: str, answers: Iterable[Answer], *, most_tokens: int = MOST_TOKENS) -> Memory:
    """Add answers to the memory at ``path``, or begin one there.

    Raises:
        HarnessError: the file is damaged or another target's memory, or there is nothing to begin with.
    """
    with wait_for_lock(path.with_suffix(".lock")):
        known: list[Answer] = []
        base = None
        first = found_memory(pair_name) if path == memory_path(pair_name) else path if path.is_file() else None
        if first is not None and (path.is_file() or Memory(first).info.target_hash == target_hash):
            memory = Memory(first)
            memory.require(pair_name, target_hash)
            known, base = memory.answers(), memory.base
        return write_memory(path, pair_name, target_hash, [*known, *answers], most_tokens=most_tokens, base=base)


def _texts(answers: Sequence[Answer]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Text, starts and tokens of context of answers, as :func:`count_suffixes` takes them."""
    text = np.array([t for a in answers for t in (*a.before, *a.tokens, END)], dtype=np.int32)
    said = np.array([len(a.before) for a in answers], dtype=np.int64)
    lengths = np.array([len(a.before) + len(a.tokens) + 1 for a in answers], dtype=np.int64)
    return text, np.cumsum(lengths) - lengths, said


def _newest(answers: Iterable[Answer], most_tokens: int | None) -> tuple[list[Answer], int]:
    """The newest answers of at most ``most_tokens`` tokens, oldest first, and their number of tokens; empty ones are left out."""
    kept: list[Answer] = []
    total = 0
    for answer in reversed(list(dict.fromkeys(a for a in answers if a.tokens))):
        if most_tokens is not None and total + len(answer.tokens) > most_tokens:
            break
        kept.append(answer)
        total += len(answer.tokens)
    return kept[::-1], total


def _map(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a checked safetensors file, read as they are needed."""
    with files.open_regular(path, advice=AGAIN) as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    base = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:base])
    found = {}
    wanted = _ARRAYS if _BASE + "keys" not in entries else {**_ARRAYS, **_BASE_ARRAYS}
    for name, dtype in wanted.items():
        entry = entries.get(name)
        if entry is None or _TYPES.get(entry["dtype"]) != dtype or len(entry["shape"]) != 1:
            raise HarnessError(f"{path} is no memory: it lacks {name} of type {dtype}", AGAIN)
        found[name] = np.frombuffer(data, dtype=dtype, count=entry["shape"][0], offset=base + entry["data_offsets"][0])
    return found


_TYPES = {"U64": "uint64", "I64": "int64", "I32": "int32", "U16": "uint16", "U8": "uint8"}
"""Names of number types in safetensors."""
