"""The script that compares a run on a cluster with one without says what differs, and only what no clock decides makes it fail."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import cluster
import pytest
from tiny import write_pair

from harness.core.records import Record
from harness.results.manifest import read_manifest
from harness.results.reading import read_records
from harness.results.store import RunStore

CHANGES: dict[str, Any] = {
    "tokens": lambda r: r if r.tokens is None else dataclasses.replace(r, tokens=(*r.tokens[:-1], 1)),
    "counts": lambda r: r if r.method != "replay" else dataclasses.replace(r, sources=("lookup",) * r.rounds),
    "records": lambda r: dataclasses.replace(r, sample_id=f"other {r.sample_id}"),
}


def edited(folder: Path, out: Path, change: Any) -> Path:
    """A copy of a run with one record changed, the first that ``change`` does change."""
    records, done = list[Record](), False
    for record in read_records(folder):
        records.append(record if done else change(record))
        done = done or records[-1] != record
    assert done
    with RunStore.create(out, dataclasses.replace(read_manifest(folder), seal=None)) as store:
        store.extend(records)
        store.finish()
    return out


@pytest.mark.parametrize("what", CHANGES)
def test_one_difference_is_found(finished: Path, tmp_path: Path, what: str) -> None:
    """Equal runs are equal; one record that differs is counted and named."""
    lines, same = cluster.compared(finished, finished)
    assert same
    assert all(a == b for a, b in re.findall(r"(\d+) of (\d+)", " ".join(lines)))
    lines, same = cluster.compared(finished, edited(finished, tmp_path / "edited", CHANGES[what]))
    assert not same
    assert any(line.startswith(f"  {what} differ: ") for line in lines)


@pytest.mark.slow
def test_the_script_compares_two_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Real runs of a tiny pair, adapters trained in each of them."""
    pair = write_pair(tmp_path / "pair", max_position_embeddings=2048)
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"name: tiny\nmodels: {pair}\nmax_tokens: 12\nclocked: 2\nclock_tokens: 6\nprompts: 4\n"
        "domains:\n  chat: {dataset: chat}\n  math: {dataset: wordproblems}\n"
        "experiments:\n  - kind: baseline\n  - {kind: drafters, drafters: [generic, lookup], k: [2, auto]}\n"
        "  - {kind: domain_adapters, training: quick, train_samples: 8, k: [2]}\n",
        encoding="utf-8",
    )
    with pytest.raises(SystemExit, match=r"[01]"):
        cluster.main(["equal", str(suite), "--models", str(pair)])
    said = capfd.readouterr().out
    assert "records: 80 of 80 equal" in said
