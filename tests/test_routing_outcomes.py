"""Outcome table: exact arrays from records, and refusals."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from routing_tables import make_rows

from routing.outcomes import PLAIN, Arm, from_rows, prompt_groups
from routing.routing_error import RoutingError


def test_arrays_are_the_records_counts() -> None:
    """Every number in a report must recompute from raw counts, so no cell may move or mix."""
    table = from_rows(make_rows())
    assert table.tau.shape == (6, 3, 2)
    assert table.tau[3, 2, 1] == pytest.approx(60 / (20 + 3 + 2))
    assert table.rate[0, 1, 0] == pytest.approx((60 - 21) / (21 * 2))
    assert table.measured_speedup[5, 1, 0] == pytest.approx(6.0 / 3.0)


def test_predicted_speedup_is_tokens_per_target_step_of_time() -> None:
    """What the rounds took decides, whoever drafted; repeats pool; one row that does not say leaves the cell unknown."""
    rows = [r | {"spent": 40.0 if r["drafter"] == "code" else 50.0} for r in make_rows(timed=False)]
    assert from_rows([*rows, rows[2] | {"spent": 70.0}]).predicted_speedup[0, 0, 1] == pytest.approx(120 / 120)
    table = from_rows(rows)
    np.testing.assert_allclose(table.rewards(table.arms(4, plain=True), "speedup")[0], [60 / 50, 60 / 40, 60 / 50, 1.0])
    silent, unsaid = from_rows([r | {"spent": None} if r["drafter"] == "code" else r for r in rows]), from_rows(make_rows())
    with pytest.raises(RoutingError, match="no speedup for 'code@4'"):
        silent.rewards(silent.arms(4), "speedup")
    with pytest.raises(RoutingError, match="needs what the answers take"):
        unsaid.rewards(unsaid.arms(2), "speedup")


def test_shares_say_who_proposed_what_was_chosen() -> None:
    """Of the tokens that a choice emitted: by arm, by prompt, and nothing where a row does not say; the target's part is the rest."""
    rows = [r | {"proposed": {"draft": 30} if r["drafter"] == "generic" else {"memory": 20, "draft": 10}} for r in make_rows()]
    table = from_rows(rows)
    assert table.shares([Arm("generic", 2)]) == {"draft": 0.5, "target": 0.5}
    arms = [Arm("generic", 2), Arm("code", 2), Arm(PLAIN)]
    found = table.shares(arms, np.array([0, 1, 1, 2, 2, 2]))
    assert found == pytest.approx({"draft": 50 / 360, "memory": 40 / 360, "target": 270 / 360})
    assert list(found)[-1] == "target"
    assert table.take(np.array([0])).shares([Arm("code", 4)]) == pytest.approx({"memory": 1 / 3, "draft": 1 / 6, "target": 1 / 2})
    assert from_rows([*rows[:-1], rows[-1] | {"proposed": None}]).shares([Arm("generic", 2)]) == {}


def test_rewards_have_one_column_per_arm_and_plain_is_one() -> None:
    """The plain arm lets a router fall back to no speculation, whose speedup is 1 by definition."""
    table = from_rows(make_rows())
    arms = table.arms(4, plain=True)
    rewards = table.rewards(arms, "measured")
    assert [a.name for a in arms] == ["generic@4", "code@4", "math@4", PLAIN]
    np.testing.assert_allclose(rewards[0], [3.0, 2.0, 1.5, 1.0])
    assert len(table.arms()) == 6


def test_repeats_pool_counts_and_average_times() -> None:
    """Two seeds of one cell are one cell with twice the evidence."""
    rows = make_rows()
    again = [r | {"rounds": r["rounds"] + 4, "wall_s": r["wall_s"] + 1} for r in rows if r["drafter"] == "code"]
    table = from_rows([*rows, *again])
    assert table.tau[0, 1, 0] == pytest.approx(120 / (21 + 25))
    assert table.wall_s[0, 1, 0] == pytest.approx(3.5)


def test_missing_cells_are_refused_then_left_out_by_name() -> None:
    """No row is dropped silently."""
    table = from_rows([r for r in make_rows() if not (r["sample_id"] == "s/2" and r["drafter"] == "math")])
    with pytest.raises(RoutingError, match=r"s/2.*math@4"):
        table.rewards(table.arms(4))
    kept, left_out = table.complete(table.arms(4))
    assert left_out == ("s/2",)
    assert kept.rewards(kept.arms(4)).shape == (5, 3)
    assert kept.sample_ids == ("s/0", "s/1", "s/3", "s/4", "s/5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "rejection"}, "mixes rule"),
        ({"temperature": 1.0}, "mixes temperature"),
        ({"k": "dynamic"}, "'dynamic'"),
        ({"k": True}, "True"),
        ({"accepted": 10_000}, "impossible counts"),
        ({"rounds": None}, "impossible counts"),
        ({"schema_version": 2}, "newer"),
    ],
)
def test_bad_records_are_refused(change, message) -> None:
    """Mixed acceptance rules or broken counts would train a router on nonsense."""
    rows = make_rows()
    with pytest.raises(RoutingError, match=message):
        from_rows([*rows, rows[-1] | {"sample_id": "s/9"} | change])


def test_drafters_are_chosen_and_ordered_by_name() -> None:
    """A caller's order of drafters is the table's order; a row that lacks a field is refused by the field's name."""
    assert from_rows(make_rows(), drafters=["code", "generic"]).drafters == ("code", "generic")
    with pytest.raises(RoutingError, match="lacks drafter"):
        from_rows([{"sample_id": "x"}])


def test_equal_prompts_share_a_group() -> None:
    """Folds that split two copies of one prompt would leak the answer."""
    np.testing.assert_array_equal(prompt_groups(["A  b", "a b ", "c"]), [0, 0, 1])


def test_unknown_arms_and_lengths() -> None:
    """The error names what the table holds."""
    table = from_rows(make_rows())
    with pytest.raises(RoutingError, match="K = 3"):
        table.arms(3)
    with pytest.raises(RoutingError, match="poetry@4"):
        table.rewards([Arm("poetry", 4)])
    with pytest.raises(RoutingError, match="unknown reward"):
        table.rewards(table.arms(4), "luck")


def test_import_is_light_and_knows_no_harness() -> None:
    """The command line must start fast; routing works on plain tables, so it may import neither harness nor mlx."""
    code = (
        "import sys, routing, routing.outcomes\n"
        "assert not {'sklearn', 'torch', 'sentence_transformers'} & set(sys.modules), 'heavy'\n"
        "import routing.policy, routing.persist, routing.evaluate\n"
        "assert not {m for m in sys.modules if m.split('.')[0] in ('harness', 'mlx', 'torch')}, 'foreign'\n"
        "assert all(getattr(routing, n) for n in routing.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
