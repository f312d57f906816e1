"""What a session file says. Imports no mlx, so that mistakes show before any model loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from harness.adapt.adapters.names import check_drafter
from harness.adapt.training_config import TrainingConfig, load_training_config
from harness.core.drafter_kinds import find_kind
from harness.core.errors import HarnessError
from harness.core.limits import MAX_TOKENS
from harness.core.paths import find_config
from harness.core.settings_file import Decoding, load_settings
from harness.core.yamlfile import Seed, apply_overrides, read_yaml, set_value, validate
from harness.datasets.spec import DatasetSpec
from harness.models.head_config import check_head
from harness.models.naming import find_pair

ADAPTIVE = "adaptive"
"""The plain draft until a training round is accepted, then the session's own adapter."""
DEFAULT = "configs/session.yaml"
"""Shipped session file."""


class SessionConfig(Decoding):
    """A session file such as ``configs/session.yaml``."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=80)] = "session"
    """Names the session's folder and the adapter it installs."""
    fallback: bool = False
    """Go on with the target alone where the draft cannot be had or does not fit the target."""
    drafter: str | None = ADAPTIVE
    """``adaptive``, a drafter's name as for ``generate``, or null for plain decoding."""
    seed: Seed = 0
    """Seed of sampling, training and generated evaluation prompts."""
    max_tokens: Annotated[int, Field(ge=1, le=32_768)] = MAX_TOKENS
    """Longest answer."""
    system: str | None = None
    """System message put before every conversation."""
    domain: str = "chat"
    """Domain that the session's prompts count as."""
    training: str = "default"
    """Training settings: a name in ``configs/training`` or a path."""
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Acceptance rate below which an answer is a failure case; the training config's when absent."""
    min_failure_cases: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Failure cases that make a training round due; the training config's when absent."""
    window: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    """Answers in the rolling acceptance; the training config's when absent."""
    train_automatically: bool = True
    """Run a round as soon as it is due."""
    remember: bool = False
    """Add the answers to the pair's memory, from which the drafters ``memory``, ``memory_hybrid`` and ``cascade`` propose."""
    evaluation: dict[str, DatasetSpec] = Field(default_factory=lambda: {"chat": DatasetSpec(dataset="chat", limit=8)})
    """Held-out prompts by domain; prompts that resemble them are never trained on."""
    evaluation_tokens: Annotated[int, Field(ge=1, le=32_768)] = 64
    """Longest answer of the target to an evaluation prompt."""
    folder: str | None = None
    """Where the session is kept; a folder in the user's cache when absent."""

    @field_validator("evaluation")
    @classmethod
    def _held_out(cls, specs: dict[str, DatasetSpec]) -> dict[str, DatasetSpec]:
        if any(spec.split in ("train", "all") for spec in specs.values()):
            raise ValueError("evaluation prompts come from the split test or validation")
        return specs

    def replace(self, **changes: Any) -> SessionConfig:
        """Return a checked copy.

        Raises:
            HarnessError: a wrong value.
        """
        try:
            return SessionConfig.model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            first = error.errors()[0]
            where = first["loc"][0] if first["loc"] else "the settings"
            raise HarnessError(f"{where}: {first['msg'].removeprefix('Value error, ')}", f"The keys are those of {DEFAULT}.") from error

    def training_config(self) -> TrainingConfig:
        """The training settings with this session's seed and thresholds."""
        changes = {name: getattr(self, name) for name in ("threshold", "min_failure_cases", "window") if getattr(self, name) is not None}
        config = load_training_config(self.training).seeded(self.seed)
        return config.replace(adapt=changes) if changes else config

    def check(self) -> None:
        """Check every name the session refers to, without loading a model.

        Raises:
            HarnessError: unknown pair, drafter or training config.
        """
        pair = find_pair(self.models)
        self.check_drafter(pair.name, self.drafter)
        check_head(pair, self.drafter)
        self.training_config()

    def check_drafter(self, pair_name: str, drafter: str | None) -> None:
        """Check that answers can be drafted by ``drafter``; a session that remembers makes the memory itself.

        Raises:
            HarnessError: unknown, or without a memory.
        """
        kind = find_kind(drafter)
        if drafter != ADAPTIVE and not (self.remember and kind is not None and kind.needs_memory):
            check_drafter(pair_name, drafter, also=(ADAPTIVE,))


def load_session_config(path: str | Path = DEFAULT, overrides: Sequence[str] = (), settings: str | Path | None = None) -> SessionConfig:
    """Read a session file; the keys of a ``settings`` file replace its own, ``overrides`` are ``k=8`` strings.

    Raises:
        HarnessError: no such file, broken YAML, an unknown key or a wrong value; names file and line.
    """
    try:
        found = find_config(str(path), "sessions")
    except HarnessError as error:
        raise HarnessError(f"no session file {str(path)!r}", f"Give the path of a YAML file such as {DEFAULT}.") from error
    file = read_yaml(found)
    if settings is not None:
        for name, value in load_settings(settings).for_session().items():
            set_value(file, (name,), value, str(settings))
    apply_overrides(file, overrides)
    return validate(SessionConfig, file)
