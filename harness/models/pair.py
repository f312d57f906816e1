"""Load a target and its draft, ready to decode."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core import files
from harness.core.errors import HarnessError
from harness.core.limits import COUNT
from harness.core.terminal import say
from harness.models.blas import lay_out, mx, nn
from harness.models.compatibility import require_compatible
from harness.models.draft import Draft
from harness.models.folder import check_model, read_config, text_config, whole
from harness.models.head_config import head_folder
from harness.models.naming import find_pair
from harness.models.opened import vocabulary_rows
from harness.models.pair_config import PairConfig, PathSource, local_folder_problem
from harness.models.shards import ADVICE, LOAD, Shards, check_split
from harness.models.sources import Progress
from harness.models.tokenizer_check import FETCH
from harness.models.translation import Translation
from harness.models.vocab import read_vocab
from harness.models.weights import ModelFolder, locate

if TYPE_CHECKING:
    from harness.models.reading_head import Head


@dataclass
class Pair:
    """A loaded target, its draft and their tokenizer."""

    name: str
    """Name of the pair's YAML file, or what :attr:`harness.models.naming.NamedPair.name` makes of ``TARGET+DRAFT``."""
    config: PairConfig
    """What the file says, or follows from the name."""
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
    """Most tokens, prompt and answer, that target and draft can both hold; a draft that reads only a part of them has no say."""
    without_draft: str | None = None
    """Why the draft was left out, where that was allowed (``fallback``)."""
    head_folder: Path | None = None
    """Folder of the head that reads the target, where the pair's file names one."""

    @functools.cached_property
    def head(self) -> Head | None:
        """That head, read when it is first asked for.

        Raises:
            HarnessError: as :func:`harness.models.reading_head.load_head`.
        """
        if self.head_folder is None:
            return None
        from harness.models.reading_head import load_head

        return load_head(self.head_folder, self.target, self.target_hash)

    def encode(self, prompt: str | Sequence[dict[str, str]] | Sequence[int]) -> list[int]:
        """Turn a user's text, a list of messages or token ids into token ids.

        The chat template is applied to text and messages; ids pass unchanged.

        Raises:
            HarnessError: empty prompt, malformed message, id outside the vocabulary, or more tokens than the context.
        """
        if not isinstance(prompt, Iterable) or isinstance(prompt, Mapping | bytes):
            raise HarnessError(f"the prompt is {prompt!r:.100}", "Pass text, a list of messages, or token ids.")
        items = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        with files.reading(f"the prompt with the tokenizer of {self.name!r}", advice="Check the prompt, or use another model."):
            ids = self._checked_ids(self._templated(items) if items and isinstance(items[0], dict) else items)
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
        with files.reading(f"the answer with the tokenizer of {self.name!r}", advice="Use another model."):
            return str(self.tokenizer.decode([int(t) for t in tokens], skip_special_tokens=True))

    @property
    def think_markers(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Ids that begin and that end the target's thinking; None where its tokenizer has none."""
        markers = tuple(getattr(self.tokenizer, f"_think_{side}_tokens", None) for side in ("start", "end"))
        return markers if all(markers) else None  # type: ignore[return-value]

    def _checked_ids(self, prompt: list[Any]) -> list[int]:
        size = min(len(self.tokenizer), vocabulary_rows(self.target))
        for token in prompt:
            if not isinstance(token, Integral) or isinstance(token, bool) or not 0 <= int(token) < size:
                problem = f"{token!r:.100} is no token id of {self.name!r} (0 to {size - 1})"
                raise HarnessError(problem, "Pass text, or ids that tokenizer and target both know.")
        return [int(token) for token in prompt]

    def _templated(self, messages: list[Any]) -> list[int]:
        if not all(isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages):
            problem = "a message list needs dicts with a text under each of the keys role and content"
            raise HarnessError(problem, "Write [{'role': 'user', 'content': '...'}].")
        if not self.tokenizer.has_chat_template:
            return list(self.tokenizer.encode("\n".join(m["content"] for m in messages)))
        return list(self.tokenizer.encode(self.render(messages), add_special_tokens=False))

    def render(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        """Text of messages under the chat template, on the date ``template_date``.

        Raises:
            HarnessError: as :func:`harness.models.templates.render`.
        """
        from harness.models import templates

        today = self.config.template_date
        return templates.render(self.tokenizer, messages, today=today, add_generation_prompt=add_generation_prompt, name=self.name)


def load_pair(
    name_or_path: str,
    *,
    offline: bool = False,
    draft: bool = True,
    fallback: bool = False,
    draft_context: int | None = None,
    lazy: bool = False,
    progress: Progress | None = None,
    shards: Shards | None = None,
) -> Pair:
    """Load a pair by any name that :func:`harness.models.naming.find_pair` reads, fetching what is missing.

    Args:
        name_or_path: a configured pair, the path of a YAML file, ``TARGET`` or ``TARGET+DRAFT``.
        offline: never use the network.
        draft: False leaves the draft out.
        fallback: where the draft cannot be had or does not fit the target, say so and go on with the target alone.
        draft_context: in place of the pair's own: of a longer prompt the draft reads only so many of its last tokens.
        lazy: read no weights before they are used, and do not try them: for who sends the work elsewhere.
        progress: called while fetching and converting; None shows a bar or plain lines on stderr.
        shards: the processes that share the target, this one their first; the draft is its own. None keeps all in this process.

    Raises:
        HarnessError: unknown pair, unusable file, no source delivers, target and draft do not fit. All before weights are read.
    """
    from harness.models.fetching import show_progress

    named = find_pair(str(name_or_path))
    config, without, differs = named.config, None, None
    if draft_context is not None:
        config = config.model_copy(update={"draft_context": COUNT.check("draft_context", draft_context)})
    wanted = [config.target, *([config.draft] if draft and config.draft else [])]
    for model in wanted if not fallback else wanted[:1]:  # local mistakes show before anything is fetched
        sources = model.parsed(named.base)
        if len(sources) == 1 and isinstance(sources[0], PathSource) and (problem := local_folder_problem(sources[0])):
            raise problem
    with show_progress(progress) as report:
        target_folder, draft_folder = locate(config.target, named.base, offline=offline, progress=report), None
        if target_folder is None or target_folder.is_cut:
            raise HarnessError(f"the target of {named.name!r} cannot be a cut draft", "Give it a hub:, wheel: or path: source.")
        if shards is not None:
            check_split(target_folder.path, shards.parts)
        if len(wanted) > 1:
            try:
                draft_folder = locate(wanted[1], named.base, offline=offline, progress=report)
                if draft_folder is not None and not draft_folder.is_cut:
                    differs = require_compatible(target_folder.path, draft_folder.path, translate=config.translate).problem
            except HarnessError as error:
                if not fallback:
                    raise
                draft_folder, without, differs = None, error.problem, None
    if without is not None:
        say(f"note: the target of {named.name!r} goes on without a draft: {without}", err=True)
    if differs is not None:
        say(f"note: the draft of {named.name!r} is translated: its text is put into the target's tokens, since {differs}", err=True)
    vocab = _vocab(named.base, config, draft_folder, differs)
    if shards is not None:
        order = {"models": str(name_or_path), "offline": offline, "hash": target_folder.hash}
        shards.send(LOAD, list(json.dumps(order).encode()))
    pair = _load(named.name, config, target_folder, draft_folder, vocab, differs, shards, lazy)
    return replace(pair, without_draft=without, head_folder=head_folder(named))


def _vocab(base: Path, config: PairConfig, draft_folder: ModelFolder | None, differs: str | None) -> tuple[int, ...] | None:
    """The ids of ``draft_vocab``, checked against the draft's own vocabulary."""
    if config.draft_vocab is None or draft_folder is None or draft_folder.is_cut:
        return None
    if differs is not None:
        raise HarnessError("draft_vocab names ids of the target, and the draft has a tokenizer of its own", "Leave draft_vocab out.")
    vocab, size = read_vocab(base / config.draft_vocab), vocab_size(draft_folder.path)
    if vocab[-1] >= size:
        raise HarnessError(f"{config.draft_vocab} names token {vocab[-1]}, the draft has {size}", "Make it again: `harness models vocab`.")
    return vocab


def _load(
    name: str,
    config: PairConfig,
    target_folder: ModelFolder,
    draft_folder: ModelFolder | None,
    vocab: tuple[int, ...] | None,
    differs: str | None,
    shards: Shards | None,
    lazy: bool,
) -> Pair:
    target, settings = load_weights(target_folder, config.dtype, "target", shards, lazy=lazy)
    tokenizer = load_tokenizer(target_folder.path, settings.get("eos_token_id"))
    draft: Draft | None = None
    if draft_folder is not None and differs is None:
        draft = _load_draft(draft_folder, config, target, vocab, lazy)
    elif draft_folder is not None and differs is not None:
        draft = _load_translated(draft_folder, config, tokenizer, differs, lazy)
    contexts = [_context(target_folder.path)]
    if draft_folder is not None and not draft_folder.is_cut and differs is None and config.draft_context is None:
        contexts.append(_context(draft_folder.path))
    return Pair(
        name=name,
        config=config,
        target=target,
        draft=draft,
        tokenizer=tokenizer,
        target_hash=target_folder.hash,
        eos_token_ids=frozenset(token for token in tokenizer.eos_token_ids if token is not None),
        context_tokens=min(contexts),
    )


def load_tokenizer(folder: Path, eos: Any) -> Any:
    """mlx-lm's TokenizerWrapper of a checked model folder; ``eos`` is the configuration's ``eos_token_id``.

    Raises:
        HarnessError: files that the library cannot read.
    """
    from mlx_lm.tokenizer_utils import load

    with files.reading(f"the tokenizer in {folder}", advice=FETCH):
        return load(folder, {"trust_remote_code": False}, eos_token_ids=eos)


def _load_draft(folder: ModelFolder, config: PairConfig, target: nn.Module, vocab: tuple[int, ...] | None, lazy: bool) -> Draft:
    if folder.is_cut:
        from harness.models.cut import load_cut

        return load_cut(folder.path, target)
    model, _ = load_weights(folder, config.dtype, "draft", lazy=lazy)
    draft = Draft(model=model, token_map=None, hash=folder.hash, name=folder.path.name, vocab=vocab)
    draft.fit(vocabulary_rows(target))
    if vocab is not None:
        _ = draft.proposer  # a head that cannot be restricted is refused before anything is decoded
    return draft


def _load_translated(folder: ModelFolder, config: PairConfig, tokenizer: Any, differs: str, lazy: bool) -> Draft:
    """A draft of another tokenizer than the target's, which has ``tokenizer``."""
    model, settings = load_weights(folder, config.dtype, "draft", lazy=lazy)
    own = load_tokenizer(folder.path, settings.get("eos_token_id"))
    translation = Translation(tokenizer, own, differs)
    most = _context(folder.path)
    return Draft(model=model, token_map=None, hash=folder.hash, name=folder.path.name, translation=translation, context_tokens=most)


def load_weights(
    folder: ModelFolder, dtype: str, role: str, shards: Shards | None = None, *, lazy: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """Load one model, or this process's part of it, and its config.json; ``lazy`` reads no weight yet.

    Raises:
        HarnessError: unknown architecture, or files that do not fit each other.
    """
    from mlx_lm.utils import load_model

    check_model(folder.path)
    with files.reading(f"{folder.path} as a {role}", advice=FETCH):
        model, settings = load_model(folder.path, lazy=True)
    if dtype == "auto":
        dtype = "float32" if mx.default_device() == mx.cpu else "stored"
    model = model if dtype == "stored" else _cast(model, getattr(mx, dtype))
    if shards is not None:
        with files.reading(f"{folder.path} in {shards.parts} parts", advice=ADVICE):
            shards.split(model)
    lay_out(model)
    model.eval()
    if lazy:
        return model, settings
    with files.reading(f"{folder.path} as a {role}", advice=FETCH):
        mx.eval(model.parameters())
        if (shards is None or shards.leads) and mx.isnan(model(mx.array([[0]]))).any().item():
            raise HarnessError(f"the {role} in {folder.path} gives logits that are not numbers", FETCH)
    return model, settings


def _cast(model: nn.Module, dtype: mx.Dtype) -> nn.Module:
    """Compute in ``dtype``: quantised layers become plain ones. Lazy, so each tensor's stored form is freed as it is read."""
    from mlx_lm.utils import dequantize_model

    model = dequantize_model(model)
    model.set_dtype(dtype)
    return model


def vocab_size(folder: Path) -> int:
    """Rows of a model's output, as its config.json says."""
    path = folder / "config.json"
    return whole(text_config(read_config(folder), path), "vocab_size", path)


def _context(folder: Path) -> int:
    """Positions the model was made for."""
    path = folder / "config.json"
    return whole(text_config(read_config(folder), path), "max_position_embeddings", path, default=4096)
