"""Write an export: a new folder with the model in one form, its card, the flags of engines, and what a run measured of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.core import files
from harness.core.errors import HarnessError
from harness.core.version import __version__
from harness.export import engines, every_eval, model_card, run_profile
from harness.export.source import Source

if TYPE_CHECKING:
    from harness.adapt.adapters.quantised import Bits

Form = Literal["mlx", "gguf", "peft", "adapter", "profile", "every-eval-ever"]
WEIGHTED = ("mlx", "gguf", "peft", "adapter")
"""Forms that hold weights."""
ADAPTER_FORMS = {"peft": "PEFT is a format of adapters", "adapter": "--to adapter writes an adapter"}
Number = Literal["float16", "bfloat16", "float32", "q8_0"]
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
"""Files beside the weights that say how text becomes tokens."""
_SHORT = ("float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Request:
    """How to write it."""

    form: Form
    dtype: Number | None
    """Type of the weights; None keeps 16-bit types, and makes float16 of a draft's longer ones."""
    command: str
    """What was typed, for the card."""
    bits: Bits | None = None
    """Bits of a number in a folder of form ``adapter``; None keeps the numbers as they are."""
    organisation: str = "unknown"
    """Who ran the run, for its record."""
    offline: bool = False


def export(source: Source, request: Request, out: Path) -> Path:
    """Write ``out`` as a whole or not at all; return it.

    Raises:
        HarnessError: ``out`` holds something, a form that this source does not have, or a model that cannot be written in it.
    """
    check_request(source, request, out)
    with _new_folder(out) as folder:
        facts = _write_weights(source, request, folder, out) if request.form in WEIGHTED else None
        if source.run is not None:
            _write_run(source, request, folder)
        if facts is not None:
            if facts.flags:
                files.write_atomic(folder / engines.FLAGS, facts.flags)
            files.write_atomic(folder / model_card.CARD, model_card.card(source, facts))
    return out


def check_request(source: Source, request: Request, out: Path) -> None:
    """Refuse before anything loads what cannot be written.

    Raises:
        HarnessError: says what, and what to do instead.
    """
    from harness.models.parallel_masks import is_parallel

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise HarnessError(f"{out} is not empty", "Choose another folder with --out.")
    if request.form in ("profile", "every-eval-ever") and source.run is None:
        raise HarnessError(f"--to {request.form} describes a run, not a pair", "Name a run, such as results/RUN.")
    if request.form in ADAPTER_FORMS and source.adapter is None:
        raise HarnessError(f"{ADAPTER_FORMS[request.form]}, and none is named", "Add --adapter NAME, or choose --to mlx.")
    if request.bits is not None and request.form != "adapter":
        raise HarnessError("--bits is for adapters of this project", "Add --to adapter, or choose a --dtype.")
    if request.form in WEIGHTED and source.adapter_folder is not None and is_parallel(source.adapter_folder):
        raise HarnessError(
            f"the adapter {source.adapter!r} proposes several tokens in one pass, which no other program does",
            "Use it here as a drafter, or export the pair, whose draft it leaves as it is.",
        )
    if request.dtype == "q8_0" and request.form != "gguf":
        raise HarnessError("q8_0 is a type of GGUF files", "Add --to gguf, or choose another --dtype.")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes ``out`` when everything is in it."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        if out.exists():
            out.rmdir()
        os.replace(part, out)
    except OSError as error:
        raise HarnessError(f"cannot write {out}: {files.reason(error)}", "Free some space or choose another folder.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_weights(source: Source, request: Request, folder: Path, out: Path) -> model_card.Facts:
    if not source.has_weights:
        return _facts(source, request, form="Settings alone: what is recommended needs no weights", library="mlx", hashes={})
    if request.form == "peft":
        return _write_peft(source, request, folder)
    if request.form == "adapter":
        return _write_adapter(source, request, folder)
    from harness.export.gguf_writing import check_architecture, write_gguf
    from harness.export.weights_out import load_for_export

    weights = load_for_export(source, offline=request.offline)
    if request.form == "gguf":
        check_architecture(weights.config)
    dtype = request.dtype or (weights.stored if source.part == "target" or weights.stored in _SHORT else "float16")
    hashes = {"target": weights.target_hash, **({"draft": weights.hash} if source.part == "draft" else {})}
    if request.form == "gguf":
        path = folder / f"{source.name}-{dtype}.gguf"
        write_gguf(path, weights.arrays, weights.config, weights.tokenizer, dtype=dtype, name=source.name)
        form, library = f"GGUF, {dtype}, for llama.cpp and the programs built on it", "gguf"
    else:
        write_folder(folder, weights.arrays, weights.config, weights.tokenizer, dtype)
        path = folder / "model.safetensors"
        form, library = f"{weights.config['model_type']} model, {dtype}, for mlx-lm, transformers and vLLM", "mlx"
    hashes[path.name] = files.sha256(path)
    written = out / path.name if request.form == "gguf" else out
    return _facts(source, request, form=form, library=library, hashes=hashes, kept=weights.kept, written=written)


def write_folder(folder: Path, arrays: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Path, dtype: str) -> None:
    """Write a model folder as transformers and mlx-lm load it.

    Args:
        folder: existing and empty.
        arrays: weights under their transformers names.
        config: the model's configuration; what it says of quantisation and types is replaced.
        tokenizer: folder whose tokenizer files go along.
        dtype: ``float16``, ``bfloat16`` or ``float32``.
    """
    from harness.models.blas import mx
    from harness.models.tensors import save_arrays

    save_arrays(folder / "model.safetensors", {n: a.astype(getattr(mx, dtype)) for n, a in arrays.items()}, {"format": "pt"})
    kept = {key: value for key, value in config.items() if key not in ("quantization", "quantization_config", "torch_dtype")}
    files.write_atomic(folder / "config.json", json.dumps({**kept, "dtype": dtype}, indent=2) + "\n")
    for name in TOKENIZER:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)


def _write_peft(source: Source, request: Request, folder: Path) -> model_card.Facts:
    from harness.adapt.adapters.peft import WEIGHTS, export_peft

    assert source.adapter_folder is not None
    export_peft(source.adapter_folder, folder, base_model=f"{source.pair}-draft")
    hashes = {"draft": _draft_of(source), WEIGHTS: files.sha256(folder / WEIGHTS)}
    form = f"PEFT adapter of the draft of {source.pair}, for that draft as `harness export {source.models} --to mlx` writes it"
    return _facts(source, request, form=form, library="peft", hashes=hashes)


def _write_adapter(source: Source, request: Request, folder: Path) -> model_card.Facts:
    """The adapter as this project keeps it, its numbers whole or in a few bits."""
    from harness.adapt.adapters.adapter_folder import weights_path, write_anew

    assert source.adapter_folder is not None
    write_anew(source.adapter_folder, folder, request.bits)
    path = weights_path(folder)
    stored = f"{request.bits} bits a number, which this project alone reads" if request.bits else "as mlx-lm reads it too"
    hashes = {"draft": _draft_of(source), path.name: files.sha256(path)}
    facts = _facts(source, request, form=f"Adapter of the draft of {source.pair}, {stored}", library="mlx", hashes=hashes)
    return replace(facts, flags="", draft_card=None)


def _draft_of(source: Source) -> str:
    """SHA-256 of the draft that an adapter belongs to, as its own file says."""
    from harness.adapt.adapters.adapter_folder import read_info

    assert source.adapter_folder is not None
    return read_info(source.adapter_folder).draft_hash


def _facts(
    source: Source, request: Request, *, form: str, library: str, hashes: Mapping[str, str], kept: int | None = None,
    written: Path | None = None,
) -> model_card.Facts:  # fmt: skip
    from harness.adapt.shelf import look_at

    adapter = look_at(source.pair, source.adapter or "", source.adapter_folder) if source.adapter_folder else None
    flags = engines.flags(source, engines.places(source, written, request.form))
    return model_card.Facts(
        form=form, library=library, hashes={**hashes, **({"adapter": adapter.sha256} if adapter else {})}, kept=kept, adapter=adapter,
        draft_card=_draft_card(source), command=request.command, version=__version__, flags=flags,
    )  # fmt: skip


def _draft_card(source: Source) -> Path | None:
    """Card of a draft that was distilled: it stands beside its weights."""
    from harness.models.pair_config import CutSource

    if source.part == "target" or source.config.draft is None or not source.has_weights:
        return None
    places = source.config.draft.parsed(source.base)
    return next((p.path / "card.md" for p in places if isinstance(p, CutSource) and (p.path / "card.md").is_file()), None)


def _write_run(source: Source, request: Request, folder: Path) -> None:
    """The profile and the record of a run; with a model also the settings that this project decodes with."""
    from harness.report.sections.recommendation import settings_yaml

    run = source.run
    assert run is not None
    if request.form != "every-eval-ever":
        files.write_atomic(folder / run_profile.PROFILE, run_profile.profile_json(run))
    if request.form != "profile":
        place, data = every_eval.record(run, source.config.target, organisation=request.organisation, version=__version__)
        files.write_atomic(folder / place, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    if request.form in WEIGHTED:
        files.write_atomic(folder / "settings.yaml", settings_yaml(run))
