"""Adapters that come with the package: what each must be, how they are found, and what a few bits a number leave of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapting import put_adapter
from tiny import tiny_pair
from typer.testing import CliRunner

from harness import generate, load_pair
from harness.adapt.adapters.adapter_folder import (
    CONFIG,
    METADATA,
    PROMPTS,
    QUANTISED,
    WEIGHTS,
    adapter_folder,
    read_info,
    read_lora,
    weights_hash,
    weights_path,
    write_prompts,
)
from harness.adapt.adapters.names import check_drafter, installed
from harness.adapt.adapters.quantised import read_quantised
from harness.adapt.routers.fitting import install_adapters
from harness.adapt.shelf import find, put_in, refuse_seen, shelved
from harness.cli import app
from harness.core import files, paths
from harness.core.errors import HarnessError
from harness.core.records import Sample
from harness.datasets import DatasetSpec, load_samples
from harness.export.model_card import CARD
from harness.models.cut import WEIGHTS as DRAFT
from harness.models.mlx_names import mx
from harness.models.tensors import load_arrays, save_arrays
from harness.run.choose import entrants

MOST_BYTES = 4_000_000
"""Of a shipped adapter, everything in its folder."""


def problems(folder: Path, draft: Path) -> list[str]:
    """What is wrong with an adapter that is to come with the package, for the draft in a file."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    found = [
        "it is too large" if size > MOST_BYTES else "",
        "it is another draft's" if read_info(folder).draft_hash != files.sha256(draft) else "",
        "it has no card" if weights_hash(folder) not in files.read_text(folder / CARD) else "",
        "it does not say what it was trained on" if not (folder / PROMPTS).is_file() else "",
        "its name is another" if read_info(folder).name != folder.name else "",
    ]
    read_lora(folder)
    return [problem for problem in found if problem]


@pytest.mark.parametrize("folder", sorted(paths.SHIPPED_ADAPTERS.glob("*/*/")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_ships_is_whole_small_and_of_the_shipped_draft(folder: Path) -> None:
    """Nor does it know a test prompt of the datasets that come with the package."""
    assert problems(folder, paths.SHIPPED_ADAPTERS.parent / "drafts" / folder.parent.name / DRAFT) == []
    specs = [DatasetSpec(dataset=name) for name in ("humaneval", "chat", "wordproblems", "structured")]
    refuse_seen(folder.name, folder, [sample for spec in specs for sample in load_samples(spec, offline=True)])


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pair for whose draft an adapter ``code`` comes along, in 6 bits a number, and ``old``, which is another draft's."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(paths, "SHIPPED_ADAPTERS", tmp_path / "package")
    loaded = tiny_pair(tmp_path / "pair")
    trained = adapter_folder("tiny", "code")
    put_adapter(trained, loaded.draft, domain="code", before={"code": 0.5}, after={"code": 0.625})
    write_prompts(trained, ["Sort a list of names.", "Add two numbers."])
    export(tmp_path, tmp_path / "package/tiny/code", "--bits", "6")
    shutil.copytree(trained, tmp_path / "whole")
    shutil.rmtree(trained)
    put_adapter(tmp_path / "package/tiny/old", loaded.draft, draft_hash="f" * 64, name="old")
    return loaded


def export(folder: Path, out: Path, *options: str, adapter: str = "code") -> Path:
    """`harness export --to adapter` of the pair in a folder."""
    arguments = ["export", str(folder / "pair/tiny.yaml"), "--to", "adapter", "--adapter", adapter, "--out", str(out), *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.exception
    return out


def test_the_check_of_what_ships_catches_a_wrong_one(pair: Any, tmp_path: Path) -> None:
    """Too large, of another draft, without a card or what it was trained on, another's name: each is named; nothing is wrong before."""
    folder, draft = tmp_path / "package/tiny/code", tmp_path / "draft"
    draft.write_bytes(b"a draft")
    metadata = files.read_json(folder / METADATA)
    (folder / METADATA).write_text(json.dumps({**metadata, "draft_hash": files.sha256(draft)}))
    assert problems(folder, draft) == []
    (folder / METADATA).write_text(json.dumps({**metadata, "name": "other"}))
    (folder / PROMPTS).unlink()
    (folder / CARD).write_bytes(b"x" * MOST_BYTES)
    assert len(problems(folder, draft)) == 5
    (folder / QUANTISED).write_bytes(b"torn")
    with pytest.raises(HarnessError, match="cannot read"):
        problems(folder, draft)


@pytest.mark.parametrize(("bits", "most"), [("8", 0.01), ("6", 0.04), ("4", 0.16)])
def test_few_bits_keep_the_numbers(pair: Any, tmp_path: Path, bits: str, most: float) -> None:
    """Every matrix comes back in its shape, off by no more than half a step of so many bits; all else of the folder stays."""
    shutil.copytree(tmp_path / "whole", adapter_folder("tiny", "mine"))
    folder = export(tmp_path, tmp_path / "few", "--bits", bits, adapter="mine")
    lora, whole = read_lora(tmp_path / "whole")
    again, few = read_lora(folder)
    assert (again, few.keys()) == (lora, whole.keys())
    for name, array in whole.items():
        assert few[name].shape == array.shape
        assert np.abs(np.array(few[name] - array)).max() <= most * np.abs(np.array(array)).max()
    assert {path.name for path in folder.iterdir()} == {QUANTISED, CONFIG, METADATA, PROMPTS, CARD}
    assert f"sha256 `{weights_hash(folder)}`" in (folder / CARD).read_text()


def test_the_numbers_go_out_whole(pair: Any, tmp_path: Path) -> None:
    """mlx-lm loads what `--to adapter` writes, and says so of a folder that it cannot read; here both decode alike."""
    from mlx_lm.tuner.utils import load_adapters

    out = export(tmp_path, tmp_path / "out")
    assert (out / WEIGHTS).is_file()
    arrays = read_lora(out)[1]
    assert all(mx.array_equal(array, arrays[name]) for name, array in read_lora(find("tiny", "code"))[1].items())
    fresh = load_pair(str(tmp_path / "pair/tiny.yaml"))
    load_adapters(fresh.draft.model, str(out))
    put_in(pair, out, "copy")
    answers = [generate(pair, "Sort the names", drafter=name, max_tokens=24) for name in ("code", "copy")]
    answers.append(generate(fresh, "Sort the names", drafter="generic", max_tokens=24))
    assert len({answer.accept_lengths for answer in answers}) == 1
    with pytest.raises((OSError, RuntimeError, ValueError)):
        load_adapters(load_pair(str(tmp_path / "pair/tiny.yaml")).draft.model, str(find("tiny", "code")))


@pytest.mark.parametrize("damage", ["form", "missing", "shape", "bits"])
def test_a_damaged_file_is_refused(pair: Any, damage: str) -> None:
    """One without its header, an array, the right shape or the right bits says so before anything is computed."""
    path = find("tiny", "code") / QUANTISED
    arrays, metadata = load_arrays(path)
    form = json.loads(metadata["form"])
    first = next(iter(form["shapes"]))
    if damage == "missing":
        del arrays[f"{first}.scales"]
    form["shapes"][first] = [64, 1000] if damage == "shape" else form["shapes"][first]
    form["bits"] = 8 if damage == "bits" else 6
    save_arrays(path, arrays, {} if damage == "form" else {"form": json.dumps(form)})
    with pytest.raises(HarnessError, match="does not say how" if damage == "form" else "holds other arrays"):
        read_quantised(path, advice="Fetch it again.")


def test_names_of_what_ships_work_like_installed_ones(pair: Any, tmp_path: Path) -> None:
    """Listed, decoded with, raced and exported; one's own of that name comes first, and only that is removed."""
    models = str(tmp_path / "pair/tiny.yaml")
    check_drafter("tiny", "hybrid+code")
    assert {a.name: a.shipped for a in shelved("tiny")} == {"code": True, "old": True}
    assert "code, rank 4, alpha code 0.500 -> 0.625" in (text := CliRunner().invoke(app, ["adapters", "list"]).output)
    assert "comes with the package" in text
    assert entrants(models, [Sample(id="a", domain="a", prompt="Something else")], offline=True).adapters == ("code",)
    install_adapters("tiny", installed("tiny"))
    assert not adapter_folder("tiny", "code").exists(), "a router that chooses it needs no copy"
    remove = ["adapters", "remove", "code", "--models", models, "--yes"]
    assert "comes with the package" in str(CliRunner().invoke(app, remove).exception)
    put_in(pair, tmp_path / "whole", "code")
    assert find("tiny", "code") == adapter_folder("tiny", "code")
    assert CliRunner().invoke(app, remove).exit_code == 0
    assert weights_path(find("tiny", "code")) == tmp_path / "package/tiny/code" / QUANTISED
    assert generate(pair, "x", drafter="hybrid+code", max_tokens=8).tokens == generate(pair, "x", drafter=None, max_tokens=8).tokens


def test_another_drafts_adapter_is_passed_over(pair: Any) -> None:
    """What comes along for the shipped draft is no choice for a draft of one's own, and an error only where it is asked for."""
    assert sorted(installed("tiny")) == ["code", "old"]
    assert sorted(installed("tiny", pair.draft.hash)) == ["code"]
    with pytest.raises(HarnessError, match="was trained on draft"):
        generate(pair, "x", drafter="old", max_tokens=8)


def test_it_is_refused_for_the_prompts_it_was_trained_on(pair: Any, tmp_path: Path) -> None:
    """Known again by digests, whatever the white space; other prompts are free. `harness choose` leaves it out."""
    known, free = (Sample(id=text[:4], domain="code", prompt=text) for text in ("sort a  list of names.\n", "Paint a house."))
    refuse_seen("code", find("tiny", "code"), [free])
    with pytest.raises(HarnessError, match="trained on 1 of these prompts, or on near-copies, such as sort"):
        refuse_seen("code", find("tiny", "code"), [free, known])
    left_out = entrants(str(tmp_path / "pair/tiny.yaml"), [known], offline=True).left_out
    assert left_out["adapter code"] == "it was trained on these prompts, such as sort"
