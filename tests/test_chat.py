"""Chat: a conversation over a pipe or a terminal, its commands, training between turns, and Ctrl-C."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import forks
import pytest
from serving import PROMPTS, session_file
from test_cli import HEAVY, fresh, run
from tiny import tiny_pair, write_pair

from harness.cli.chat import DRAFTED, Chat
from harness.session.session import Session


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny pair."""
    folder = tmp_path_factory.mktemp("chat")
    write_pair(folder, noise=0.3, max_position_embeddings=1024)
    return folder


@pytest.fixture
def talk(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs ``harness chat`` on lines of standard input and returns what it printed."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))

    def talk(*lines: str, options: tuple[str, ...] = (), **changes: Any) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code, out, _ = run("chat", str(session_file(home, **changes)), *options, capsys=capsys)
        assert code == 0
        return out

    return talk


def stored(home: Path, tmp_path: Path) -> Any:
    """The session's failure cases, read again."""
    from harness.adapt.training.failures import FailureStore

    (path,) = (tmp_path / "cache" / "sessions").rglob("failures.jsonl")
    return FailureStore(path).cases()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["chat", "--help"], ["demo", "--help"], ["chat", "nope.yaml"], ["demo", "--drafter", "x"]]
)
def test_help_and_mistakes_import_nothing_heavy(arguments: list[str]) -> None:
    """Help and wrong input are answered at once, also where mlx is broken."""
    code = (
        f"import sys\nfrom harness.cli import main\ntry:\n    main({arguments!r})\n"
        "except SystemExit as end:\n    print('CODE', end.code or 0)\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    out, _ = fresh(code)
    assert out.splitlines()[-2:] == [f"CODE {0 if '--help' in arguments else 2}", "HEAVY []"]


def test_commands(talk: Any) -> None:
    """Every command of /help does something; an unknown one names the nearest; nothing after /quit is read."""
    out = talk(
        "/help", "/stats", "/statz", "hello there", "/stats", "/adapters", "/adapters lookup", "/adapters loopup", "/reset", "/quit", "x"
    )
    for command in ("/stats", "/train", "/eval", "/adapters", "/reset", "/help", "/quit"):
        assert f"  {command}" in out
    assert "no command /statz: did you mean '/stats'?" in out
    assert re.findall(r"answers +(\d+), (\d+) tokens", out) == [("0", "0"), ("1", "12")]
    assert "* adaptive" in out
    assert "drafting with lookup" in out
    assert "did you mean 'lookup'?" in out
    assert "starts afresh" in out
    assert out.count("tok/s, accepted") == 1


def test_turns_build_on_each_other(talk: Any, home: Path, tmp_path: Path) -> None:
    """The second answer sees the first turn and its answer; after /reset it does not; the system message is always there."""
    talk("first question", "second question", "/reset", "third question", options=("--system", "Be brief."))
    pair = tiny_pair(home, noise=0.3, max_position_embeddings=1024)
    first, second, third = stored(home, tmp_path)
    system, question = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "first question"}
    assert list(first.prompt_tokens) == pair.encode([system, question])
    answer = {"role": "assistant", "content": pair.decode(first.output_tokens)}
    assert list(second.prompt_tokens) == pair.encode([system, question, answer, {"role": "user", "content": "second question"}])
    assert list(third.prompt_tokens) == pair.encode([system, {"role": "user", "content": "third question"}])


def test_training_runs_between_turns(talk: Any) -> None:
    """The round is announced after the answer that made it due, runs before the next turn, and the new draft answers it."""
    lines = [line for prompt in PROMPTS[:14] for line in ("/reset", prompt)]
    out = talk(*lines, min_failure_cases=12, train_automatically=True)
    announced, trained = out.index("12 failure cases: training now"), out.index("round 1 accepted")
    counts = [m.start() for m in re.finditer("tok/s, accepted", out)]
    assert counts[11] < announced < trained < counts[12]
    assert out.count("draft generic") == 12
    assert out.count("draft session") == 2
    again = talk("/stats", "/adapters", min_failure_cases=12)
    assert "1 done, 1 accepted" in again
    assert "this session's adapter, 1 of 1 rounds accepted" in again


def test_training_by_hand(talk: Any) -> None:
    """With --no-train a due round is only announced; /train runs it, and says why it cannot."""
    lines = [line for prompt in PROMPTS[:13] for line in ("/reset", prompt)]
    out = talk("/train", *lines, "/train", options=("--no-train",), min_failure_cases=12, train_automatically=True)
    assert "no training round: no failure case has come" in out
    assert "12 failure cases wait: /train runs a training round" in out
    assert "training now" not in out
    assert out.index("13 failure cases wait") < out.index("round 1 ")


def test_evaluation_is_shown_with_intervals(talk: Any) -> None:
    """/eval compares with the plain draft, which against itself changes nothing."""
    out = talk("/eval")
    assert re.search(r"generic against the plain draft, K = 3", out)
    assert re.search(r"all +6 prompts +rate (\d\.\d{3}) -> \1 \(\+0\.000 \[-(0\.\d{3}), \+\2\]\)", out)


def test_a_full_context_is_explained(talk: Any) -> None:
    """Old turns go with a notice and the chat goes on; a single message that is too long is refused, and the next one works."""
    long = "words and more words " * 14
    out = talk(long, long, long, long, "x" * 1100, "short")
    assert re.search(r"the context is full: the \d+ oldest messages were forgotten", out)
    assert out.count("tok/s, accepted") == 5
    assert "the prompt has" in out
    assert "Shorten the prompt" in out


def test_drafted_tokens_are_coloured(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --show-drafts exactly the accepted draft tokens are green; without it, and over a pipe, there is no colour."""
    from rich.console import Console

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    pair = tiny_pair(tmp_path, noise=0.0, max_position_embeddings=1024)
    texts = {}
    for shown, terminal in ((True, True), (False, True), (True, False)):
        monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, color_system="standard" if terminal else None, soft_wrap=True, highlight=False)
        with Session.from_config(session_file(tmp_path), pair=pair) as session:
            Chat(session, console, show_drafts=shown).run()
        texts[shown, terminal] = out.getvalue().split("\n")[0]
    assert DRAFTED == "green"
    green = "".join(re.findall("\x1b\\[32m(.*?)\x1b\\[0m", texts[True, True]))
    assert green
    assert "\x1b[32m" not in texts[False, True]
    assert "\x1b" not in texts[True, False]
    plain = re.sub("\x1b\\[[0-9;]*m", "", texts[True, True])
    assert plain == texts[True, False]
    assert 0.5 * len(plain) < len(green) < len(plain), "a perfect draft proposes three tokens of four"


def test_markup_in_answers_and_errors_is_harmless(talk: Any) -> None:
    """Square brackets are text, not styles: neither a user's nor a path's may break the terminal."""
    out = talk("[red]hello[/blue]", "/adapters [bold", "/[x]")
    assert "no drafter '[bold'" in out
    assert "no command /[x]" in out


def wait_for(file: Any, pattern: str, seen: list[str], seconds: float = 120) -> None:
    """Read a terminal until ``pattern`` appears."""
    end = time.monotonic() + seconds
    while not re.search(pattern, "".join(seen)):
        ready = select.select([file], [], [], max(0.0, end - time.monotonic()))[0]
        assert ready, "".join(seen)
        seen.append(os.read(file, 4096).decode(errors="replace"))


class Pressing(io.StringIO):
    """A terminal at which Ctrl-C is pressed when so many characters have come, once for each number."""

    def __init__(self, *moments: int) -> None:
        super().__init__()
        self.moments = list(moments)

    def write(self, text: str) -> int:
        """Keep the text, and press."""
        written = super().write(text)
        while self.moments and len(self.getvalue()) >= self.moments[0]:
            self.moments.pop(0)
            signal.raise_signal(signal.SIGINT)
        return written


def test_ctrl_c_ends_an_answer_and_a_second_one_the_chat(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first keeps what was said and the chat goes on, until Ctrl-D; two during one answer leave, whatever is still to be read."""
    from rich.console import Console

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    with Session.from_config(session_file(home, max_tokens=900)) as session:

        def chat(lines: str, *moments: int) -> Chat:
            monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
            return Chat(session, Console(file=Pressing(*moments), highlight=False, soft_wrap=True))

        stopped = chat("tell me everything\n/stats\n", 12)
        stopped.run()
        out = stopped.console.file.getvalue()  # type: ignore[attr-defined]
        assert re.search(r", stopped\n[\s\S]*answers +1, \d+ tokens", out)
        assert [m["role"] for m in stopped.messages] == ["user", "assistant"]
        asked = chat("/help\n")
        asked.interactive = True
        asked.run()
        with pytest.raises(KeyboardInterrupt):
            chat("again\nnever\n", 12, 12).run()
        assert sys.stdin.read() == "never\n"


def test_ctrl_c_at_the_prompt_of_a_terminal(home: Path, tmp_path: Path) -> None:
    """The real program in a real terminal: an answer, then Ctrl-C leaves with 130 and no traceback."""
    import pty

    controller, terminal = pty.openpty()
    seen: list[str] = []
    try:
        with forks.started(forks.command, ["chat", str(session_file(home))], tmp_path / "cache", terminal=os.ttyname(terminal)) as running:
            wait_for(controller, r"> $", seen)
            os.write(controller, b"hello\n")
            wait_for(controller, r"tok/s[\s\S]*> $", seen)
            for _ in range(60):  # Python's input does not hear a signal between printing the prompt and waiting for a key
                os.kill(running.process.pid, signal.SIGINT)
                if running.ends(2):
                    break
            assert running.process.exitcode == 130
            assert "Traceback" not in "".join(seen)
    finally:
        os.close(controller)
        os.close(terminal)
