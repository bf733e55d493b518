"""Plans as JSON, plans that do not fit, and compact networks on disk."""

import json
import pickle
from dataclasses import replace

import pytest
import torch

from nets_with_zeros import assert_same, randomise_, zero_, zero_randomly_
from ssl_lightning.backbones import create_backbone
from ssl_lightning.compaction import (
    Plan,
    apply_plan,
    compact,
    expand,
    load_compact,
    make_plan,
    save_compact,
)
from ssl_lightning.compaction.store import Recipe
from ssl_lightning.graph import SiteSlices


@pytest.fixture(scope="module")
def lenet():
    net = randomise_(create_backbone("lenet"))
    zero_(net.conv1, [0, 1, 2])
    zero_(net.fc1, slice(0, 250))
    return net.eval()


@pytest.fixture(scope="module")
def plan(lenet):
    return make_plan(lenet, torch.zeros(1, 1, 28, 28))


X = torch.randn(2, 1, 28, 28)


# --- JSON ----------------------------------------------------------------------------------------


def test_round_trip(plan):
    assert Plan.from_json(plan.to_json()) == plan


def edited(plan, change):
    data = json.loads(plan.to_json())
    change(data)
    return json.dumps(data)


BAD = {
    "no JSON": (lambda t, p: "{", "expected JSON"),
    "a list": (lambda t, p: "[]", "schema 1"),
    "schema": (lambda t, p: edited(p, lambda d: d.update(schema=2)), "schema 1"),
    "unknown key": (lambda t, p: edited(p, lambda d: d.update(extra=2)), "'extra'"),
    "range": (lambda t, p: edited(p, lambda d: d["modules"]["conv1"].update(outputs=[20])),
              "below 20"),
    "negative": (lambda t, p: edited(p, lambda d: d["modules"]["conv1"].update(outputs=[-1])),
                 "below 20"),
    "order": (lambda t, p: edited(p, lambda d: d["modules"]["conv1"].update(outputs=[2, 1])),
              "ascending"),
    "twice": (lambda t, p: edited(p, lambda d: d["modules"]["conv1"].update(outputs=[1, 1])),
              "ascending"),
    "text": (lambda t, p: edited(p, lambda d: d["modules"]["conv1"].update(outputs=["a"])),
             "channel numbers"),
    "missing": (lambda t, p: edited(p, lambda d: d["modules"]["conv1"].pop("of")), "damaged"),
    "no modules": (lambda t, p: edited(p, lambda d: d.update(modules=3)), "damaged"),
    "type": (lambda t, p: edited(p, lambda d: d.update(input_types=["load"])), "torch type"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_json_is_named(plan, case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=f"Plan.*{message}"):
        Plan.from_json(make(plan.to_json(), plan))


def test_explain(lenet, plan):
    table = plan.explain().splitlines()
    assert table[0].split()[:3] == ["module", "inputs", "outputs"]
    assert table[1].split() == ["conv1", "1/1", "17/20"]
    assert len([line for line in table if not line.startswith("note: ")]) == 5
    net = randomise_(create_backbone("resnet20"))
    zero_(net.layer1[0].conv2, [0, 1], net.layer1[0].bn2)
    text = make_plan(net, torch.zeros(1, 3, 32, 32)).explain()
    row = next(line for line in text.splitlines() if line.startswith("layer1.0.conv2"))
    assert "16/16" in row
    assert "2 zero or unread outputs: coupled to `" in row


# --- plans that do not fit -----------------------------------------------------------------------


def test_a_stale_plan_is_refused(lenet, plan):
    net = create_backbone("lenet")
    net.load_state_dict(lenet.state_dict())
    with torch.no_grad():
        net.conv1.bias[0] = 1.0
    with pytest.raises(ValueError, match=r"differs by.*make the plan again"):
        compact(net, plan)


@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet20"])
def test_the_wrong_backbone_is_unchanged(plan, name):
    net = create_backbone(name)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match="plan expects `"):
        apply_plan(net, plan)
    with pytest.raises(ValueError, match="plan expects `"):
        compact(net, plan)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_unequal_groups_are_refused():
    net = create_backbone("alexnet", num_classes=2)
    slices = SiteSlices(tuple(range(96)), tuple(range(100)), (96, 256), False)
    with pytest.raises(ValueError, match="different numbers of channels in the groups of `conv2`"):
        apply_plan(net, Plan({"conv2": slices}, (), ()))


def test_weights_that_are_not_finite_are_named():
    net = create_backbone("lenet")
    with torch.no_grad():
        net.fc1.bias[3] = torch.nan
    with pytest.raises(ValueError, match=r"`fc1.bias` of LeNet holds NaN"):
        make_plan(net, torch.zeros(1, 1, 28, 28))


# --- on disk -------------------------------------------------------------------------------------


def store(folder, lenet, plan):
    return save_compact(folder, compact(lenet, plan), plan, "lenet", {"num_classes": 10})


def test_saved_networks_load_without_pickle(tmp_path, lenet, plan, monkeypatch):
    store(tmp_path / "a", lenet, plan)

    def refuse(*_, **__):
        raise AssertionError("pickle was used")

    for module, name in (
        (torch, "load"),
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
    ):
        monkeypatch.setattr(module, name, refuse)
    loaded = load_compact(tmp_path / "a")
    assert not loaded.training
    assert_same(lenet, loaded, X, tolerance=1e-5)


def test_resnet_with_dead_branches_round_trip(tmp_path):
    net = randomise_(create_backbone("resnet20", shortcut="B"))
    x = torch.zeros(1, 3, 32, 32)
    zero_randomly_(net, x, 0.4)
    block = net.layer2[1]
    for layer, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
        zero_(layer, slice(None), norm)
    made = make_plan(net, x)
    small = compact(net, made).half()
    save_compact(tmp_path, small, made, "resnet20", {"shortcut": "B"})
    loaded = load_compact(tmp_path)
    assert loaded.conv1.weight.dtype == torch.float16
    assert_same(small.double().eval(), loaded.double(), torch.randn(2, 3, 32, 32).double(),
                tolerance=0.0)  # fmt: skip


@pytest.mark.parametrize("name", ["model.safetensors", "plan.json"])
def test_missing_and_truncated_files_are_named(tmp_path, lenet, plan, name):
    folder = store(tmp_path, lenet, plan)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        load_compact(folder)
    (folder / name).write_bytes(b"\xff\x00" * 20)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        load_compact(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"No {name} in"):
        load_compact(folder)


def test_weights_of_another_plan_are_refused(tmp_path, lenet, plan):
    folder = store(tmp_path, lenet, plan)
    recipe = json.loads((folder / "plan.json").read_text())
    recipe["plan"]["modules"] = {}
    (folder / "plan.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match="does not belong to plan"):
        load_compact(folder)


def test_stored_arguments_cannot_load_other_weights(tmp_path, lenet, plan):
    folder = store(tmp_path, lenet, plan)
    recipe = json.loads((folder / "plan.json").read_text())
    recipe["arguments"].update(pretrained=True, checkpoint_path="somewhere")
    (folder / "plan.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match="has no argument `pretrained`"):
        load_compact(folder)


def test_a_failed_save_leaves_what_was_there(tmp_path, lenet, plan):
    folder = store(tmp_path, lenet, plan)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="got object as 'bad'"):
        save_compact(folder, create_backbone("mlp"), plan, "lenet", {"bad": object()})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_example_inputs_have_the_stored_types(plan):
    other = replace(plan, input_shapes=((1, 4),), input_types=("int64",))
    assert [x.dtype for x in other.example_inputs()] == [torch.int64]


# --- two plans in a row, and the way back --------------------------------------------------------

FAMILIES = {
    "lenet": {},
    "mlp": {"widths": (20, 15)},
    "resnet20": {"widths": (4, 6, 8)},
    "alexnet": {"num_classes": 5},
    "torchvision:mobilenet_v2": {"num_classes": 5},
}


def shrunk(name, arguments, fraction=0.4, constants=False):
    """A backbone with zeros, its example input and its plan."""
    net = randomise_(create_backbone(name, **arguments)).eval()
    x = torch.zeros(1, *net.input_shape)
    zero_randomly_(net, x, fraction)
    return net, x, make_plan(net, x, constants=constants)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", FAMILIES)
def test_expanding_gives_back_the_masked_network(name, layout):
    net, x, plan = shrunk(name, FAMILIES[name])
    small = compact(net, plan)
    backbone = create_backbone(name, **FAMILIES[name]).to(memory_format=layout)
    masked = expand(small, backbone, plan)
    again = compact(masked, plan)
    for key, value in small.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0)
    x = torch.randn(2, *x.shape[1:])
    assert_same(net.double(), masked.double(), x.double(), tolerance=1e-9)


def test_expanding_where_constants_were_folded_gives_back_the_zeros():
    """Weights inside wrappers find their places; what constants became cannot be told apart."""
    net = randomise_(create_backbone("resnet20")).eval()
    x = torch.zeros(1, 3, 32, 32)
    zero_randomly_(net, x, 0.4, norms=False)
    plan = make_plan(net, x)
    assert any(slices.folded for slices in plan.modules.values())
    masked = expand(compact(net, plan), create_backbone("resnet20"), plan)
    for name, weight in net.named_parameters():
        if weight.dim() == 4:
            kept = masked.get_parameter(name)
            assert ((kept == weight) | (kept == 0)).all()
            assert (kept != 0).any()


def test_expanding_needs_the_right_plan(lenet, plan):
    with pytest.raises(ValueError, match="does not turn this LeNet into"):
        expand(create_backbone("lenet"), lenet, plan)


@pytest.mark.parametrize("name", ["lenet", "mlp", "resnet20"])
def test_two_plans_in_a_row(name):
    net, x, first = shrunk(name, FAMILIES[name], fraction=0.2)
    small = compact(net, first)
    zero_randomly_(small, x, 0.4, seed=1)
    later = make_plan(small, x)
    smaller = compact(small, later)
    recipe = Recipe(name, FAMILIES[name], (first,)).then(later)
    at_once = Recipe.from_json(recipe.to_json()).create()
    at_once.load_state_dict(smaller.state_dict())
    masked = expand(smaller, recipe.create_dense(), recipe.plans)
    zeros = [sum(int((p == 0).sum()) for p in m.parameters()) for m in (net, masked)]
    assert zeros[1] > zeros[0]
    assert str(at_once) == str(smaller)
    x = torch.randn(2, *x.shape[1:])
    assert_same(smaller, at_once.eval(), x, tolerance=0.0)
