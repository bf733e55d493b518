"""What penalties cost: training loops with and without them, which take turns step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from ssl_lightning.backbones import create_backbone
from ssl_lightning.groups import KINDS, GroupSet, Selector, resolve_each
from ssl_lightning.groups.resolve import repeated_sets
from ssl_lightning.groups.surroundings import Surroundings
from ssl_lightning.measure.engine import quiet
from ssl_lightning.measure.machine import machine, package_versions
from ssl_lightning.measure.macs import evaluating
from ssl_lightning.measure.memory import PeakMemory
from ssl_lightning.measure.peers import TORCH_PRUNING, require_peer, torch_pruning_regularizer
from ssl_lightning.measure.training_loop import TrainingLoop
from ssl_lightning.measure.training_record import ALL, NONE, TrainingRecord, TrainingRow
from ssl_lightning.measure.turns import Turns, num_threads, quartiles, take_steps
from ssl_lightning.penalties import MCP, GroupLasso, Penalty, PenaltyFunction
from ssl_lightning.penalties.specs import MODES
from ssl_lightning.progress import steps, track
from ssl_lightning.suggest import first_line, pick

AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16}
DEVICES = ("cpu", "cuda")
WARMUP = 3  # untimed rounds
MIN_STEPS = 3  # fewer have no quartiles
SMALLEST = {"batch_size": 1, "steps": MIN_STEPS, "threads": 1}
Key = tuple[str, str]  # form, mode
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TrainingSetting:
    """What is measured of each backbone, and how.

    Attributes:
        kinds: of groups; each is measured alone, and all of them together.
        modes: ``"proximal"``, ``"subgradient"`` or both.
        batch_size: images of a step.
        dtype: ``"float32"``, or ``"bfloat16"``: autocast, with weights in float32.
        steps: timed steps of each form.
        threads: intra-op threads.
        peers: whether torch-pruning's regulariser is measured too.
        device: ``"cpu"`` or ``"cuda"``.
        strength: of every penalty; at the default no group becomes zero.

    Raises:
        ValueError: if a name is unknown, a number is too small, or what is asked for is not there.
    """

    kinds: Sequence[str] = ("filter", "channel", "shape", "depth", "coupled")
    modes: Sequence[str] = MODES
    batch_size: int = 128
    dtype: str = "float32"
    steps: int = 30
    threads: int = 1
    peers: bool = False
    device: str = "cpu"
    strength: float = 1e-5

    def __post_init__(self) -> None:
        where = "measure_training"
        for name, what, table, call in (
            ("kinds", "group kind", KINDS, "register_kind"),
            ("modes", "mode", dict.fromkeys(MODES), ""),
        ):
            given = tuple(dict.fromkeys(getattr(self, name)))
            for one in given:
                pick(what, one, table, call)
            if not given:
                raise ValueError(
                    f"{where}: expected some {name}, got none. Give one of {', '.join(table)}."
                )
            object.__setattr__(self, name, given)
        pick("type", self.dtype, AUTOCAST)
        pick("device", self.device, dict.fromkeys(DEVICES))
        for name, least in SMALLEST.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"{where}: expected {name} of at least {least}, got {getattr(self, name)}. "
                    "Give more."
                )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"{where}: torch sees no GPU here. Measure on the device 'cpu'.")
        if self.peers:
            require_peer(f"{where}: `peers`", "torch_pruning")


@dataclass(frozen=True)
class Form:
    """What a training loop is regularised by."""

    name: str
    mode: str
    penalties: tuple[Penalty, ...]


def measure_training(
    backbones: Sequence[str],
    setting: TrainingSetting | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> TrainingRecord:
    """Time training steps with and without penalties, in turns, and measure their memory.

    Every form of a backbone is a plain loop with a network of its own, all with the same weights
    and the same batch in memory: without penalties, with each kind of group in each mode, with all
    kinds together, with MCP in place of group lasso, and with the regulariser of torch-pruning.
    They make one step each, round by round, in an order that is reversed after every round; so a
    slow moment of the machine hits all alike. Afterwards the memory of one more step is measured.

    Args:
        backbones: names as :func:`~ssl_lightning.create_backbone` takes them.
        setting: what is measured; the defaults if None.
        progress: is told what is measured now, since it takes minutes.

    Returns:
        The record; what a backbone has no groups for, or what fails on it, is in ``left_out``.

    Raises:
        ValueError: if a backbone is unknown, or is no classifier of images.

    Example:
        >>> setting = TrainingSetting(["filter"], ["proximal"], batch_size=2, steps=3)
        >>> record = measure_training(["lenet"], setting)
        >>> [(row.form, row.mode) for row in record.rows]
        [('none', ''), ('filter', 'proximal'), ('filter, mcp', 'proximal')]
    """
    setting = setting or TrainingSetting()
    networks = {name: created(name) for name in dict.fromkeys(backbones)}
    shapes = {name: tuple(net.input_shape) for name, net in networks.items()}  # type: ignore[arg-type]
    rows: list[TrainingRow] = []
    left_out: dict[str, str] = {}
    with quiet(), num_threads(setting.threads):
        for name in track(list(networks), "training steps"):
            progress(f"{name}: looking for groups")
            loops, missing = training_loops(name, networks.pop(name), setting)
            progress(f"{name}: {len(loops)} forms, {WARMUP + setting.steps} steps each")
            rows += measured(name, loops, setting.steps)
            left_out |= {f"{name}, {what}": why for what, why in missing.items()}
    return TrainingRecord(
        batch_size=setting.batch_size,
        dtype=setting.dtype,
        threads=setting.threads,
        steps=setting.steps,
        input_shapes=shapes,
        machine=machine(torch.device(setting.device)),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        versions=versions_of(backbones, setting),
        rows=tuple(rows),
        left_out=left_out,
    )


def created(name: str) -> nn.Module:
    """Return a backbone with the same random weights in each run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_backbone(name)


def versions_of(backbones: Sequence[str], setting: TrainingSetting) -> dict[str, str]:
    """Return the versions of all that was measured."""
    sources = {name.partition(":")[0] for name in backbones if ":" in name}
    peers = [TORCH_PRUNING] if setting.peers else []
    return package_versions(["ssl-lightning", "torch", *sources, *peers])


def training_loops(
    backbone: str, net: nn.Module, setting: TrainingSetting
) -> tuple[dict[Key, TrainingLoop], dict[str, str]]:
    """Return the loops that take turns, the one without penalties first, and what is left out."""
    net = net.to(setting.device)
    batch, num_classes = random_batch(backbone, net, setting)
    found, left_out = groups_of(net, batch[0][:1], setting.kinds)
    autocast = AUTOCAST[setting.dtype]
    loops: dict[Key, TrainingLoop] = {}
    for form in forms_of(found, left_out, setting):
        try:
            loop = TrainingLoop(
                copy.deepcopy(net), batch, autocast=autocast, penalties=form.penalties
            )
        except ValueError as error:
            left_out[f"{form.name} {form.mode}"] = first_line(error)
        else:
            loops[form.name, form.mode] = loop
    if setting.peers:
        try:
            model = copy.deepcopy(net)
            regularize = torch_pruning_regularizer(model, batch[0][:1], num_classes)
            loop = TrainingLoop(model, batch, autocast=autocast, regularize=regularize)
            loop()
        except Exception as error:  # whatever another library raises, here or in its first step
            left_out[TORCH_PRUNING] = f"{type(error).__name__}: {first_line(error)}"
        else:
            loops[TORCH_PRUNING, ""] = loop
    return loops, left_out


def random_batch(backbone: str, net: nn.Module, setting: TrainingSetting) -> tuple[Batch, int]:
    """Return random images with random classes, and how many classes there are.

    Raises:
        ValueError: if the network returns no scores of classes.
    """
    generator = torch.Generator().manual_seed(0)
    shape: tuple[int, ...] = net.input_shape  # type: ignore[assignment]
    x = torch.randn(setting.batch_size, *shape, generator=generator).to(setting.device)
    with evaluating(net), torch.no_grad():
        scores = net(x[:1])
    if not isinstance(scores, Tensor) or scores.dim() < 2 or not scores.is_floating_point():
        raise ValueError(
            f"measure_training: expected scores of classes (N, C, ...) from {backbone}, got "
            f"{type(scores).__name__} {tuple(getattr(scores, 'shape', ()))}. Leave it out."
        )
    classes, size = scores.shape[1], (setting.batch_size, *scores.shape[2:])
    y = torch.randint(classes, size, generator=generator).to(setting.device)
    return (x, y), classes


def groups_of(
    net: nn.Module, x: Tensor, kinds: Sequence[str]
) -> tuple[dict[str, list[GroupSet]], dict[str, str]]:
    """Return kind -> the groups that a network has of it, and kind -> why it has none."""
    around = Surroundings(net, x, strict=False)
    found: dict[str, list[GroupSet]] = {}
    reasons: dict[str, str] = {}
    for kind in kinds:
        try:
            (sets,) = resolve_each(net, [Selector(kind)], around=around)
        except ValueError as error:
            reasons[kind] = first_line(error)
            continue
        if sets:
            found[kind] = sets
        elif KINDS[kind].shortcut:
            reasons[kind] = "It has no such groups: around none of its layers leads a shortcut"
        else:
            reasons[kind] = "It has no such groups"
    return found, reasons


def forms_of(
    found: Mapping[str, Sequence[GroupSet]], left_out: dict[str, str], setting: TrainingSetting
) -> Iterator[Form]:
    """Yield the forms: without penalties, each kind, all kinds, and with MCP.

    Coupled groups that are those of another kind too are not penalised twice: the kind is left out
    where all kinds are together, which is noted.
    """
    taken = repeated_sets(s for sets in found.values() for s in sets)
    together = [kind for kind, sets in found.items() if not all(s.name in taken for s in sets)]
    for kind in found:
        if kind not in together:
            others = sorted({taken[s.name].rpartition(":")[2] for s in found[kind]})
            left_out[f"{kind} in {ALL}"] = f"All of its groups are those of {' and '.join(others)}"
    several = {ALL: together} if len(together) > 1 else {}
    yield Form(NONE, "", ())
    lasso = GroupLasso()
    for name, kinds in {**{kind: [kind] for kind in found}, **several}.items():
        for mode in setting.modes:
            yield Form(name, mode, penalties_on(kinds, found, mode, lasso, setting.strength))
    for mode in setting.modes if together else ():
        name = f"{ALL if several else together[0]}, mcp"
        yield Form(name, mode, penalties_on(together, found, mode, MCP(), setting.strength))


def penalties_on(
    kinds: Sequence[str],
    found: Mapping[str, Sequence[GroupSet]],
    mode: str,
    function: PenaltyFunction,
    strength: float,
) -> tuple[Penalty, ...]:
    """Return a penalty on all groups of each kind."""
    return tuple(
        Penalty(
            strength,
            [s.layer for s in found[kind]] if KINDS[kind].shortcut else "*",
            mode,
            kind=kind,
            function=function,
        )
        for kind in kinds
    )


def measured(
    backbone: str, loops: Mapping[Key, TrainingLoop], rounds: int
) -> Iterator[TrainingRow]:
    """Let the loops take turns, and then measure the memory of each."""
    with steps(backbone, 2) as part:
        turns = take_steps(loops, repeats=rounds, warmup=WARMUP)
        part.advance()
        for key, loop in track(loops.items(), "memory"):
            yield row(backbone, key, loop, turns)


def row(backbone: str, key: Key, loop: TrainingLoop, turns: Turns[Key]) -> TrainingRow:
    """Return the figures of a loop that took its turns."""
    form, mode = key
    samples = turns.samples[key]
    low, middle, high = quartiles(turns.ratios(key, (NONE, "")))
    inside = float(median(loop.stopwatch.laps()[-len(samples) :]))
    peak, own = peaks(loop)
    return TrainingRow(
        backbone=backbone,
        form=form,
        mode=mode,
        step_ms=round(median(samples), 4),
        ratio=round(middle, 5),
        ratio_low=round(low, 5),
        ratio_high=round(high, 5),
        penalty_ms=round(inside, 4),
        peak_bytes=peak,
        penalty_bytes=own,
    )


def peaks(loop: TrainingLoop) -> tuple[int, int]:
    """Return the peak memory of a step, and that inside its penalties.

    The first step begins without gradients, the second one's are not of interest.
    """
    whole, inside = PeakMemory(loop.device), PeakMemory(loop.device)
    loop.around = nullcontext
    loop.optimizer.zero_grad()
    with whole():
        loop()
    loop.around = inside
    loop()
    return whole.bytes, inside.bytes
