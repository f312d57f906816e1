"""What people call a pair: a configured name, a YAML file, ``TARGET`` or ``TARGET+DRAFT``. The one place that reads such a name; no mlx."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.core.errors import HarnessError, did_you_mean
from harness.core.files import read_json
from harness.core.paths import expand, find_config, shipped_root
from harness.core.yamlfile import read_yaml, validate
from harness.models.families import suggest
from harness.models.pair_config import DEFAULT_K, ModelConfig, PairConfig

FORMS = (
    "Name a pair of `harness models list` or a YAML file, or write TARGET or TARGET+DRAFT, "
    "each a hub name (org/model), a folder, or a .gguf file; +auto takes the draft that `harness models suggest` names."
)
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_LONGEST = 80
"""Characters of a name that the file system has to hold."""


@dataclass(frozen=True)
class NamedPair:
    """A pair as it was asked for."""

    name: str
    """Names the pair in reports, and its folders in the cache: no separators, another name for another target or draft."""
    config: PairConfig
    """Its models and settings."""
    base: Path
    """Folder that its relative paths start from."""


@dataclass(frozen=True)
class _Model:
    """One side of ``TARGET+DRAFT``."""

    label: str
    """Part of the pair's name."""
    config: ModelConfig
    """Where it comes from; local paths are absolute."""
    family_name: str
    """What the family table is asked for."""


def find_pair(text: str) -> NamedPair:
    """Read the name of a pair; looks at no weights and asks no network.

    Raises:
        HarnessError: no such pair, file or folder, a form that is none, or every problem of a YAML file with its line.
    """
    target, draft = _split(text.strip())
    if (path := _yaml(target)) is not None:
        return _with_draft(NamedPair(path.stem, _read(path), path.parent), draft, family_name(target))
    model = _model(target)
    if any(source.startswith(("cut:", "shipped:")) for source in model.config.sources):
        raise HarnessError(f"{target} is a draft cut from its target, and no target", "Write TARGET+DRAFT with it as DRAFT.")
    known = suggest(model.family_name)
    config = PairConfig(target=model.config, k=known.k if known else DEFAULT_K)
    return _with_draft(NamedPair(model.label, config, Path()), draft, model.family_name)


def pair_name(text: str) -> str:
    """:attr:`NamedPair.name` of what a user wrote."""
    return find_pair(text).name


def read_pair_config(text: str) -> PairConfig:
    """:attr:`NamedPair.config` of what a user wrote."""
    return find_pair(text).config


def find_model(text: str) -> tuple[ModelConfig, Path]:
    """One model by name: a hub name, a folder, a GGUF file, or a pair (its target); and the folder its relative paths start from.

    Raises:
        HarnessError: as :func:`find_pair`.
    """
    if (path := _yaml(text)) is not None:
        return _read(path).target, path.parent
    return _model(text).config, Path()


def family_name(text: str) -> str:
    """What the family table is asked for: the hub name behind a model's name, as far as the name tells."""
    if (path := _yaml(text)) is not None:
        return next((s.removeprefix("hub:") for s in _read(path).target.sources if s.startswith("hub:")), path.stem)
    return _model(text).family_name


def shipped_pairs() -> list[tuple[str, PairConfig]]:
    """Name and configuration of every pair in configs/models."""
    return [(path.stem, _read(path)) for path in sorted((shipped_root() / "configs/models").glob("*.yaml"))]


def _read(path: Path) -> PairConfig:
    return validate(PairConfig, read_yaml(path))


def _yaml(text: str) -> Path | None:
    """The YAML file that a text names; None where it names something else. A configured name beats a folder of that name."""
    if text.endswith((".yaml", ".yml")):
        return find_config(text, "models")
    if "/" in text or text.endswith(".gguf") or os.path.isfile(expand(text)):
        return None
    try:
        return find_config(text, "models")
    except HarnessError:
        return None


def _split(text: str) -> tuple[str, str | None]:
    """Target and draft; a path may hold a ``+`` itself."""
    if "+" not in text or os.path.exists(expand(text)):
        return text, None
    cuts = [i for i, character in enumerate(text) if character == "+"]
    cut = next((i for i in cuts if os.path.exists(expand(text[:i]))), cuts[0])
    return text[:cut], text[cut + 1 :]


def _with_draft(pair: NamedPair, draft: str | None, family: str) -> NamedPair:
    """The pair with another draft; None leaves it as it is, ``none`` takes the draft away."""
    if draft is None:
        return pair
    if draft == "none":
        return NamedPair(f"{pair.name}+none", pair.config.model_copy(update={"draft": None, "draft_vocab": None}), pair.base)
    if draft == "auto":
        draft = _suggested(family, pair.name)
    if (folder := _head_folder(draft)) is not None:
        return NamedPair(f"{pair.name}+{_path_label(folder)}", pair.config.model_copy(update={"head": str(folder)}), pair.base)
    model = _model(draft)
    changes: dict[str, Any] = {"target": _anchored(pair.config.target, pair.base), "draft": model.config, "draft_vocab": None}
    if pair.config.head is not None:
        changes["head"] = os.path.abspath(pair.base / expand(pair.config.head))
    return NamedPair(f"{pair.name}+{model.label}", pair.config.model_copy(update=changes), Path())


def _suggested(family: str, name: str) -> str:
    found = suggest(family)
    if found is None or found.draft is None:
        why = found.note if found else "its family is not in the table of `harness models suggest`"
        raise HarnessError(f"no draft is known for {name!r}: {why}", "Name a draft yourself, or leave it out and draft with lookup.")
    return found.draft


def _model(text: str) -> _Model:
    """A folder, a GGUF file, a hub name, the notation of a pair's file, or a pair, whose target counts."""
    if not text:
        raise HarnessError("the name of a model is missing", FORMS)
    if re.match(r"(hub|path|wheel|cut|shipped):", text):
        return _noted(text)
    path = Path(os.path.abspath(expand(text)))
    name, hash_sign, file = text.partition("#")
    if hash_sign and _HUB.fullmatch(name) and not os.path.exists(path):
        return _noted(f"hub:{name if '@' in name else f'{name}@main'}#{file}")
    if os.path.exists(path) or re.match(r"[./~]", text) or text.endswith(".gguf"):
        return _local(path)
    if _HUB.fullmatch(text):
        repo, _, revision = text.partition("@")
        return _Model(_label(text), ModelConfig(sources=[f"hub:{repo}@{revision or 'main'}"]), repo)
    if "/" in text:
        raise HarnessError(f"{text!r:.200} is neither a file, a folder nor a hub name", FORMS)
    if (found := _yaml(text)) is not None:
        return _Model(found.stem, _anchored(_read(found).target, found.parent), family_name(str(found)))
    known = [name for name, _ in shipped_pairs()]
    raise HarnessError(f"no pair or model {text!r:.200}: {did_you_mean(text, known)}", FORMS)


def _noted(text: str) -> _Model:
    """A model in the notation of a pair's file."""
    try:
        config = _anchored(ModelConfig(sources=[text]), Path.cwd())
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise HarnessError(f"{text!r:.200}: {problem}", "Write such a model into a pair's YAML file, with its sha256.") from None
    kind, _, rest = text.partition(":")
    return _Model(_label(rest) if kind in ("hub", "wheel", "shipped") else _path_label(Path(rest)), config, rest.partition("@")[0])


def _local(path: Path) -> _Model:
    if os.path.isfile(path) and path.suffix != ".gguf":
        raise HarnessError(f"{path} is no model", "Give the folder of a model, a .gguf file, or a pair's YAML file.")
    if not os.path.exists(path):
        raise HarnessError(f"there is no {path}", FORMS)
    kind = "cut" if path.is_dir() and _is_cut(path) else "path"
    repo = _hub_snapshot(path)
    label = _label(repo) if repo else _path_label(path)
    return _Model(label, ModelConfig(sources=[f"{kind}:{path}"]), repo or (path.stem if path.suffix == ".gguf" else path.name))


def _is_cut(folder: Path) -> bool:
    """Whether a folder holds a draft that was cut from its target."""
    return (folder / "draft.safetensors").exists() and "target_hash" in read_json(folder / "config.json")


def _head_folder(text: str) -> Path | None:
    """The folder that a text names, where it holds a head that reads its target."""
    path = Path(os.path.abspath(expand(text)))
    return path if (path / "head.safetensors").is_file() else None


def _hub_snapshot(path: Path) -> str | None:
    """``org/model`` where a path lies in the hub's own cache."""
    found = re.search(r"/models--([^/]+?)--([^/]+)/snapshots/[^/]+", path.as_posix())
    return f"{found[1]}/{found[2]}" if found else None


def _anchored(config: ModelConfig, base: Path) -> ModelConfig:
    """The same model with absolute paths."""

    def anchor(text: str) -> str:
        kind, _, rest = text.partition(":")
        return f"{kind}:{os.path.abspath(base / expand(rest))}" if kind in ("path", "cut") else text

    return config.model_copy(update={"sources": [anchor(text) for text in config.sources]})


def _path_label(path: Path) -> str:
    """Name of a local model: files of one name lie in many folders, so a few digits of the path's hash follow."""
    digits = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:6]
    return f"{_label(path.stem if path.suffix == '.gguf' else path.name)}-{digits}"


def _label(text: str) -> str:
    return re.sub(r"[^\w.@-]+", "-", text.replace("/", "--"))[:_LONGEST].strip("-.") or "model"
