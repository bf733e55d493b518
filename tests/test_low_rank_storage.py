"""Networks with low rank factors on disk: plans, compact folders, what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from ssl_lightning import (
    Plan,
    apply_plan,
    compact,
    create_backbone,
    expand,
    factorise,
    load_compact,
    make_plan,
    prune_,
    save_compact,
)
from ssl_lightning.compaction.equality import difference
from ssl_lightning.compaction.factors import Factors, product
from ssl_lightning.compaction.store import Recipe
from ssl_lightning.graph import SiteSlices
from test_low_rank import randomised

IMAGE = torch.zeros(1, 1, 28, 28, dtype=torch.float64)
X = torch.randn(2, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def lenet():
    return randomised(create_backbone("lenet"))


@pytest.mark.parametrize("method", ["svd", "tucker", "cp"])
def test_a_factorised_and_pruned_network_is_read_back_equal(tmp_path, lenet, method):
    """Compacted, factorised, pruned again: three plans, one after the other."""
    prune_(lenet, IMAGE, fraction=0.3)
    first = make_plan(lenet, IMAGE)
    small = compact(lenet, first)
    small, second, _ = factorise(small, IMAGE, ranks={"conv2": 6, "fc1": 30}, method=method)
    prune_(small, IMAGE, fraction=0.4)
    third = make_plan(small, IMAGE)
    less = compact(small, third)
    assert less.fc1[0].out_features < 30
    plans = [first, second, third]
    save_compact(tmp_path, less, plans, "lenet", {})
    again = load_compact(tmp_path)
    assert torch.equal(again(X), less(X))
    masked = expand(less, create_backbone("lenet").double(), plans)
    assert type(masked.fc1) is torch.nn.Linear
    assert difference(masked(X).detach(), less(X).detach()) < 1e-9


def test_the_product_of_the_factors_is_the_weight_of_the_expanded_layer(lenet):
    small, plan, _ = factorise(lenet, IMAGE, ranks={"conv2": (7, 5)})
    masked = expand(small, lenet, plan)
    torch.testing.assert_close(masked.conv2.weight, product(small.conv2))
    assert torch.equal(masked.conv2.bias, small.conv2[-1].bias)
    assert torch.equal(masked.fc1.weight, lenet.fc1.weight)


def test_a_plan_with_factors_is_json_and_old_plans_are_as_before(lenet):
    _, plan, _ = factorise(lenet, IMAGE, ranks={"conv2": (7, 5), "fc1": 9})
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["factors"] == {
        "conv2": {"method": "tucker", "ranks": [7, 5]},
        "fc1": {"method": "svd", "ranks": [9]},
    }
    assert "conv2 became factors (tucker) of rank 7, 5" in plan.explain()
    old = make_plan(lenet, IMAGE)
    assert "factors" not in json.loads(old.to_json())
    assert Plan.from_json(old.to_json()).factors == {}


def test_apply_plan_makes_the_layers_and_draws_nothing(lenet):
    small, plan, _ = factorise(lenet, IMAGE, ranks={"conv2": (7, 5)})
    state = torch.get_rng_state()
    again = apply_plan(lenet, plan)
    assert torch.equal(torch.get_rng_state(), state)
    assert str(again) == str(small)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(X), small(X))


def test_compact_refuses_a_plan_with_factors(lenet):
    _, plan, _ = factorise(lenet, IMAGE, ranks={"conv2": (7, 5)})
    with pytest.raises(ValueError, match=r"low rank factors \(conv2\), which change the function"):
        compact(lenet, plan)


def test_a_plan_has_factors_or_channels():
    slices = SiteSlices((0,), (0,), (1, 1), False)
    with pytest.raises(ValueError, match="expected low rank factors or channels to retain"):
        Plan({"a": slices}, ((1, 1),), ("float32",), factors={"b": Factors("svd", (1,))})


def forged(factors, modules=None):
    plan = json.loads(Plan({}, ((1, 1, 28, 28),), ("float32",)).to_json())
    return json.dumps({**plan, "modules": modules or {}, "factors": factors})


@pytest.mark.parametrize(
    ("factors", "text"),
    [
        ([], "expected `factors` as an object"),
        ({"fc1": [1]}, "expected method and ranks"),
        ({"fc1": {"method": "svd"}}, "expected 1 positive ranks"),
        ({"fc1": {"ranks": [1]}}, "unknown method None"),
        ({"fc1": {"method": "pickle", "ranks": [1]}}, "unknown method 'pickle'"),
        ({"fc1": {"method": ["svd"], "ranks": [1]}}, "unknown method"),
        ({"fc1": {"method": "svd", "ranks": [1], "code": "x"}}, "no argument 'code'"),
        ({"fc1": {"method": "svd", "ranks": [True]}}, "expected 1 positive ranks"),
        ({"fc1": {"method": "svd", "ranks": [-4]}}, "expected 1 positive ranks"),
        ({"fc1": {"method": "svd", "ranks": ["9"]}}, "expected 1 positive ranks"),
        ({"fc1": {"method": "svd", "ranks": [2**60]}}, "expected 1 positive ranks"),
        ({"fc1": {"method": "tucker", "ranks": [4]}}, "expected 2 positive ranks"),
    ],
)
def test_damaged_factors_are_refused_when_read(factors, text):
    with pytest.raises(ValueError, match=text):
        Plan.from_json(forged(factors))


@pytest.mark.parametrize(
    ("factors", "text"),
    [
        ({"fc1": {"method": "svd", "ranks": [2**31 - 1]}}, "ranks 1 to 500"),
        ({"fc1": {"method": "svd", "ranks": [500]}}, "would hold 650000 weights"),
        ({"fc1": {"method": "tucker", "ranks": [1, 1]}}, "for convolutions with a kernel"),
        ({"conv2": {"method": "cp", "ranks": [500]}}, "would hold"),
        ({"missing": {"method": "svd", "ranks": [1]}}, "no such layer"),
        ({"__class__": {"method": "svd", "ranks": [1]}}, "no such layer"),
        ({"": {"method": "svd", "ranks": [1]}}, "expected a linear layer or an ungrouped"),
    ],
)
def test_hostile_factors_are_refused_before_anything_is_allocated(factors, text, monkeypatch):
    recipe = json.dumps({"backbone": "lenet", "arguments": {}, "plan": json.loads(forged(factors))})
    read = Recipe.from_json(recipe)
    dense = read.create_dense()
    monkeypatch.setattr("ssl_lightning.compaction.factors.like", None)  # nothing is made
    with pytest.raises(ValueError, match=text):
        read.shrink(dense)


def test_plans_cannot_grow_a_network_however_many_there_are(lenet):
    """Each replaces layers by factors with at most as many weights."""
    plans = []
    for _ in range(4):
        inner = "fc1" + ".0" * len(plans)
        plans.append(
            Plan({}, ((1, 1, 28, 28),), ("float32",), factors={inner: Factors("svd", (30,))})
        )
    with pytest.raises(ValueError, match=r"a plan does not fit LeNet: .* would hold"):
        Recipe("lenet", {}, tuple(plans)).create()


def test_weights_of_other_ranks_are_refused(tmp_path, lenet):
    small, plan, _ = factorise(lenet, IMAGE, ranks={"fc1": 9})
    save_compact(tmp_path, small, plan, "lenet", {})
    data = json.loads((tmp_path / "plan.json").read_text())
    data["plan"]["factors"]["fc1"]["ranks"] = [8]
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="damaged or does not belong"):
        load_compact(tmp_path)


def test_save_compact_refuses_a_network_that_the_plan_does_not_make(tmp_path, lenet):
    small, plan, _ = factorise(lenet, IMAGE, ranks={"fc1": 9})
    with pytest.raises(ValueError, match="the plan is not the given network"):
        save_compact(tmp_path, lenet, plan, "lenet", {})
    with pytest.raises(ValueError, match="the plan is not the given network"):
        save_compact(tmp_path, small, make_plan(lenet, IMAGE), "lenet", {})
