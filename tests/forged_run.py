"""A process that reads forged files under an audit hook, and says how each reader ended.

``python forged_run.py KIND FIRST LAST FOLDER`` prints one line of JSON for each file: what was
forged, how each reader ended, and what was touched that a file may not have touched.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import torch

import forge

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    ROOT / "zoo" / name
    for name in (
        "mlp_mnist_neuron_small",
        "resnet20_cifar10_channel",
        "lenet_mnist_filter_channel_small",
    )
]
REFUSALS = (ValueError, FileNotFoundError, FileExistsError)
LONGEST = 1500
SECONDS = 20
SYSTEM = (
    *{os.path.realpath(p) for p in sys.path if p}, sys.prefix, sys.base_prefix, "/proc", "/sys",
    "/dev", os.path.realpath(Path(torch.__file__).parents[1]), "/usr/lib", "/usr/share/zoneinfo",
)  # fmt: skip
CHANGES = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink",
    "os.truncate", "shutil.copyfile", "shutil.move", "shutil.rmtree",
)  # fmt: skip
NEVER = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn",
    "pickle.find_class", "urllib.Request", "ctypes.dlopen",
)  # fmt: skip


class Watch:
    """What is touched while files are read."""

    def __init__(self) -> None:
        self.on = False
        self.inside: tuple[str, ...] = ()
        self.address: tuple[str, int] | None = None
        self.touched: list[str] = []
        self.known: frozenset[str] = frozenset()

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            self.opened(*args)
        elif event.startswith("socket.") and event not in ("socket.gethostname", "socket.__new__"):
            address = args[1] if event == "socket.connect" else args[:2]
            if self.address is None or (
                tuple(address[:2]) != self.address and event != "socket.bind"
            ):
                self.touched.append(f"{event} {args[1:]}")
        elif event in NEVER and not str(args[0]).startswith("libnvidia"):
            self.touched.append(f"{event} {str(args)[:200]}")
        elif event in CHANGES and not self.within(args[0]):
            self.touched.append(f"{event} {args[0]}")

    def find_spec(self, name: str, *_: Any) -> None:
        """Note what is imported, as the first that is asked; ``import_module`` raises no event."""
        if self.on and name.partition(".")[0] not in self.known:
            self.touched.append(f"import {name}")

    def opened(self, path: Any, mode: Any, flags: int) -> None:
        if isinstance(path, int) or path is None:
            return
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        real = os.path.realpath(os.fsdecode(path))
        if (
            not self.within(path)
            and (writes or not real.startswith(SYSTEM))
            and real != "/dev/null"
        ):
            self.touched.append(f"open {real} {mode}")

    def within(self, path: Any) -> bool:
        return isinstance(path, int) or os.path.realpath(os.fsdecode(path)).startswith(self.inside)


WATCH = Watch()


def tree(folder: Path) -> dict[str, Any]:
    """Return the content of all files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def ended(read: Callable[[], Any], strict: bool = True) -> str:
    """Carry out a reader; return ``ok``, ``refused: ...``, or what is wrong."""
    WATCH.on = True
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except REFUSALS as error:
        text = str(error)
        if "\n" in text or len(text) > LONGEST:
            return f"WRONG: no sentence: {text[:LONGEST]!r}"
        return f"refused: {type(error).__name__}: {text}"
    except Exception as error:
        place = [
            f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)
        ]
        return f"WRONG: {type(error).__name__}: {str(error)[:200]} {place[-8:]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        WATCH.on = False
    return "ok"


def late(*_: Any) -> None:
    """End a reader that does not end by itself."""
    raise TimeoutError(f"it took more than {SECONDS} seconds")


def run_through(model: torch.nn.Module, shape: tuple[int, ...] | None = None) -> None:
    """Make sure that a network was loaded rightly: its weights are numbers, and it runs."""
    state = model.state_dict().values()
    assert all(bool(torch.isfinite(t).all()) for t in state if t.is_floating_point())
    with torch.inference_mode():
        model.eval()(torch.zeros(1, *(shape or model.input_shape)))


def read_entry(folder: Path, scratch: Path) -> dict[str, str]:
    """Read an entry in all ways that there are."""
    from ssl_lightning import publishing, zoo
    from ssl_lightning.cli.zoo import list_entries, show_entry

    name, root = folder.name, folder.parent
    before = tree(root)
    readers: dict[str, Callable[[], Any]] = {
        "list": lambda: list_entries(str(root)),
        "show": lambda: show_entry(name, str(root)),
        "load": lambda: run_through(zoo.load(name, root=root)),
        "fresh": lambda: run_through(zoo.load(name, root, pretrained=False)),
        "verify": lambda: publishing.verify(name, root),
        "controls": lambda: publishing.add_controls(name, {"random": [scratch / "none"]}, root),
        "pull": lambda: pull(folder, scratch / "pulled"),
    }
    found = {key: ended(read) for key, read in readers.items()}
    if tree(root) != before:
        found["written"] = "WRONG: a reader changed the entry"
    found["rewritten"] = ended(lambda: publishing.write_page(name, root))
    if found["rewritten"] != "ok" and tree(root) != before:
        found["written"] = "WRONG: a refused call changed the entry"
    if found["rewritten"] == "ok":
        pages = [root / "README.md", folder / "README.md"]
        if any("<" in page.read_text() for page in pages):
            found["page"] = "WRONG: HTML of the card is in a page"
    return found


def pull(folder: Path, target: Path) -> None:
    """Pull the entry from a hub; what is refused leaves nothing."""
    from huggingface_hub import HfApi

    from hub_server import running_hub
    from ssl_lightning import zoo

    WATCH.on = False
    with running_hub() as hub:
        hub.repositories["some/body"] = {p.name: p.read_bytes() for p in folder.iterdir()}
        WATCH.address, WATCH.on = hub.server_address[:2], True
        try:
            made = zoo.pull("some/body", target, hub=HfApi(endpoint=hub.endpoint, token=False))
        except REFUSALS:
            assert not target.exists() or not tree(target), "a refused entry left something"
            raise
        finally:
            WATCH.address = None
        assert made.parent == target
        assert (made / "card.json").read_bytes() == hub.repositories["some/body"]["card.json"]


def read_compact(folder: Path, scratch: Path) -> dict[str, str]:
    """Read the folder of a compact network."""
    from ssl_lightning import load_compact

    return {"load_compact": ended(lambda: run_through(load_compact(folder)))}


def read_checkpoint(path: Path, scratch: Path) -> dict[str, str]:
    """Read a checkpoint in all ways that there are."""
    from ssl_lightning import SSLLightningModule
    from ssl_lightning.checkpoints import load_backbone
    from toy import toy_loader

    def resume() -> None:
        module = SSLLightningModule("lenet", penalties=[PENALTY])
        data = toy_loader(16, shape=SHAPE)
        quiet_trainer(scratch, 3).fit(module, data, ckpt_path=path)

    return {
        "load_backbone": ended(lambda: run_through(load_backbone(path).model, SHAPE)),
        "from_checkpoint": ended(
            lambda: run_through(SSLLightningModule.load_from_checkpoint(path).backbone, SHAPE)
        ),
        "fit": ended(resume),
    }


SHAPE = (1, 28, 28)
PENALTY = {"kind": "filter", "layers": "conv*", "strength": 1e-3}


def quiet_trainer(folder: Path, epochs: int, callbacks: Any = ()) -> Any:
    """Return a trainer that prints and stores nothing of its own."""
    from lightning.pytorch import Trainer

    return Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, callbacks=[*callbacks],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder,
    )  # fmt: skip


def checkpoints(folder: Path) -> list[Path]:
    """Train for two epochs, with locks, with and without compaction; return the checkpoints."""
    from ssl_lightning import CompactDuringFit, SSLLightningModule, ThresholdPruning
    from toy import toy_loader

    paths = []
    for number in range(2):
        module = SSLLightningModule("lenet", penalties=[PENALTY], input_shape=[1, 28, 28])
        with torch.no_grad():
            module.backbone.conv1.weight[4:] *= 1e-3
        callbacks = [ThresholdPruning(start=0, threshold=0.2, relative=True, layers="conv1")]
        if number:
            callbacks.append(CompactDuringFit(at=1))
        run = quiet_trainer(folder, 2, callbacks)
        run.fit(module, toy_loader(16, shape=SHAPE))
        run.save_checkpoint(folder / f"{number}.ckpt")
        paths.append(folder / f"{number}.ckpt")
    return paths


def forge_one(kind: str, bases: list[Path], place: Path, number: int) -> tuple[str, Path]:
    """Make a forged file of a kind below ``place``; return what was done, and where it is."""
    if kind == "entries":
        return forge.forged_entry(bases, place / "zoo", number)
    path = place / ("a.ckpt" if kind == "checkpoints" else "compact")
    make = forge.forged_checkpoint if kind == "checkpoints" else forge.forged_compact
    return make(bases, path, number), path


READERS = {"entries": read_entry, "compact": read_compact, "checkpoints": read_checkpoint}


def warm_up(kind: str, bases: list[Path], scratch: Path) -> None:
    """Read good files once, so that what is imported or opened later is the forged files' doing."""
    from ssl_lightning import create_backbone

    create_backbone("timm:resnet10t"), create_backbone("torchvision:mobilenet_v3_small")
    for number, base in enumerate(bases):
        place = scratch / f"warm{number}"
        place.mkdir()
        if kind == "entries":
            path = place / "zoo" / base.name
            forge.Entry(base, path, random.Random(0)).seal()
        else:
            path = base
        outcomes = READERS[kind](path, place)
        wrong = {k: v for k, v in outcomes.items() if v != "ok" and k != "controls"}
        assert not wrong, wrong


def check_watch(folder: Path) -> None:
    """Make sure that the hook sees what a forged file might have done."""
    torch.save({"x": forge.Bomb()}, folder / "bomb.pt")
    done: list[Callable[[], Any]] = [
        lambda: Path("/etc/hostname").read_bytes(),
        lambda: socket.create_connection(("127.0.0.1", 9), 0.1),
        lambda: torch.load(folder / "bomb.pt", weights_only=False),
        lambda: importlib.import_module(forge.CODE),
        lambda: Path("/forged_marker").mkdir(),
    ]
    for number, act in enumerate(done):
        WATCH.touched.clear()
        WATCH.on = True
        with suppress(OSError, SystemExit):
            act()
        WATCH.on = False
        assert WATCH.touched, f"the hook does not see act {number}"
    for made in (Path("/forged_marker"), Path(forge.MARKER)):
        made.rmdir()


def main(kind: str, first: int, last: int, folder: Path) -> None:
    """Read the forged files of some numbers."""
    os.chdir(folder)
    signal.signal(signal.SIGALRM, late)
    tempfile.tempdir = str(folder / "tmp")
    for place in ("tmp", "data", "path", "base"):
        (folder / place).mkdir()
    os.environ["SSL_DATA_DIR"] = str(folder / "data")
    (folder / "path" / f"{forge.CODE}.py").write_text("raise SystemExit('imported')\n")
    sys.path.insert(0, str(folder / "path"))
    warnings.simplefilter("ignore")
    bases = checkpoints(folder / "base") if kind == "checkpoints" else SOURCES
    sys.addaudithook(WATCH.hook)
    sys.meta_path.insert(0, WATCH)  # type: ignore[arg-type]
    WATCH.known = frozenset([*sys.stdlib_module_names])
    WATCH.inside = (os.path.realpath(folder),)
    warm_up(kind, bases, folder)
    WATCH.known = (
        frozenset(name.partition(".")[0] for name in sys.modules) | sys.stdlib_module_names
    )
    check_watch(folder)
    resource.setrlimit(resource.RLIMIT_AS, (24 * 2**30, 24 * 2**30))
    for number in range(first, last):
        place = folder / str(number)
        place.mkdir()
        what, path = forge_one(kind, bases, place, number)
        WATCH.touched.clear()
        outcomes = READERS[kind](path, place)
        if Path(forge.MARKER).exists() or forge.CODE in sys.modules:
            WATCH.touched.append("code of the file ran")
        print(
            json.dumps(
                {"number": number, "what": what, "ended": outcomes, "touched": WATCH.touched}
            )
        )
        sys.stdout.flush()
        shutil.rmtree(place)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]).resolve())
