"""Draft vocabulary files: written from target answers, read with the pair, refused when broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli import run
from tiny import write_pair

from harness.answers.collect import collect
from harness.core.errors import HarnessError
from harness.core.records import Sample
from harness.models.pair import load_pair
from harness.models.vocab import read_vocab, write_vocab


@given(ids=st.sets(st.integers(0, 10**6), min_size=2, max_size=60))
def test_ids_survive_the_file(ids, tmp_path_factory):
    """Ranges are a compression: neighbours, gaps and single ids must all come back."""
    path = tmp_path_factory.mktemp("vocab") / "v.json"
    write_vocab(path, ids, "test")
    assert read_vocab(path) == tuple(sorted(ids))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({"schema_version": 1, "ranges": []}),
        json.dumps({"schema_version": 1, "ranges": [[5, 9], [7, 8]]}),
        json.dumps({"schema_version": 1, "ranges": [[-2, 3]]}),
        json.dumps({"schema_version": 1, "ranges": [["a", "b"]]}),
        json.dumps({"schema_version": 99, "ranges": [[0, 3]]}),
        json.dumps({"schema_version": 1, "ranges": [[0, 10**9]]}),
        json.dumps({"schema_version": 1, "ranges": [[0, 10**400]]}),
        json.dumps({"schema_version": 1, "ranges": [[0, 1e9]]}),
        json.dumps({"schema_version": 1, "ranges": [[0, 5, 9]]}),
        json.dumps({"schema_version": 1, "ranges": [[True, 5]]}),
        json.dumps({"schema_version": None, "ranges": [[0, 5]]}),
        json.dumps({"schema_version": 1, "ranges": {"0": 5}}),
    ],
)
def test_broken_files_are_refused(text, tmp_path):
    """A half-written or foreign file must not silently shrink what the draft can say."""
    path = tmp_path / "v.json"
    path.write_text(text)
    with pytest.raises(HarnessError, match=r"vocabulary|newer|JSON"):
        read_vocab(path)
    with pytest.raises(HarnessError, match="cannot read"):
        read_vocab(tmp_path / "absent.json")


def test_answers_of_another_target_choose_no_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its ids mean other tokens, and its favourites are none of this target's."""
    own, other = (write_pair(tmp_path / name, seed=seed) for seed, name in enumerate(("own", "other")))
    list(collect(load_pair(str(own)), [Sample(id="a", domain="d", prompt="Name a fruit.")], max_tokens=8, out=tmp_path / "answers"))
    command = ["--from", str(tmp_path / "answers"), "--out", str(tmp_path / "v.json"), "--size", "16"]
    code, out, err = run("models", "vocab", str(other), *command, capsys=capsys)
    assert (code, out) == (2, "")
    assert "answers of another target" in err
    assert not (tmp_path / "v.json").exists()
    code, out, _ = run("models", "vocab", str(own), *command, capsys=capsys)
    assert (code, len(read_vocab(tmp_path / "v.json"))) == (0, 16)
