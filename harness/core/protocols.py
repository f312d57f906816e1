"""What the rest of the program asks of a loaded pair and its draft; tests bring pairs of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class LoadedDraft(Protocol):
    """A model that proposes tokens: :class:`harness.models.draft.Draft`."""

    @property
    def model(self) -> Any:
        """``model(tokens (1, n), cache=cache)`` returns logits (1, n, V_draft)."""

    @property
    def token_map(self) -> Any:
        """(V_draft,) draft id to target id; None where the two are the same."""

    @property
    def proposer(self) -> tuple[Any, Any]:
        """The model that drafts and its token map."""

    @property
    def hash(self) -> str:
        """SHA-256 that identifies the weights."""

    @property
    def name(self) -> str:
        """Where it came from."""

    @property
    def vocab(self) -> tuple[int, ...] | None:
        """Target ids that drafting is restricted to, besides those of prompt and answer."""

    @property
    def vocab_hash(self) -> str | None:
        """SHA-256 of the ids that drafting is restricted to."""

    @property
    def target_rows(self) -> int | None:
        """How many ids the target has, where known."""

    @property
    def context_tokens(self) -> int | None:
        """Most of its own tokens that it can hold, where they are not the target's."""

    @property
    def translation(self) -> Any:
        """How what it says becomes the target's tokens, where it has a tokenizer of its own."""

    def fit(self, rows: int) -> None:
        """Keep to the ids of a target that has ``rows`` of them."""

    def with_model(self, model: Any) -> LoadedDraft:
        """The same draft running another model of its kind."""


@runtime_checkable
class LoadedPair(Protocol):
    """A target, its draft and their tokenizer: :class:`harness.models.pair.Pair`."""

    @property
    def name(self) -> str:
        """Name of the pair."""

    @property
    def target(self) -> Any:
        """``target(tokens (1, n), cache=cache)`` returns logits (1, n, V)."""

    @property
    def draft(self) -> LoadedDraft | None:
        """None where the pair has none."""

    @property
    def target_hash(self) -> str:
        """SHA-256 that identifies the target's weights."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end generation."""

    @property
    def context_tokens(self) -> int:
        """Most tokens that target and draft can both hold."""

    def encode(self, prompt: Any) -> list[int]:
        """Token ids of a user's text, of messages, or of ids."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""

    @property
    def config(self) -> Any:
        """What the pair's file says, :class:`harness.models.pair_config.PairConfig`; None where there is none."""

    @property
    def tokenizer(self) -> Any:
        """mlx-lm's TokenizerWrapper."""

    def render(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        """Text of messages under the chat template."""
