"""smollm2, a real model, through the command line and through replay."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness import generate, load_pair, replay
from harness.cli import main
from harness.report.verify import verify


@pytest.mark.real
def test_smoke_suite_end_to_end(smollm2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The main job on a real model: records, a report that recomputes from them, outputs equal to the target's."""
    monkeypatch.setattr("harness.models.pair.load_pair", lambda *_, **__: smollm2)
    options = ["--no-clock", "--set", "max_tokens=10", "--results", str(tmp_path / "results")]
    with pytest.raises(SystemExit, match="0"):
        main(["run", "suites/smoke.yaml", *options])
    out = capsys.readouterr().out
    assert "All 6 greedy outputs equal the target's own" in " ".join(out.split())
    (run,) = (tmp_path / "results").iterdir()
    assert len((run / "records.jsonl").read_text(encoding="utf-8").splitlines()) == 9
    report = tmp_path / "reports" / run.name
    assert {path.name for path in report.iterdir()} >= {"report.md", "cells.csv", "report.html"}
    assert verify(run, report) > 20


@pytest.mark.real
def test_replay_equals_decoding_on_a_real_model(smollm2: Any) -> None:
    """Counts from stored answers are those of real decoding, K by K, with a draft that is sometimes right."""
    from harness.core.records import Trajectory
    from harness.decode.making import DrafterOptions, resolve_drafter

    pair = smollm2
    drafter = resolve_drafter(pair, "early_exit", DrafterOptions(layers=29))
    prompt = pair.encode("List the days of the week.")
    plain = generate(pair, prompt, drafter=None, max_tokens=12)
    answer = Trajectory(
        sample_id="days", domain="chat", prompt_tokens=tuple(prompt), tokens=plain.tokens, finish=plain.finish, max_tokens=12
    )
    for name, k in (("generic", 3), ("lookup", 4), (drafter, 2), (drafter, 5)):
        for row in replay(pair, [answer], [name], [k]):
            real = generate(pair, prompt, drafter=name, k=row.k, max_tokens=12)
            assert real.tokens == plain.tokens
            assert (row.accept_lengths, row.draft_lengths) == (real.accept_lengths, real.draft_lengths)


@pytest.mark.real
def test_a_served_conversation_on_a_real_model(smollm2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The OpenAI client, two turns: the second reads only what is new, and both are the target's own answers."""
    from openai import OpenAI

    from harness import Session
    from harness.serve.decoding_thread import Worker
    from harness.serve.server import Server

    def talk() -> list[tuple[list[dict[str, str]], int]]:
        messages, turns = [{"role": "user", "content": "Explain why the sky is blue. " + "Light is scattered by air. " * 12}], []
        with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600) as client:
            for _ in range(2):
                answer = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=12)  # type: ignore[arg-type]
                messages = [*messages, {"role": "assistant", "content": answer.choices[0].message.content or ""}]
                turns.append((messages, answer.usage.prompt_tokens_details.cached_tokens))  # type: ignore[union-attr, arg-type]
                messages = [*messages, {"role": "user", "content": "Say it shorter."}]
        return turns

    monkeypatch.setattr("harness.session.session.load_pair", lambda *_, **__: smollm2)
    with Session.from_config(models="smollm2", folder=str(tmp_path)) as session:
        server = Server(Worker(session))
        with server.listening(), ThreadPoolExecutor(1) as pool:
            talking = pool.submit(talk)
            while not talking.done():
                server.worker.turn(0.05)
            turns = talking.result()
        for messages, _ in turns:
            assert messages[-1]["content"] == generate(session.pair, messages[:-1], drafter=None, max_tokens=12).text
        assert turns[0][1] == 0
        assert turns[1][1] >= len(session.pair.encode(turns[0][0][:1]))


@pytest.mark.real
def test_a_folder_and_a_gguf_file_alone(smollm2: Any, tmp_path: Path) -> None:
    """What the project itself exports is a model by its path, without any file of its own: the same answer from all three."""
    ask: dict[str, Any] = {"max_tokens": 12, "drafter": "lookup"}
    own = generate(smollm2, "List the days of the week.", **ask)
    for form, name in (("mlx", "folder"), ("gguf", "file")):
        line = ["export", "smollm2", "--part", "target", "--to", form, "--dtype", "float32", "--out", str(tmp_path / name)]
        with pytest.raises(SystemExit, match="0"):
            main(line)
    for path in (tmp_path / "folder", next((tmp_path / "file").glob("*.gguf"))):
        pair = load_pair(str(path))
        assert pair.eos_token_ids == {0, 2}
        assert generate(pair, "List the days of the week.", **ask).tokens == own.tokens
