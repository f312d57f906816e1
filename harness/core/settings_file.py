"""A file that says how to decode: every report writes its recommendation as one, commands and sessions take it. Imports no mlx."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from harness.core.errors import HarnessError
from harness.core.limits import DraftLength, Lenience, MinP, Temperature, TopK, TopP, sampling_problem
from harness.core.records import Loop, Rule
from harness.core.text import printable
from harness.core.yamlfile import Strict, read_yaml, validate

Count = Annotated[int, Field(ge=1, le=1_000_000)]


class DraftOptions(Strict):
    """Options of the drafters that have any; the drafter's own where absent."""

    ngram: Count | None = None
    """Lookup: longest suffix to look up."""
    min_ngram: Count | None = None
    """Lookup: shortest suffix that may propose."""
    hybrid_ngram: Count | None = None
    """Hybrid: longest suffix to look up."""
    hybrid_min_ngram: Count | None = None
    """Hybrid: shortest suffix for which lookup replaces the draft."""
    memory_ngram: Count | None = None
    """Memory: longest suffix to look up in the text so far."""
    memory_min_ngram: Count | None = None
    """Memory: shortest suffix to look up there."""
    memory_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Memory: a draft ends where the product of its tokens' shares falls below this."""
    layers: Count | None = None
    """Early exit: layers of the target to keep."""

    @model_validator(mode="after")
    def _ordered(self) -> DraftOptions:
        pairs = ((self.min_ngram, self.ngram), (self.hybrid_min_ngram, self.hybrid_ngram), (self.memory_min_ngram, self.memory_ngram))
        for short, long in pairs:
            if short is not None and (long is None or short > long):
                raise ValueError("the shortest suffix needs a longest one that is at least as long")
        return self

    def given(self) -> dict[str, Any]:
        """Those that the file sets."""
        return self.model_dump(exclude_none=True)


class Decoding(Strict):
    """How to decode, as settings files and session files say it."""

    models: str = "smollm2"
    """Model pair: a configured name, a YAML file, ``TARGET`` or ``TARGET+DRAFT``."""
    drafter: str | None = "generic"
    """A drafter's or an adapter's name, ``router``, one of these two inside a drafter (``hybrid+code``), or null for the target."""
    k: DraftLength | Literal["dynamic", "auto"] | None = None
    """Draft length; the pair's own when absent."""
    rule: Rule = "match"
    """Acceptance rule, ``match`` or ``rejection``; the second needs a temperature above 0."""
    temperature: Temperature = 0.0
    """Sampling temperature; 0 is greedy."""
    top_p: TopP = 1.0
    """Sample from the likeliest tokens with this mass; 1 is all. Target and draft are filtered alike, so answers stay exact."""
    top_k: TopK = 0
    """Sample from this many likeliest tokens; 0 is all."""
    min_p: MinP = 0.0
    """Leave out tokens less likely than this part of the likeliest one."""
    lenience: Lenience = 1.0
    """Above 1 drafted tokens are accepted with probability min(1, lenience p/q): lossy, and needs rule ``rejection``."""
    options: DraftOptions = Field(default_factory=DraftOptions)
    """Options of the drafter."""

    @model_validator(mode="after")
    def _sampling(self) -> Decoding:
        problem = sampling_problem(rule=self.rule, temperature=self.temperature, lenience=self.lenience, **self.filters())
        if problem is not None:
            raise ValueError(problem)
        return self

    def filters(self) -> dict[str, Any]:
        """What narrows the choice of tokens."""
        return {"top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}


class DecodeSettings(Decoding):
    """A settings file, such as the ``settings.yaml`` that every report comes with."""

    loop: Loop = "own"
    """Whose loop decodes, ``own`` (this project's) or ``mlx-lm``, which sessions do not run."""

    def replace(self, **changes: Any) -> DecodeSettings:
        """A checked copy; None changes nothing.

        Raises:
            HarnessError: a wrong value.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        try:
            return DecodeSettings.model_validate({**self.model_dump(), **given})
        except ValidationError as error:
            first = error.errors()[0]
            where = f"{first['loc'][0]}: " if first["loc"] else ""
            raise HarnessError(
                f"{where}{first['msg'].removeprefix('Value error, ')}", "Change the option, or the settings file."
            ) from error

    def for_session(self) -> dict[str, Any]:
        """Keys of a session file that these settings replace.

        Raises:
            HarnessError: mlx-lm's loop.
        """
        if self.loop == "mlx-lm":
            raise HarnessError("the settings ask for mlx-lm's loop, and sessions decode with this project's own", "Use `harness generate`.")
        return self.model_dump(exclude={"loop"})

    def text(self, comment: str) -> str:
        """The file, with a comment on top."""
        later = ("top_p", "top_k", "min_p", "lenience", "loop")
        data = self.model_dump(exclude={"options", *later})
        data |= {name: getattr(self, name) for name in later if getattr(self, name) != type(self).model_fields[name].default}
        if self.options.given():
            data["options"] = self.options.given()
        return f"# {printable(' '.join(comment.split()), None)}\n" + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the settings file in an error about what it names.

    Raises:
        HarnessError: the one from inside, with the file in front.
    """
    try:
        yield
    except HarnessError as error:
        raise HarnessError(f"{path}: {error.problem}", error.advice) from error


def load_settings(path: str | Path) -> DecodeSettings:
    """Read a settings file.

    Raises:
        HarnessError: no such file, broken YAML, an unknown key or a wrong value; names file and line.
    """
    return validate(DecodeSettings, read_yaml(Path(path)))
