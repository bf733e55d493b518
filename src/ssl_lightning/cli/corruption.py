"""evaluate corruption: errors on corrupted images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from ssl_lightning.cli.compared import (
    Compared,
    as_bytes,
    check_same_images,
    compared_networks,
    data_name,
    images_of,
    pixel_statistics,
    split_key,
)
from ssl_lightning.cli.records import check_output, continued, finish
from ssl_lightning.evaluation.corruption import Made, Source, Stored, check_images, summed, wrong_on
from ssl_lightning.evaluation.corruption_record import (
    CORRUPTIONS,
    SEVERITIES,
    CorruptionRecord,
    CorruptionRow,
)
from ssl_lightning.evaluation.estimates import mean_estimate
from ssl_lightning.evaluation.predictions import predict
from ssl_lightning.progress import steps, track
from ssl_lightning.report.corruption import corruption_chart, corruption_table
from ssl_lightning.report.generalisation import TABLE_WIDTH

WHERE = "evaluate corruption"


def corruption(
    networks: list[str],
    dense: str | None = None,
    data: str | None = None,
    files: str | None = None,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
    title: str = "Common corruptions",
    output: str | None = None,
    model: str | None = None,
    config: str | None = None,
) -> None:
    """Measure errors on images with fifteen common corruptions at five severities.

    The images are corrupted here, as the network would be given them (extra `robustness`), or read
    from the files of CIFAR-10-C. With `--output`, the same command continues after a stop.

    Args:
        networks: checkpoints, compact folders or zoo:<name>.
        dense: the network that corruption errors are relative to.
        data: config whose ``data`` names the images of all, or a data set such as mnist; default:
            those that each network was trained with.
        files: folder of the .npy files of CIFAR-10-C, for networks of CIFAR-10.
        split: validation or test: which images are corrupted.
        limit: number of images of each corruption and severity, the first ones; default: all.
        batch_size: images per forward pass.
        seed: of what is random in the corruptions.
        title: heading.
        output: JSON file to write; the picture is drawn beside it as a PNG.
        model: import path of the class of networks that are your own.
        config: instead, a config whose ``model.backbone`` is used.
    """
    check_output(output)
    found = compared_networks(WHERE, networks, dense, data, model, config)
    check_same_images(WHERE, found, split)
    check_same_shape(found)
    source = corrupted_images(found[0], files, split, limit, seed)
    record = CorruptionRecord(
        title=title,
        data=data_name(found[0].data),
        split=split,
        images=len(source(CORRUPTIONS[0], 1)[1]),
        input_shape=tuple(found[0].example.shape[1:]),
        source=source.words,
        seed=source.seed,
        dense=None if dense is None else found[0].name,
        rows=(),
    )
    with steps(WHERE, 1 + len(CORRUPTIONS)) as part:
        keys = {network.name: network.key(split_key(network.data, split)) for network in found}
        record = with_clean(continued(record, output, keys), found, keys, limit, batch_size)
        for name in CORRUPTIONS:
            part.advance()
            record = with_corruption(record, found, source, name, batch_size)
            if output is not None:
                record.save(output)
    rows = (row for network in found for row in record.rows if row.network == network.name)
    record = replace(record, rows=tuple(rows))
    finish(record, corruption_table(record), corruption_chart, output, TABLE_WIDTH)


def check_same_shape(networks: list[Compared]) -> None:
    """Refuse networks that take images of different sizes: these would be corrupted differently.

    Raises:
        ValueError: naming two.
    """
    first = networks[0]
    for other in networks[1:]:
        shapes = [tuple(n.example.shape[1:]) for n in (first, other)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{WHERE}: expected networks that take images of one size, got {first.name} "
                f"{shapes[0]} and {other.name} {shapes[1]}. Measure them in separate commands."
            )


def corrupted_images(
    network: Compared, files: str | None, split: str, limit: int | None, seed: int
) -> Source:
    """Return where the corrupted images come from.

    Raises:
        FileNotFoundError, ValueError: if they cannot be made or read.
    """
    if files is not None:
        if data_name(network.data) != "CIFAR10" or split != "test":
            raise ValueError(
                f"--files: expected networks of CIFAR-10 and its test split, got "
                f"{data_name(network.data)} and {split}. Omit --files or the --split."
            )
        return Stored(Path(files), limit)
    check_images(network.example.shape[1:])
    mean, std = pixel_statistics(WHERE, network.data)
    batches = list(images_of(WHERE, network.data, split, limit, 250))
    images = torch.cat([as_bytes(x, mean, std) for x, _ in batches])
    return Made(images.numpy(), torch.cat([labels for _, labels in batches]), seed)


def with_clean(
    record: CorruptionRecord,
    networks: list[Compared],
    keys: Mapping[str, str],
    limit: int | None,
    batch_size: int,
) -> CorruptionRecord:
    """Return a record with a row for each network, and its error on the images as they are."""
    rows = list(record.rows)
    for network in track(networks):
        if record.row(network.name) is None:
            batches = network.batches(WHERE, record.split, limit, batch_size)
            wrong = predict(network.model, batches).wrong().double().tolist()
            sizes = network.sizes()
            clean = mean_estimate(wrong, 100)
            cost = sizes["MACs"], sizes["parameters"]
            rows.append(CorruptionRow(network.name, *cost, clean, {}, keys[network.name]))
    return replace(record, rows=tuple(rows))


def with_corruption(
    record: CorruptionRecord,
    networks: list[Compared],
    source: Source,
    corruption: str,
    batch_size: int,
) -> CorruptionRecord:
    """Return a record with the errors of one corruption, of those networks that have none yet."""
    done = {row.network for row in record.rows if corruption in row.corruptions}
    missing = [network for network in networks if network.name not in done]
    if not missing:
        return record
    names = ", ".join(network.name for network in missing)
    Console().print(f"{corruption}: {names}", highlight=False, soft_wrap=True)
    wrong: dict[str, list[torch.Tensor]] = {network.name: [] for network in missing}
    for severity in track(SEVERITIES):
        images, labels = source(corruption, severity)
        for n in track(missing):
            statistics = pixel_statistics(WHERE, n.data)
            wrong[n.name].append(wrong_on(n.model, images, labels, *statistics, batch_size))
    found = {name: summed(each) for name, each in wrong.items()}
    rows = (
        replace(row, corruptions={**row.corruptions, corruption: found[row.network]})
        if row.network in found
        else row
        for row in record.rows
    )
    return replace(record, rows=tuple(rows))
