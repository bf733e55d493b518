"""Models of Hugging Face transformers: pruned, compacted, written and read by their own means."""

from __future__ import annotations

import copy
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nets_with_zeros import randomise_
from ssl_lightning import (
    Inputs,
    compact,
    load_compact,
    make_plan,
    prune_,
    register_backbone,
    save_compact,
)
from ssl_lightning.backbones import BACKBONES, class_path

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
SMALL |= {"num_attention_heads": 4}
TEXT = {**SMALL, "vocab_size": 50, "max_position_embeddings": 16}
IDS = torch.randint(3, 50, (2, 6), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS).index_fill(1, torch.tensor([5]), 0)
LABELS = torch.tensor([0, 2])


def vit(**settings):
    config = transformers.ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=5, **settings)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return transformers.ViTForImageClassification(config), Inputs(x), LABELS


def bert():
    net = transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT, num_labels=3))
    return net, Inputs(input_ids=IDS, attention_mask=MASK), LABELS


def bert_mlm():
    net = transformers.BertForMaskedLM(transformers.BertConfig(**TEXT))
    return net, Inputs(input_ids=IDS, attention_mask=MASK), IDS


def llama(**settings):
    """Two query heads to each head of keys and values."""
    config = transformers.LlamaConfig(**TEXT, num_key_value_heads=2, **settings)
    net = transformers.LlamaForCausalLM(config)
    return net, Inputs(input_ids=IDS, attention_mask=MASK, use_cache=False), IDS


def tied_llama():
    return llama(tie_word_embeddings=True)


MODELS = {f.__name__: f for f in (vit, bert, bert_mlm, llama, tied_llama)}
REMOVABLE = {
    "vit": ("head", "ffn", "coupled"),
    "bert": ("head", "ffn", "coupled"),
    "bert_mlm": ("head", "ffn"),
    "llama": ("head", "ffn"),
    "tied_llama": ("head", "ffn"),
}


@pytest.fixture(autouse=True)
def norms_in_double(monkeypatch):
    """Let Llama's norms compute in the type of their input, or float64 would say nothing."""

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps_))

    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    monkeypatch.setattr(LlamaRMSNorm, "eps_", 1e-6, raising=False)
    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


def pruned(name, kind, fraction=0.5):
    """A model in float64 with random biases and zero groups; what it is called with; its labels."""
    torch.manual_seed(0)
    net, inputs, labels = MODELS[name]()
    net = randomise_(net.double().eval())
    prune_(net, inputs, kind=kind, fraction=fraction)
    return net, inputs, labels


def outputs(net, inputs):
    with torch.no_grad():
        return inputs.run(net).logits


def largest_difference(one, other):
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())


def count(net):
    return sum(p.numel() for p in net.parameters())


def saved(tmp_path, name="vit", kind="ffn"):
    net, inputs, _ = pruned(name, kind)
    plan = make_plan(net, inputs)
    small = compact(net, plan)
    return save_compact(tmp_path / "small", small, plan), small, inputs


# --- the same function, all the way ---


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in REMOVABLE.items() for kind in kinds]
)
def test_compact_saved_loaded_and_trained_on(tmp_path, name, kind):
    net, inputs, labels = pruned(name, kind)
    plan = make_plan(net, inputs)
    small = compact(net, plan)
    assert count(small) < 0.9 * count(net), plan.explain()
    assert largest_difference(outputs(small, inputs), outputs(net, inputs)) < 1e-10
    folder = save_compact(tmp_path / "small", small, plan)
    assert {"config.json", "model.safetensors", "plan.json"} <= {f.name for f in folder.iterdir()}
    loaded = load_compact(folder)
    assert type(loaded) is type(net)
    assert not loaded.training
    assert torch.equal(outputs(loaded, inputs), outputs(small, inputs))
    assert len(list(loaded.parameters())) == len(list(small.parameters()))  # tied ones stay tied
    for one, other in zip(loaded.named_buffers(), small.named_buffers(), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])

    before = copy.deepcopy(loaded.state_dict())
    optimizer = torch.optim.SGD(loaded.train().parameters(), lr=0.1)
    loss = Inputs(*inputs.args, **inputs.kwargs, labels=labels).run(loaded).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loaded.parameters())
    optimizer.step()
    assert any(not torch.equal(before[k], v) for k, v in loaded.state_dict().items())
    again = save_compact(tmp_path / "again", loaded.eval(), plan)
    assert torch.equal(outputs(load_compact(again), inputs), outputs(loaded, inputs))


@pytest.mark.parametrize("name", ["bert_mlm", "tied_llama"])
def test_tied_weights_are_one_parameter_again(tmp_path, name):
    folder, _, _ = saved(tmp_path, name, "head")
    loaded = load_compact(folder)
    inside, outside = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert inside.weight is outside.weight
    stored = load_file(folder / "model.safetensors")
    assert sum(t.shape == inside.weight.shape for t in stored.values()) == 1


def test_constants_and_parts_of_layers_come_back(tmp_path):
    """Neurons that are constant, not zero; and a layer that writes a part of a wide stream."""
    torch.manual_seed(0)
    net, inputs, _ = vit()
    net = randomise_(net.double().eval())
    block = net.vit.layers[0] if hasattr(net.vit, "layers") else net.vit.encoder.layer[0]
    linear = [m for m in block.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        linear[-2].weight[:9] = 0  # the bias and what follows make them constants
        linear[-1].weight[3:11] = 0
        linear[-1].bias[3:11] = 0
    plan = make_plan(net, inputs)
    assert any(slices.folded for slices in plan.modules.values())
    assert any(slices.writes is not None for slices in plan.modules.values())
    small = compact(net, plan)
    loaded = load_compact(save_compact(tmp_path / "small", small, plan))
    assert torch.equal(outputs(loaded, inputs), outputs(small, inputs))
    assert largest_difference(outputs(loaded, inputs), outputs(net, inputs)) < 1e-10


def test_generation_goes_on(tmp_path):
    net, inputs, _ = pruned("llama", "head")
    net.generation_config.max_new_tokens = 3
    net.generation_config.pad_token_id = 0
    plan = make_plan(net, inputs)
    small = compact(net, plan)
    # as a callback or command writes it, which know the network by the path of its class
    loaded = load_compact(save_compact(tmp_path / "small", small, plan, class_path(net), {}))
    assert loaded.generation_config.max_new_tokens == 3
    expected = net.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    assert expected.shape == (2, 9)
    found = loaded.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    assert torch.equal(found, expected)


class Materialised(TorchDispatchMode):
    """Counts the bytes of tensors that get memory of their own."""

    def __init__(self):
        super().__init__()
        self.bytes, self.known = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if real(t)}
        for tensor in tree_leaves(out):
            if real(tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.bytes += tensor.untyped_storage().nbytes()
        return out


def real(value):
    return isinstance(value, torch.Tensor) and value.device.type != "meta"


def test_large_weights_are_never_made(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # modes see one thread only
    wide = {**SMALL, "intermediate_size": 20_000}
    config = transformers.ViTConfig(**wide, image_size=8, patch_size=4, num_labels=5)
    with Materialised() as making:
        net = transformers.ViTForImageClassification(config).eval()
    dense = sum(p.nbytes for p in net.parameters())
    assert making.bytes >= dense  # so the count sees weights that are made
    x = torch.randn(1, 3, 8, 8)
    linear = [m for m in net.modules() if isinstance(m, nn.Linear) and 20_000 in m.weight.shape]
    with torch.no_grad():
        for layer in linear[::2]:
            layer.weight[4:], layer.bias[4:] = 0, 0
    plan = make_plan(net, x)
    small = compact(net, plan)
    size = sum(p.nbytes for p in small.parameters())
    assert size < dense / 50
    folder = save_compact(tmp_path / "small", small, plan)
    with Materialised() as loading:
        loaded = load_compact(folder)
    assert loading.bytes < 3 * size + 100_000  # positions of what is retained are 160 kB
    torch.testing.assert_close(outputs(loaded, Inputs(x)), outputs(small, Inputs(x)))


# --- names ---


def test_a_registered_name_and_an_own_subclass_take_the_ordinary_way(tmp_path):
    class Own(transformers.ViTForImageClassification):
        pass

    net, inputs, _ = pruned("vit", "ffn")
    net.__class__ = Own
    plan = make_plan(net, inputs)
    small = compact(net, plan)
    folder = save_compact(tmp_path / "own", small, plan)
    assert not (folder / "config.json").exists()
    with pytest.raises(
        ValueError, match=r"is of the network 'test_transformers\..*in commands `--model"
    ):
        load_compact(folder)
    assert torch.equal(outputs(load_compact(folder, net), inputs), outputs(small, inputs))

    register_backbone("my-vit", lambda: vit()[0].double())
    try:
        folder = save_compact(tmp_path / "named", small, plan, "my-vit")
        assert torch.equal(outputs(load_compact(folder), inputs), outputs(small, inputs))
    finally:
        del BACKBONES["my-vit"]


# --- what is not supported, and what is damaged ---


def test_what_cannot_be_captured_is_said():
    net, _, _ = llama()
    with pytest.raises(ValueError, match=r"return no cache: `Inputs\(input_ids=\.\.\., use_cache"):
        make_plan(net, Inputs(input_ids=IDS))
    net, _, _ = pruned("bert", "ffn")
    with pytest.raises(ValueError, match=r"given as `Inputs\(\*\*batch\)`"):
        make_plan(net, {"input_ids": IDS})


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def change_plan(folder, **values):
    recipe = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**recipe, **values}))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def widen(tensors):
    name = next(k for k, t in tensors.items() if t.dim() == 2)
    tensors[name] = torch.zeros(3, 3, dtype=torch.float64)


def diverge(tensors):
    tensors["classifier.bias"][0] = float("nan")


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), "No config.json in"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "No model.safetensors in"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "expected JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "expected a mapping"),
    "another type": (lambda f: change_config(f, model_type="bert"), "expected the config of a ViT"),
    "another model": (
        lambda f: change_config(f, architectures=["ViTModel"]),
        "got \\['ViTModel'\\]",
    ),
    "other sizes": (lambda f: change_config(f, hidden_size=32), "small"),
    "no size": (lambda f: change_config(f, hidden_size="x"), "damaged|belong together"),
    "cut short": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"),
        "is damaged",
    ),
    "a tensor too few": (
        lambda f: change_tensors(f, lambda t: t.pop("classifier.bias")),
        "has missing keys: .*classifier.bias",
    ),
    "a tensor too many": (
        lambda f: change_tensors(f, lambda t: t.update(more=torch.zeros(1))),
        "has unexpected keys: .*more",
    ),
    "a tensor of another size": (lambda f: change_tensors(f, widen), "belong together"),
    "NaN": (lambda f: change_tensors(f, diverge), "NaN or infinite"),
    "code": (
        lambda f: change_config(f, auto_map={"AutoModel": "x.Y"}),
        "'auto_map' is .* names code",
    ),
    "code inside": (
        lambda f: change_config(f, text_config={"attn_implementation": "someone/kernel"}),
        "'attn_implementation' is 'someone/kernel'",
    ),
    "a quantizer": (
        lambda f: change_config(f, quantization_config={"quant_method": "awq"}),
        "'quantization_config' is",
    ),
    "no model": (lambda f: change_plan(f, backbone="transformers:os"), "has no model 'os'"),
    "no such model": (lambda f: change_plan(f, backbone="transformers:a.b"), "has no model 'a.b'"),
    "a base class": (
        lambda f: change_plan(f, backbone="transformers:PreTrainedModel"),
        "has no model 'PreTrainedModel'",
    ),
    "a class of all": (
        lambda f: change_plan(f, backbone="transformers:AutoModel"),
        "has no model 'AutoModel'",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("whole"))[0]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_a_sentence(whole, tmp_path, damage):
    folder = tmp_path / "small"
    shutil.copytree(whole, folder)
    load_compact(folder)
    change, message = DAMAGE[damage]
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_compact(folder)


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    net, inputs, _ = pruned("vit", "ffn")
    plan = make_plan(net, inputs)
    small = compact(net, plan)
    with pytest.raises(
        ValueError, match=r"could not be read again: .*the plan that it was made with"
    ):
        save_compact(tmp_path / "a", net, plan)  # the dense model, with the plan of the small one
    small.classifier.float()
    with pytest.raises(ValueError, match=r"`classifier.weight` differs. Give all weights one type"):
        save_compact(tmp_path / "a", small, plan)
    small.classifier.double()
    small.config.auto_map = {"AutoModel": "x.Y"}
    with pytest.raises(ValueError, match=r"save_compact: 'auto_map' is"):
        save_compact(tmp_path / "a", small, plan)
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").iterdir())


def test_without_transformers_the_way_to_it_is_said(whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'ssl_lightning\[transformers\]'"):
        load_compact(whole)
