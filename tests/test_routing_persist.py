"""Router files: what is saved comes back bit-equal, and everything suspicious is refused."""

from __future__ import annotations

import json
import pickle
import zipfile

import numpy as np
import pytest
from routing_tables import ARMS, make_prompts, make_rewards
from safetensors.numpy import load, save

from routing.features import PromptFeatures
from routing.outcomes import Arm
from routing.persist import load_router, save_router
from routing.policy import PromptRouter
from routing.routers import AutoRouter, BoostingRouter, KNNRouter, LogisticRouter, MLPRouter, RidgeRouter
from routing.routing_error import RoutingError

HASHES = {"code": "a" * 64, "math": "b" * 64, "chat": "c" * 64}
ROUTERS = [
    LogisticRouter(),
    MLPRouter(),
    BoostingRouter(n_trees=10),
    KNNRouter(),
    RidgeRouter(),
    AutoRouter([("knn", KNNRouter())]),
]


def _fitted(router=None, features=None) -> PromptRouter:
    prompts, domains = make_prompts(45)
    features = features or PromptFeatures("tfidf", max_terms=32)
    return PromptRouter(features, router or LogisticRouter(), arms=ARMS, fallback="generic@4").fit(prompts, make_rewards(domains))


@pytest.fixture
def saved(tmp_path):
    return save_router(_fitted(), tmp_path / "router.safetensors", run_id="run-1", adapter_hashes=HASHES)


def _edit(path, change, arrays=None) -> None:
    """Rewrite a router file with another header or other arrays."""
    data = path.read_bytes()
    meta = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    header = json.loads(meta["router"])
    change(header)
    path.write_bytes(save(load(data) | (arrays or {}), {"router": json.dumps(header)}))


@pytest.mark.parametrize("router", ROUTERS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize(
    "features", [PromptFeatures("tfidf", max_terms=32), PromptFeatures("none"), PromptFeatures("tfidf", n_components=4)]
)
def test_round_trip_is_exact(tmp_path, router, features) -> None:
    """A saved router must decide exactly like the one in memory, or an experiment's record lies."""
    fitted = _fitted(router, features)
    fitted.shares_ = {"code@4": {"memory": 0.25, "target": 0.75}}
    path = save_router(fitted, tmp_path / "r.safetensors", run_id="run-1", adapter_hashes=HASHES)
    back = load_router(path, arms=["generic", *HASHES], adapter_hashes=HASHES)
    fresh, _ = make_prompts(30, seed=9)
    np.testing.assert_array_equal(back.router.scores(fresh), fitted.scores(fresh))
    assert back.router.choose(fresh) == fitted.choose(fresh)
    assert back.router.decide(fresh[0]).nearest == fitted.decide(fresh[0]).nearest
    assert (back.run_id, back.adapter_hashes, back.router.shares_) == ("run-1", HASHES, fitted.shares_)
    again = save_router(back.router, tmp_path / "again.safetensors", run_id="run-1", adapter_hashes=HASHES)
    assert load_router(again).router.choose(fresh) == fitted.choose(fresh)


def test_guard_survives_saving(tmp_path) -> None:
    """A prompt that was unfamiliar before a restart stays so, and a router without the guard does not gain one."""
    odd = "zxqv wkjh bnmp"
    guarded = _fitted()
    back = load_router(save_router(guarded, tmp_path / "g", run_id="r")).router
    assert back.reach_ == guarded.reach_
    assert back.decide(odd).unfamiliar
    free = _fitted().set_params(familiar=None)
    prompts, domains = make_prompts(45)
    free.fit(prompts, make_rewards(domains))
    assert not load_router(save_router(free, tmp_path / "f", run_id="r")).router.decide(odd).unfamiliar


def test_files_of_version_1_are_read(saved) -> None:
    """Version 1 had no guard: such a router still loads, and routes every prompt as it did when it was written."""
    _edit(saved, lambda h: (h.pop("reach"), h.update(schema_version=1)))
    old = load_router(saved).router
    assert not old.decide("zxqv wkjh bnmp").unfamiliar
    fresh, _ = make_prompts(30, seed=9)
    np.testing.assert_array_equal(old.scores(fresh), _fitted().scores(fresh))


def test_same_router_same_bytes(tmp_path) -> None:
    """Files can be compared by hash."""
    a, b = (save_router(_fitted(), tmp_path / n, run_id="r", adapter_hashes=HASHES) for n in "ab")
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize(
    ("here", "message"),
    [
        ({"arms": ["generic", "code", "math"]}, "'chat', which does not exist"),
        ({"adapter_hashes": HASHES | {"code": "f" * 64}}, "'code', which has changed"),
        ({"adapter_hashes": {"code": "a" * 64, "math": "b" * 64}}, "'chat', which is missing"),
    ],
)
def test_other_adapters_are_a_mismatch(saved, here, message) -> None:
    """A router trained on old adapters would choose by outcomes that no longer hold."""
    with pytest.raises(RoutingError, match=message) as e:
        load_router(saved, **here)
    assert "Train" in e.value.advice


def test_adapter_without_known_version_is_a_mismatch(tmp_path) -> None:
    """A file that does not name an adapter's version cannot be matched with it."""
    path = save_router(_fitted(), tmp_path / "r", run_id="r")
    with pytest.raises(RoutingError, match="which version"):
        load_router(path, adapter_hashes=HASHES)


@pytest.mark.parametrize("name", ["../code", "/etc/passwd", "a/b", "..", "C:\\x", "", "a" * 200, "a\0b", None, 3])
def test_arms_that_are_paths_are_refused(saved, name) -> None:
    """Arm names become adapter folder names."""
    _edit(saved, lambda h: h["arms"][1].update(drafter=name))
    with pytest.raises(RoutingError):
        load_router(saved)


def _set(**fields):
    return lambda h: h.update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(schema_version=3), "newer than 2"),
        (lambda h: h.pop("reach"), "no valid field 'reach'"),
        (_set(reach=-1.0), "impossible reach"),
        (_set(reach=float("inf")), "impossible reach"),
        (_set(reach="far"), "impossible reach"),
        (_set(reach=True), "impossible reach"),
        (_set(schema_version="1"), "schema version"),
        (_set(schema_version=True), "schema version"),
        (_set(format="other"), "holds no router"),
        (_set(run_id="../../x"), "plain name"),
        (_set(shares=[]), "impossible shares"),
        (_set(shares={"code@4": {"draft": 2.0}}), "impossible shares"),
        (_set(shares={"code@4": {"../x": 0.5}}), "plain name"),
        (_set(arms=[]), "malformed arms"),
        (_set(arms=[{"drafter": "code", "k": 4}] * 4), "twice"),
        (_set(arms=[{"drafter": "code", "k": -1}]), "malformed arms"),
        (_set(arms=[{"drafter": d, "k": 4} for d in ("generic", "code")]), "shape"),
        (_set(adapter_hashes={"../x": "a" * 64}), "malformed adapter hashes"),
        (_set(adapter_hashes={"code": "not a hash"}), "malformed adapter hashes"),
        (_set(fallback="poetry"), "fallback"),
        (_set(threshold=float("nan")), "threshold"),
        (_set(threshold="0"), "threshold"),
        (_set(train_prompts=["x"]), "train_features"),
        (lambda h: h["router"].update(kind="os.system"), "unknown kind"),
        (lambda h: h["router"].update(kind="KNNRouter", params={"n_neighbors": 3}), "arrays of a KNNRouter"),
        (lambda h: h["router"]["params"].update(C="x"), "settings"),
        (lambda h: h["router"]["params"].update(extra=1), "settings"),
        (lambda h: h["features"].update(text="/etc"), "feature recipe"),
        (lambda h: h["features"].update(text="../model"), "feature recipe"),
        (lambda h: h["features"].update(max_tokens=10**9), "feature recipe"),
        (lambda h: h["features"].update(cache="/tmp/x"), "feature recipe"),
        (lambda h: h["features"].update(n_features=5), "size"),
        (lambda h: h["features"].update(text="local"), "local sentence encoder"),
        (lambda h: h["features"]["vocabulary"].reverse(), "another sentence encoder"),
        (lambda h: h["features"].update(vocabulary=["a", "a"]), "vocabulary"),
    ],
)
def test_tampered_headers_are_refused(saved, change, message) -> None:
    """Every field is checked before it is used."""
    _edit(saved, change)
    with pytest.raises(RoutingError, match=message):
        load_router(saved)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"router.coef_": np.zeros((3, 7))}, "shape"),
        ({"router.class_rewards_": np.zeros((4, 2))}, "shape"),
        ({"router.intercept_": np.full(4, np.nan)}, "finite"),
        ({"router.evil_": np.zeros(1)}, "arrays of a LogisticRouter"),
        ({"policy.evil": np.zeros(1)}, "belongs to no router"),
        ({"evil": np.zeros(1)}, "belongs to no router"),
        ({"policy.train_best": np.full(45, 99)}, "impossible"),
        ({"policy.calibration": np.zeros(3)}, "calibration"),
        ({"policy.probe": np.full(36, 5.0, dtype=np.float32)}, "another sentence encoder"),
    ],
)
def test_tampered_arrays_are_refused(saved, arrays, message) -> None:
    """Shapes must agree with the arms, the features and one another."""
    _edit(saved, lambda h: None, arrays)
    with pytest.raises(RoutingError, match=message):
        load_router(saved)


@pytest.mark.parametrize(
    ("array", "message"),
    [(np.full((5, 10, 15), 10_000, dtype=np.int32), "feature that does not exist"), (np.zeros((5, 10, 12), dtype=np.int32), "shape")],
)
def test_trees_cannot_point_outside(tmp_path, array, message) -> None:
    """A forged tree must not read beyond the features or loop."""
    path = save_router(_fitted(BoostingRouter(n_trees=10)), tmp_path / "r", run_id="r")
    _edit(path, lambda h: None, {"router.split_feature_": array})
    with pytest.raises(RoutingError, match=message):
        load_router(path)


class _Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_pickles_and_archives_are_refused_unread(tmp_path) -> None:
    """Nothing is ever unpickled or unzipped: a pickle, a zip bomb, a gzip, and a pickle renamed to .safetensors."""
    (tmp_path / "p.safetensors").write_bytes(pickle.dumps(_Bomb()))
    (tmp_path / "p0.safetensors").write_bytes(pickle.dumps(_Bomb(), protocol=0))
    (tmp_path / "g.safetensors").write_bytes(b"\x1f\x8b" + bytes(100))
    with zipfile.ZipFile(tmp_path / "z.safetensors", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("../schema.json", bytes(10**7))
    for file in tmp_path.iterdir():
        with pytest.raises(RoutingError):
            load_router(file)


def test_oversized_and_truncated_files_are_refused(saved, tmp_path, monkeypatch) -> None:
    """Memory use is bounded by the size limit; a header may not claim more than the file holds."""
    data = saved.read_bytes()
    for cut in (0, 4, 8, 100, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:cut])
        with pytest.raises(RoutingError):
            load_router(tmp_path / "cut")
    (tmp_path / "claims").write_bytes((2**63).to_bytes(8, "little") + data[8:])
    with pytest.raises(RoutingError, match="header does not fit"):
        load_router(tmp_path / "claims")
    deep = json.dumps({"__metadata__": {"router": "[" * 100_000}}).encode()
    (tmp_path / "deep").write_bytes(len(deep).to_bytes(8, "little") + deep)
    with pytest.raises(RoutingError):
        load_router(tmp_path / "deep")
    monkeypatch.setattr("routing.router_file.MAX_FILE_BYTES", 1000)
    with pytest.raises(RoutingError, match="over the limit"):
        load_router(saved)


def test_missing_file_and_bad_names_on_save(tmp_path) -> None:
    """Errors name the path and what to do; a router cannot be saved under a path-like run id."""
    with pytest.raises(RoutingError, match="no router file"):
        load_router(tmp_path / "none")
    with pytest.raises(RoutingError, match="plain name"):
        save_router(_fitted(), tmp_path / "r", run_id="../x")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_inside_another_drafter_counts_as_that_adapter(tmp_path) -> None:
    """``memory_hybrid+code`` runs the adapter ``code``: its version must be known, and the length may be chosen while decoding."""
    prompts, domains = make_prompts(45)
    arms = (Arm("generic", "auto"), Arm("memory", "auto"), Arm("memory_hybrid+code", "auto"))
    fitted = PromptRouter(PromptFeatures("none"), LogisticRouter(), arms=arms, fallback=None).fit(prompts, make_rewards(domains)[:, :3])
    path = save_router(fitted, tmp_path / "r", run_id="r", adapter_hashes={"code": HASHES["code"]})
    assert load_router(path, arms=[a.drafter for a in arms], adapter_hashes=HASHES).router.arms_ == arms
    with pytest.raises(RoutingError, match="chooses 'memory', which does not exist here"):
        load_router(path, arms=["generic", "memory_hybrid+code"], adapter_hashes=HASHES)
    with pytest.raises(RoutingError, match="does not say which version of adapter 'code'"):
        load_router(save_router(fitted, tmp_path / "s", run_id="r"), adapter_hashes=HASHES)
