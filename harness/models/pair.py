"""Load a target and its draft, ready to decode."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.models.blas import lay_out, mx, nn
from harness.models.compatibility import read_json, require_compatible, trim_problem
from harness.models.config import PairConfig, PathSource, local_folder_problem, pair_path, read_pair_config
from harness.models.sources import Progress
from harness.models.store import ModelFolder, locate
from harness.models.vocab import read_vocab


@dataclass
class Draft:
    """A model that proposes tokens for a target."""

    model: nn.Module
    """``model(tokens (1, n), cache=cache)`` returns logits (1, n, V_draft); has ``.layers``."""
    token_map: mx.array | None
    """(V_draft,) int32: draft id to target id where the draft's output vocabulary is pruned; None is the identity."""
    hash: str
    """SHA-256 that identifies the weights."""
    name: str
    """Where it came from, for reports."""
    vocab: tuple[int, ...] | None = None
    """Target ids that drafting is restricted to, besides those of prompt and answer; None is whatever the model's own head names."""

    @functools.cached_property
    def proposer(self) -> tuple[nn.Module, mx.array | None]:
        """What drafts, and its token map: the model, its head restricted to ``vocab`` where the pair asks for that."""
        from harness.decode.forward import PrunedHead

        if self.vocab is None:
            return self.model, self.token_map
        head = PrunedHead(self.model, self.vocab, own_head=self.token_map is not None)
        return head, head.token_map

    @property
    def vocab_hash(self) -> str | None:
        """SHA-256 of ``vocab``."""
        return None if self.vocab is None else hashlib.sha256(json.dumps(self.vocab).encode()).hexdigest()


@dataclass
class Pair:
    """A loaded target, its draft and their tokenizer."""

    name: str
    """Name of the pair's YAML file."""
    config: PairConfig
    """What the file says."""
    target: nn.Module
    """``target(tokens (1, n), cache=cache)`` returns logits (1, n, V)."""
    draft: Draft | None
    """None when the pair has none, when it was not asked for, or when a shipped draft is absent."""
    tokenizer: Any
    """mlx-lm's TokenizerWrapper."""
    target_hash: str
    """SHA-256 that identifies the target's weights."""
    eos_token_ids: frozenset[int]
    """Ids that end generation."""
    context_tokens: int
    """Most tokens, prompt and answer, that target and draft can both hold."""

    def encode(self, prompt: str | Sequence[dict[str, str]] | Sequence[int]) -> list[int]:
        """Turn a user's text, a list of messages or token ids into token ids.

        The chat template is applied to text and messages; ids pass unchanged.

        Raises:
            HarnessError: empty prompt, malformed message, id outside the vocabulary, or more tokens than the context.
        """
        items = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        ids = self._templated(items) if items and isinstance(items[0], dict) else self._checked_ids(items)
        if not ids:
            raise HarnessError("the prompt is empty", "Give at least one token.")
        if len(ids) > self.context_tokens:
            raise HarnessError(
                f"the prompt has {len(ids)} tokens, the context of {self.name!r} holds {self.context_tokens}",
                "Shorten the prompt, or use a pair with a longer context.",
            )
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Turn token ids into text, special tokens left out."""
        return str(self.tokenizer.decode([int(t) for t in tokens], skip_special_tokens=True))

    def _checked_ids(self, prompt: list[Any]) -> list[int]:
        size = len(self.tokenizer)
        for token in prompt:
            if isinstance(token, bool) or not hasattr(token, "__index__") or not 0 <= int(token) < size:
                raise HarnessError(f"{token!r} is no token id of {self.name!r} (0 to {size - 1})", "Pass text, or ids of this tokenizer.")
        return [int(token) for token in prompt]

    def _templated(self, messages: list[Any]) -> list[int]:
        if not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages):
            raise HarnessError("a message list needs dicts with the keys role and content", "Write [{'role': 'user', 'content': '...'}].")
        if not self.tokenizer.has_chat_template:
            return list(self.tokenizer.encode("\n".join(m["content"] for m in messages)))
        try:
            return list(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True))
        except Exception as error:  # templates raise their own errors for roles they refuse
            raise HarnessError(
                f"the chat template of {self.name!r} refused the messages: {error}", "Check the roles and their order."
            ) from error


def load_pair(name_or_path: str, *, offline: bool = False, draft: bool = True, progress: Progress | None = None) -> Pair:
    """Load a pair by name (configs/models) or by the path of a YAML file, fetching what is missing.

    Args:
        name_or_path: pair name or YAML path.
        offline: never use the network.
        draft: False leaves the draft out.
        progress: called while fetching and converting; None shows a bar or plain lines on stderr.

    Raises:
        HarnessError: unknown pair, unusable file, no source delivers, target and draft do not fit. All before weights are read.
    """
    from harness.models.progress import show_progress

    name_or_path = str(name_or_path)
    config, path = read_pair_config(name_or_path), pair_path(name_or_path)
    wanted = [config.target, *([config.draft] if draft and config.draft else [])]
    for model in wanted:  # local mistakes show before anything is fetched
        sources = model.parsed(path.parent)
        if len(sources) == 1 and isinstance(sources[0], PathSource) and (problem := local_folder_problem(sources[0])):
            raise problem
    with show_progress(progress) as report:
        folders = [locate(model, path.parent, offline=offline, progress=report) for model in wanted]
    target_folder, draft_folder = folders[0], folders[1] if len(folders) > 1 else None
    if target_folder is None or target_folder.is_cut:
        raise HarnessError(f"the target of {path.stem!r} cannot be a cut draft", "Give it a hub:, wheel: or path: source.")
    if draft_folder is not None and not draft_folder.is_cut:
        require_compatible(target_folder.path, draft_folder.path)
    vocab = _vocab(path, config, draft_folder)
    return _load(path.stem, config, target_folder, draft_folder, vocab)


def _vocab(path: Path, config: PairConfig, draft_folder: ModelFolder | None) -> tuple[int, ...] | None:
    """The ids of ``draft_vocab``, checked against the draft's own vocabulary."""
    if config.draft_vocab is None or draft_folder is None or draft_folder.is_cut:
        return None
    vocab, size = read_vocab(path.parent / config.draft_vocab), int(read_json(draft_folder.path / "config.json")["vocab_size"])
    if vocab[-1] >= size:
        raise HarnessError(f"{config.draft_vocab} names token {vocab[-1]}, the draft has {size}", "Make it again: `harness models vocab`.")
    return vocab


def _load(
    name: str, config: PairConfig, target_folder: ModelFolder, draft_folder: ModelFolder | None, vocab: tuple[int, ...] | None
) -> Pair:
    from mlx_lm.tokenizer_utils import load as load_tokenizer

    target, settings = load_weights(target_folder, config.dtype, "target")
    draft = _load_draft(draft_folder, config, target, vocab) if draft_folder else None
    tokenizer = load_tokenizer(target_folder.path, {"trust_remote_code": False}, eos_token_ids=settings.get("eos_token_id"))
    contexts = [_context(target, settings)]
    if draft is not None and draft_folder is not None and not draft_folder.is_cut:
        contexts.append(_context(draft.model, read_json(draft_folder.path / "config.json")))
    return Pair(
        name=name,
        config=config,
        target=target,
        draft=draft,
        tokenizer=tokenizer,
        target_hash=target_folder.hash,
        eos_token_ids=frozenset(tokenizer.eos_token_ids),
        context_tokens=min(contexts),
    )


def _load_draft(folder: ModelFolder, config: PairConfig, target: nn.Module, vocab: tuple[int, ...] | None) -> Draft:
    if folder.is_cut:
        from harness.models.cut import load_cut

        return load_cut(folder.path, target)
    model, _ = load_weights(folder, config.dtype, "draft")
    return Draft(model=model, token_map=None, hash=folder.hash, name=folder.path.name, vocab=vocab)


def load_weights(folder: ModelFolder, dtype: str, role: str) -> tuple[nn.Module, dict[str, Any]]:
    """Load one model and its config.json; the cache is checked before weights are read.

    Raises:
        HarnessError: unknown architecture, files that do not fit each other, or a cache that cannot be trimmed.
    """
    from mlx_lm.utils import load_model

    try:
        model, settings = load_model(folder.path, lazy=True)
    except (ValueError, FileNotFoundError, KeyError, TypeError) as error:
        raise HarnessError(f"{folder.path} does not load as a {role}: {error}", "Fetch it again, or choose another model.") from error
    if problem := trim_problem(model, role):
        raise HarnessError(problem, "Speculative decoding needs plain attention caches; choose another model.")
    if dtype == "auto":
        dtype = "float32" if mx.default_device() == mx.cpu else "stored"
    model = model if dtype == "stored" else _cast(model, getattr(mx, dtype))
    lay_out(model)
    mx.eval(model.parameters())
    model.eval()
    return model, settings


def _cast(model: nn.Module, dtype: mx.Dtype) -> nn.Module:
    """Compute in ``dtype``: quantised layers become plain ones. Lazy, so each tensor's stored form is freed as it is read."""
    from mlx_lm.utils import dequantize_model

    model = dequantize_model(model)
    model.set_dtype(dtype)
    return model


def _context(model: nn.Module, settings: dict[str, Any]) -> int:
    """Positions the model was made for, or the window of its shortest rotating cache: beyond it nothing can be trimmed."""
    from mlx_lm.models.cache import make_prompt_cache

    text = settings.get("text_config", settings)
    positions = int(text.get("max_position_embeddings", 4096))
    windows = [layer.max_size for layer in make_prompt_cache(model) if getattr(layer, "max_size", None)]
    return min([positions, *windows])
