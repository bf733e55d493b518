"""benchmark: dense, masked and compact networks side by side in any engine, and their errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from ssl_lightning.checkpoints import TrainedBackbone, load_backbone
from ssl_lightning.cli import cost, int8, sparse
from ssl_lightning.cli.data import data_section, make_data
from ssl_lightning.cli.examples import suggest
from ssl_lightning.cli.network import load_trained
from ssl_lightning.cli.parse import call
from ssl_lightning.compaction import load_compact, plan_and_compact
from ssl_lightning.measure import benchmark
from ssl_lightning.measure.csr import with_csr_layers
from ssl_lightning.measure.turns import several
from ssl_lightning.progress import steps, track
from ssl_lightning.publishing.measuring import groups_left, measure_error
from ssl_lightning.report import RunReport, print_report
from ssl_lightning.suggest import nearest, pick

COMMANDS = sparse.COMMANDS | cost.COMMANDS | {"int8": int8.int8}


def run(name: str, arguments: list[str]) -> None:
    """Carry out the command: a checkpoint, or one of the fixed comparisons."""
    refuse_misspelt(arguments[:1])
    if arguments and arguments[0] in COMMANDS:
        what = arguments[0]
        call(COMMANDS[what], f"{name} {what}", arguments[1:], cost.BY_HAND.get(what))
    else:
        call(benchmark_checkpoint, name, arguments)


def refuse_misspelt(first: Sequence[str]) -> None:
    """Refuse a word that is no file and nearly the name of a comparison.

    Raises:
        ValueError: if the first argument is one.
    """
    for word in first:
        hint = nearest(word, COMMANDS)
        if word not in COMMANDS and hint.startswith("Did") and not Path(word).exists():
            raise ValueError(
                f"benchmark: expected a checkpoint or a comparison, got {word}. {hint}"
            )


def benchmark_checkpoint(
    checkpoint: str,
    dense: str | None = None,
    compacted: str | None = None,
    data: str | None = None,
    forms: str | list[str] = ["dense", "masked", "compact"],  # noqa: B006 - read only, for --help
    engines: str | list[str] = "eager",
    batch_size: int | list[int] = 1,
    dtype: str | list[str] = "float32",
    threads: int | list[int] | None = None,
    per_layer: bool = True,
    repeats: int = 30,
    title: str | None = None,
    output: str | None = None,
    model: str | None = None,
    config: str | None = None,
) -> None:
    """Measure the dense, masked and compact network of a run side by side.

    ``benchmark paper-table4`` and ``benchmark break-even`` compare sparse layers with dense ones,
    ``benchmark training`` training steps with and without penalties, ``benchmark int8`` precisions.

    Args:
        checkpoint: file that ``fit`` wrote: the masked network.
        dense: checkpoint of the dense baseline; default: the backbone, untrained, without error.
        compacted: folder of the compact network; default: it is made from the checkpoint.
        data: config whose ``data`` errors are measured on, a data set such as mnist, or none;
            default: the run's config.yaml.
        forms: some of dense, masked, compact and csr (zeros as sparse products, as l1 can be run),
            such as [dense,compact].
        engines: eager (always measured), compile, onnxruntime, openvino, a list, or all installed.
        batch_size: images per forward pass, or several, such as [1,8].
        dtype: float32, bfloat16, or [float32,bfloat16].
        threads: number of threads to measure with, or several, as [1,2]; default: torch's own.
        per_layer: also time every layer, in eager.
        repeats: interleaved samples per network and engine.
        title: heading of the report.
        output: report to write; default: ``report.json`` in the folder above the checkpoint's.
        model: import path of the network's class, such as ``mine.MyNetwork``, if it is your own.
        config: instead, the config that it was trained with, whose ``model.backbone`` is used.
    """
    settings: dict[str, Any] = {"engines": engines, "batch_size": batch_size, "dtype": dtype}
    settings |= {"threads": threads, "per_layer": per_layer, "repeats": repeats}
    trained, folder = load_trained(checkpoint, model, config), Path(checkpoint).parent.parent
    models = networks(trained, forms, dense, compacted)
    section = data_section(data, folder, ", or `--data none`")
    with steps("benchmark", 2) as part:
        result = benchmark(models, example_of(trained), **settings)  # first: it checks settings
        part.advance()
        errors = measure_errors(trained_ones(models, dense), section)
    groups = groups_left(trained.original(), trained.model, trained.masked())
    path = Path(output) if output else folder / "report.json"
    given = {"dense": dense, "masked": checkpoint, "compact": compacted or checkpoint}
    sources = {form: str(source) for form, source in given.items() if source and form in models}
    RunReport(title or trained.name, errors, groups, result, sources).save(path)
    print_report(path)
    Console().print(f"Wrote {path}")
    suggest(f"report {path}")


def networks(
    trained: TrainedBackbone,
    forms: str | list[str],
    dense: str | None,
    compacted: str | None,
) -> dict[str, nn.Module]:
    """Return the network of a checkpoint in each form that is asked for.

    Raises:
        ValueError: if a form is unknown.
    """
    makers: dict[str, Callable[[], nn.Module]] = {
        "dense": lambda: dense_baseline(trained, dense),
        "masked": trained.masked,
        "compact": lambda: compact_network(trained, compacted),
        "csr": lambda: with_csr_layers(trained.masked()),
    }
    return {form: pick("form", form, makers)() for form in several(forms)}


def trained_ones(models: dict[str, nn.Module], dense: str | None) -> dict[str, nn.Module]:
    """Return the networks that have errors of their own: a dense one if a checkpoint was given."""
    known = {"masked", "compact"} | ({"dense"} if dense is not None else set())
    return {form: model for form, model in models.items() if form in known}


def example_of(trained: TrainedBackbone) -> Tensor:
    """Return a random image of the size that a network is made for, ``(1, ...)``."""
    shape: tuple[int, ...] = trained.model.input_shape  # type: ignore[assignment]
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def dense_baseline(trained: TrainedBackbone, checkpoint: str | None) -> nn.Module:
    """Return the dense network: from its checkpoint, or the backbone with random weights."""
    if checkpoint is not None:
        return load_backbone(checkpoint, trained.own).model
    dense = trained.original().eval()
    for parameter in dense.parameters():
        nn.init.normal_(parameter, std=0.01)
    return dense


def compact_network(trained: TrainedBackbone, folder: str | None) -> nn.Module:
    """Return the compact network: from its folder, or made now."""
    if folder is not None:
        return load_compact(folder, trained.own)
    return plan_and_compact(trained.model, torch.zeros_like(example_of(trained)))[1]


def measure_errors(
    models: dict[str, nn.Module], section: dict[str, Any] | None
) -> dict[str, float]:
    """Return the error in percent of every network on the test split."""
    if section is None:
        return {}
    data = make_data(section)
    data.setup("test")
    networks = track(models.items(), "errors")
    return {key: measure_error(model, data.test_dataloader()) for key, model in networks}
