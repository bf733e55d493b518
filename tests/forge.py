"""Forged files, drawn with a seed: entries of a zoo, checkpoints and compact folders."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load, save

CARD, CONFIG, GOLDEN, MODEL, PLAN = (
    "card.json", "config.yaml", "golden.safetensors", "model.safetensors", "plan.json",
)  # fmt: skip
CODE = "forged_code"
"""A module that can be imported, and must not be."""
MARKER = "forged_marker"
HTML = "<script>alert(1)</script>"

VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 3, 2**20, 2**40, 2**70, 1e308, -1e308, 0.5,
    float("nan"), float("inf"),
    "", "x", "x" * 5000, "\0", "a|b\n# c", HTML, "../../etc/passwd", "/etc/passwd", "s3://x/y",
    "http://127.0.0.1:9/weights.pth", f"{CODE}.Class", "timm:resnet10t", "zoo:../x", "é" * 50,
    [], {}, [[]], [None], [1, 2, 3], [-1], [2**40], ["x"], {"x": 1}, {"": {}}, {"__class__": "x"},
    {"class_path": f"{CODE}.Class", "init_args": {}}, [[[[[[1]]]]]], list(range(3000)),
]  # fmt: skip
NETWORKS: list[tuple[Any, Any]] = [
    ("timm:resnet10t", {"checkpoint_path": "/etc/named.pth"}),
    ("timm:resnet10t", {"pretrained": True, "pretrained_cfg_overlay": {"file": "/etc/named.pth"}}),
    ("timm:resnet10t", {"pretrained_cfg": {"url": "http://127.0.0.1:9/x"}, "pretrained": True}),
    ("timm:resnet10t", {"features_only": True}),
    ("timm:resnet10t", {"act_layer": f"{CODE}.Class"}),
    ("timm:hf-hub:somebody/model", {}),
    ("timm:local-dir:/etc", {}),
    ("timm:resnet10t.c3_in1k", {"cache_dir": "/etc"}),
    ("torchvision:mobilenet_v3_small", {"weights": "DEFAULT"}),
    ("torchvision:mobilenet_v3_small", {"progress": True}),
    ("torchvision:get_model", {"name": "resnet18"}),
    ("torchvision:googlenet", {"aux_logits": [True]}),
    ("lenet", {"num_classes": 2**20}),
    ("lenet", {"num_classes": -1}),
    ("mlp", {"widths": [2**20, 2**20]}),
    ("mlp", {"widths": [0]}),
    ("mlp", {"widths": "relu"}),
    ("resnet20", {"width": 2**20}),
    ("zoo:lenet_mnist_shape", {}),
    (f"{CODE}.Class", {}),
    ("os.system", {"command": "true"}),
    ("__import__", {}),
    ("lenet", [1]),
    (None, {}),
    (["lenet"], {}),
]
TEXTS = [
    b"", b"\0", b"\xff\xfe\x00", b"null", b"[]", b"3", b'"x"', b"{}", b"[" * 100_000,
    b'{"a":' * 100_000, b"NaN", b"1" * 6000, b"\xef\xbb\xbf{}", b'{"schema": 4, "schema": 4}',
    b"1e999",
]  # fmt: skip
CONFIGS = [
    f"!!python/object/apply:os.mkdir ['{MARKER}']\n",
    f"model: !!python/name:{CODE}.run\n",
    f"model: !!python/module:{CODE}\n",
    f"model: !!python/object/new:{CODE}.Class []\n",
    "model: &a [*a]\n",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "[" * 5000,
    "a: b: c\n",
    "model: 3\nseed_everything: 1\ntrainer: {max_epochs: 3}\n",
    "model: {}\nseed_everything: 1\ntrainer: []\n",
    "- a list\n",
    "? {a: b}\n: c\n",
    "2026-99-99\n",
    "\t",
    "model: {penalties: 3}\nseed_everything: {}\ntrainer: {max_epochs: {}}\n",
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where in nested values something could be put."""
    found = [path] if path else []
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(item, (*path, key))
    return found


def mutated(value: Any, rng: random.Random, times: int = 1) -> Any:
    """Return nested values with something else in some places, or without them."""
    value = copy.deepcopy(value)
    for _ in range(times):
        options = places(value)
        if not options:
            return rng.choice(VALUES)
        depth = rng.randint(1, max(map(len, options)))  # else most would lie in long lists
        *path, key = rng.choice([p for p in options if len(p) <= depth])
        inner = value
        for step in path:
            inner = inner[step]
        kind = rng.random()
        if kind < 0.2:
            del inner[key]
        elif kind < 0.3 and isinstance(inner, dict):
            inner[rng.choice(["x", "__class__", "weight", "forward", "\n", HTML])] = inner[key]
        elif kind < 0.4:
            inner[key] = [inner[key]]
        elif kind < 0.5 and isinstance(inner[key], int):
            inner[key] = inner[key] + rng.choice([-1, 1, 2**31, 2**62])
        else:
            inner[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Return bytes cut, grown, or with some of them others."""
    kind = rng.randrange(4)
    if kind == 0:
        return content[: rng.randrange(len(content))]
    if kind == 1:
        return content + rng.randbytes(rng.randint(1, 20))
    other = bytearray(content)
    for _ in range(rng.randint(1, 5)):
        other[rng.randrange(min(len(other), 3000) if kind == 2 else len(other))] = rng.randrange(
            256
        )
    return bytes(other)


def tensors(content: bytes, rng: random.Random) -> bytes:
    """Return another file of tensors, or one that is none."""
    kind = rng.randrange(6)
    if kind == 0:
        return damaged(content, rng)
    (length,) = struct.unpack("<Q", content[:8])
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    if kind == 1:
        text = json.dumps(mutated(header, rng, rng.randint(1, 3))).encode()
        return struct.pack("<Q", len(text)) + text + rest
    if kind == 2:
        return struct.pack("<Q", rng.choice([0, 1, 2**40, 2**63, length - 1])) + content[8:]
    stored = load(content)
    name = rng.choice(sorted(stored))
    changes: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda t: t * float("nan"), lambda t: t / 0.0, lambda t: t.half(), lambda t: t.bool(),
        lambda t: t.to(torch.int8), lambda t: t[:0], lambda t: t.flatten(), lambda t: t[None],
        lambda t: t[..., :1], lambda t: t.to(torch.float8_e5m2), lambda t: t.long(),
        lambda t: t.double(),
    ]  # fmt: skip
    if kind == 3:
        del stored[name]
    elif kind == 4:
        stored[rng.choice(["x", "a.b", "__class__", "conv1"])] = stored[name]
    else:
        stored[name] = rng.choice(changes)(stored[name])
    return save({key: value.contiguous().clone() for key, value in stored.items()})


def text_of(data: Any) -> bytes:
    """Return plain values as cards are stored, also what cards refuse."""
    return (json.dumps(data, indent=2) + "\n").encode()


class Entry:
    """A copy of an entry that is changed and sealed anew."""

    def __init__(self, source: Path, folder: Path, rng: random.Random) -> None:
        shutil.copytree(source, folder)
        self.folder, self.rng = folder, rng
        self.card: dict[str, Any] = json.loads((folder / CARD).read_bytes())
        for record in self.card["latency"]:
            record.update(batch_size=1, num_rounds=1)
        self.raw: bytes | None = None

    def replace(self, file: str, content: bytes) -> None:
        (self.folder / file).write_bytes(content)
        self.card["files"][file] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "num_bytes": len(content),
        }

    def content(self, file: str) -> bytes:
        return (self.folder / file).read_bytes()

    def seal(self) -> None:
        """Write the card under a digest that belongs to it."""
        fields = {key: value for key, value in self.card.items() if key != "digest"}
        sealed = {**fields, "digest": hashlib.sha256(text_of(fields)).hexdigest()}
        (self.folder / CARD).write_bytes(text_of(sealed) if self.raw is None else self.raw)


def forge_card(entry: Entry) -> None:
    entry.card = mutated(entry.card, entry.rng, entry.rng.randint(1, 3))


def forge_network(entry: Entry) -> None:
    name, arguments = entry.rng.choice(NETWORKS)
    entry.card.update(backbone=name, arguments=arguments)
    if entry.rng.random() < 0.7:
        recipe = json.loads(entry.content(PLAN))
        entry.replace(PLAN, text_of({**recipe, "backbone": name, "arguments": arguments}))


def forge_name(entry: Entry) -> None:
    names = [
        "README.md",
        "..",
        "../x",
        "a/b",
        ".hidden",
        "x\ny",
        "",
        "x" * 300,
        HTML,
        "\0",
        3,
        "nul",
        "-x",
    ]
    entry.card["name"] = entry.rng.choice(names)


def forge_texts(entry: Entry) -> None:
    rng, text = entry.rng, f"{HTML}\n\n# x\n|a|b|"
    fields = ["paper", "remark", "licence", "unmeasured", "data", "penalties", "budget", "teacher"]
    field = rng.choice([*fields, "machine"])
    if field == "paper":
        keys = ["row", "error", "reference", "filters", "columns", "flop_percent", HTML]
        entry.card["paper"] = {key: rng.choice([text, {text: text}, *VALUES]) for key in keys}
    elif field == "unmeasured":
        entry.card["unmeasured"] = dict.fromkeys(entry.card["unmeasured"], text)
    elif field == "data":
        entry.card["data"]["name"] = rng.choice([text, "cifar10", "imagenet", "folder", "packed"])
    elif field == "penalties":
        entry.card["penalties"] = [{"kind": text, "layers": rng.choice(VALUES), "schedule": text}]
    elif field == "budget":
        keys = ["macs", "importance", "depth", HTML]
        entry.card["budget"] = {key: rng.choice([text, *VALUES]) for key in keys}
    elif field == "machine":
        entry.card["latency"][0]["machine"]["processor"] = text
    else:
        entry.card[field] = text


def forge_timing(entry: Entry) -> None:
    record = entry.card["latency"][0]
    field = entry.rng.choice(["batch_size", "threads", "num_rounds", "ratio"])
    if field == "ratio":
        record["ratio"] = entry.rng.choice(
            [{}, {"x": 1.0}, {"compact": 1e308}, {"dense": 0.0, "compact": 1}]
        )
    else:
        record[field] = entry.rng.choice([0, -1, 2**20, 2**40, 2**70])


def forge_old(entry: Entry) -> None:
    schema = entry.rng.choice([1, 2])
    entry.card["schema"] = schema
    if schema == 2:
        del entry.card["weights"], entry.card["layer_speedups"]
    if entry.rng.random() < 0.7:
        entry.card = mutated(entry.card, entry.rng)


def forge_card_bytes(entry: Entry) -> None:
    whole = text_of(entry.card)
    entry.raw = entry.rng.choice([*TEXTS, damaged(whole, entry.rng)])


def forge_files(entry: Entry) -> None:
    rng, files = entry.rng, entry.card["files"]
    name = rng.choice(["../x", "/etc/hostname", "a/b", "model.pt", "x\0", CARD, "..\\x", "hub.py"])
    files[name] = files[rng.choice(sorted(files))]
    if rng.random() < 0.3:
        files.pop(rng.choice(sorted(files)))


def forge_plan(entry: Entry) -> None:
    entry.replace(PLAN, plan_bytes(entry.content(PLAN), entry.rng))


def forge_config(entry: Entry) -> None:
    rng = entry.rng
    if rng.random() < 0.5:
        entry.replace(CONFIG, rng.choice(CONFIGS).encode())
    else:
        config = yaml.safe_load(entry.content(CONFIG))
        entry.replace(CONFIG, yaml.safe_dump(mutated(config, rng, 2)).encode())


def forge_golden(entry: Entry) -> None:
    content = entry.content(GOLDEN)
    empty = [b"", save({}), save({"input": torch.zeros(1)})]
    entry.replace(
        GOLDEN, entry.rng.choice([*empty, *[tensors(content, entry.rng) for _ in range(4)]])
    )


def forge_weights(entry: Entry) -> None:
    entry.replace(MODEL, tensors(entry.content(MODEL), entry.rng))


def forge_others(entry: Entry) -> None:
    files = [
        f
        for f in ("README.md", "curves.csv", "curves.png", "filters.png")
        if f in entry.card["files"]
    ]
    contents = [*TEXTS, HTML.encode(), b"epoch,x\n0,y\n", b"epoch\n" + b"," * 200_000]
    entry.replace(entry.rng.choice(files), entry.rng.choice(contents))


ENTRIES: list[Callable[[Entry], None]] = [
    forge_card, forge_card, forge_network, forge_name, forge_texts, forge_timing, forge_old,
    forge_card_bytes, forge_files, forge_plan, forge_plan, forge_config, forge_golden,
    forge_weights, forge_others,
]  # fmt: skip


def forged_entry(sources: list[Path], root: Path, number: int) -> tuple[str, Path]:
    """Make an entry in a new folder of entries; return what was done, and the entry's folder."""
    rng = random.Random(number)
    forge = ENTRIES[number % len(ENTRIES)]
    source = rng.choice(sources)
    entry = Entry(source, root / source.name, rng)
    forge(entry)
    entry.seal()
    name = entry.card.get("name")
    if isinstance(name, str) and name.isidentifier() and len(name) < 100 and name != source.name:
        return forge.__name__, entry.folder.rename(root / name)
    return forge.__name__, entry.folder


def plan_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return another recipe of a compact network, or something that is none."""
    recipe, kind = json.loads(content), rng.randrange(6)
    if kind == 0:
        return rng.choice([*TEXTS, damaged(content, rng)])
    if kind == 1:
        name, arguments = rng.choice(NETWORKS)
        return text_of({**recipe, "backbone": name, "arguments": arguments})
    plan = recipe["plan"]
    if isinstance(plan, list):
        plan = plan[0]
    if kind == 2:
        slices = plan["modules"][rng.choice(sorted(plan["modules"]))]
        key = rng.choice(
            ["in_channels", "out_features", "training", "__class__", "forward", "groups", ""]
        )
        slices["attributes"] = rng.choice(
            [{key: 10**9}, {key: -1}, {key: 0}, {key: 2**70}, {key: "x"}, 3]
        )
    elif kind == 3:
        recipe["plan"] = rng.choice([[plan, plan], [], [plan] * 1001, {}, None, [[plan]], 3])
    elif kind == 4:
        recipe = mutated(recipe, rng, rng.randint(1, 3))
    else:
        plan["modules"] = mutated(plan["modules"], rng, rng.randint(1, 3))
    return text_of(recipe)


def forged_compact(sources: list[Path], folder: Path, number: int) -> str:
    """Make the folder of a compact network; return what was done."""
    rng = random.Random(number)
    source, what = rng.choice(sources), rng.choice(["plan", "plan", "weights"])
    folder.mkdir(parents=True)
    plan, weights = (source / PLAN).read_bytes(), (source / MODEL).read_bytes()
    (folder / PLAN).write_bytes(plan_bytes(plan, rng) if what == "plan" else plan)
    (folder / MODEL).write_bytes(tensors(weights, rng) if what == "weights" else weights)
    return what


class Bomb:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (MARKER,)


def forged_checkpoint(sources: list[Path], path: Path, number: int) -> str:
    """Make a checkpoint; return what was done."""
    rng = random.Random(number)
    source = rng.choice(sources)
    what = ["bytes", "code", "settings", "own", "weights", "part", "network", "anything"][
        number % 8
    ]
    if what == "bytes":
        path.write_bytes(damaged(source.read_bytes(), rng))
        return what
    content = torch.load(source, weights_only=True)
    if what == "code":
        content[rng.choice(["x", "state_dict", "hyper_parameters", "loops"])] = Bomb()
    elif what == "settings":
        content["hyper_parameters"] = mutated(dict(content["hyper_parameters"]), rng, 2)
        keys = ["_instantiator", "_class_path", "optimizer", "init_from", "hparams_name"]
        if rng.random() < 0.5:
            content["hyper_parameters"][rng.choice(keys)] = rng.choice([f"{CODE}.run", *VALUES])
    elif what == "own":
        content["ssl_lightning"] = mutated(content["ssl_lightning"], rng, 2)
    elif what == "weights":
        name = rng.choice(sorted(content["state_dict"]))
        other = [
            None,
            "x",
            torch.zeros(3),
            torch.tensor(float("nan")),
            content["state_dict"][name] / 0.0,
        ]
        content["state_dict"][name] = rng.choice(other)
    elif what == "part":
        content[rng.choice(sorted(content))] = copy.deepcopy(rng.choice(VALUES))
    elif what == "network":
        name, arguments = rng.choice(NETWORKS)
        content["hyper_parameters"].update(backbone=name, backbone_args=arguments)
    else:
        content = mutated(content, rng, 3)
    torch.save(content, path)
    return what
