"""The figures in the sentences of docs: each is worked out from the records of the page's tables.

A sentence of a page is given as a template, ``{name}`` for each figure. In the page it has the
figures themselves, so that it reads as any other; :func:`filled` writes them anew.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from comparing import Row, stored
from ssl_lightning.evaluation.calibration_record import CalibrationRecord
from ssl_lightning.evaluation.corruption_record import CorruptionRecord
from ssl_lightning.evaluation.estimates import Estimate
from ssl_lightning.evaluation.transfer_record import TransferRecord
from ssl_lightning.measure.precision_record import PrecisionRecord
from ssl_lightning.measure.sensitivity_record import Sensitivity
from ssl_lightning.zoo import card

DOCS = Path(__file__).resolve().parent.parent / "docs"
NUMBER = r"[-+]?\d[\d.,]*\d|\d"
Figures = Mapping[str, str]


@dataclass(frozen=True)
class Prose:
    """Sentences of a page, and what gives their figures."""

    figures: Callable[[], Figures]
    sentences: tuple[str, ...]


def pattern(sentence: str) -> re.Pattern[str]:
    """Return what finds a sentence with any figures, however its lines are broken."""
    parts = re.split(r"\{(\w+)\}", sentence)
    words = [r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in parts[::2]]
    names = [rf"(?P<{name}>{NUMBER})" for name in parts[1::2]]
    return re.compile("".join(a + b for a, b in zip(words, [*names, ""], strict=True)))


def filled(text: str, prose: Prose) -> str:
    """Return a page with its sentences' figures worked out anew."""
    figures = prose.figures()
    for sentence in prose.sentences:
        found = list(pattern(sentence).finditer(text))
        assert len(found) == 1, f"found {len(found)} times: {sentence}"
        for name in sorted(found[0].groupdict(), key=found[0].start, reverse=True):
            start, end = found[0].span(name)
            text = text[:start] + figures[name] + text[end:]
    return text


def others(text: str, prose: Prose | None) -> str:
    """Return a page without the sentences whose figures are worked out."""
    for sentence in () if prose is None else prose.sentences:
        text = pattern(sentence).sub(" ", text)
    return text


def budget_figures() -> Figures:
    """Return what docs/budgets.md says of its tables."""
    rows = stored(DOCS / "budgets/results.jsonl")
    lenet = {macs: means(rows, "lenet", "short", macs) for macs in (0.1, 0.25, 0.5)}
    tables = [*lenet.values()]
    tables += [means(rows, n, t, 0.5) for n in ("resnet20", "mobilenetv3") for t in LENGTHS]
    behind = max(table["measured"] - min(table.values()) for table in tables)
    strengths = {macs: [v for w, v in t.items() if "constant" in w] for macs, t in lenet.items()}
    large = [table["constant_0.004"] for table in lenet.values()]
    best = sorted(v for w, v in lenet[0.1].items() if w not in ("measured", "recorded"))[0]
    found = {
        "behind": f"{behind:.2f}",
        "lenet": f"{best - lenet[0.1]['measured']:.1f}",
        "low": f"{min(large):.1f}",
        "high": f"{max(large):.1f}",
        "fade": f"{lenet[0.5]['one_shot'] - lenet[0.5]['fading']:.2f}",
        **{n: f"{v:.1f}" for n, v in steered_losses(rows).items()},
        "fade_seeds": str(
            len([r for r in at(rows, "lenet", "short", 0.5) if r["way"] == "fading"])
        ),
    }
    for macs, table in lenet.items():
        share = f"{100 * macs:.0f}"
        found |= {f"ours{share}": f"{table['measured']:.2f}"}
        found |= {f"best{share}": f"{min(strengths[macs]):.2f}"}
    for network in ("resnet20", "mobilenetv3"):
        for length in LENGTHS:
            for split in ("val", "test"):
                table = means(rows, network, length, 0.5, split)
                gain = table["one_shot"] - table["measured"]
                found[f"{network}_{length}_{split}"] = f"{gain:.1f}"
    return found


LENGTHS = ("short", "long")


def steered_losses(rows: list[Row]) -> dict[str, float]:
    """Return what a steered group lasso loses to the default, network by network."""
    costs = {"lenet": 0.1, "resnet20": 0.5, "mobilenetv3": 0.5}
    tables = {network: means(rows, network, "short", macs) for network, macs in costs.items()}
    return {f"steered_{n}": table["lasso"] - table["measured"] for n, table in tables.items()}


def at(rows: Iterable[Row], network: str, length: str, macs: float) -> list[Row]:
    """Return the runs of one table."""
    place = [network, length, macs]
    return [row for row in rows if [row["network"], row["length"], row["macs"]] == place]


def means(
    rows: Iterable[Row], network: str, length: str, macs: float, split: str = "val"
) -> dict[str, float]:
    """Return way -> mean error over the seeds, of one table."""
    errors: dict[str, list[float]] = {}
    for row in at(rows, network, length, macs):
        errors.setdefault(row["way"], []).append(row[split])
    return {way: statistics.mean(values) for way, values in errors.items()}


def recipe_figures() -> Figures:
    """Return what docs/recipes.md says of its table and of budgets' table."""
    rows = stored(DOCS / "recipes/results.jsonl")
    errors = means(rows, "resnet20", "recipe10", 0.5)
    dense = card("resnet20_cifar10_dense").dense.macs
    left = max(row["macs_left"] for row in rows)
    several: dict[str, list[float]] = {}
    for row in at(stored(DOCS / "budgets/results.jsonl"), "resnet20", "short", 0.5):
        several.setdefault(row["way"], []).append(row["val"])
    spreads = [statistics.stdev(values) for values in several.values() if len(values) > 1]
    return {
        "gain": f"{errors['plain'] - errors['distilled']:.1f}",
        "dense": f"{dense / 1e6:.1f}",
        "half": f"{dense * left / 1e8:.1f}",
        "low": f"{min(spreads):.1f}",
        "high": f"{max(spreads):.1f}",
    }


def sensitivity_figures() -> Figures:
    """Return what docs/sensitivity.md says of its table."""
    found = Sensitivity.load(DOCS / "sensitivity/sensitivity.json")
    robust = r"(layer1\.\d|layer2\.[12])\.conv1:coupled"
    rows = [row for row in found.rows if re.fullmatch(robust, row.group_set)]
    rises = [row.error - found.error for row in rows if row.share == 0.5]
    assert len(rises) == 5
    return {"most": f"{max(rises):.1f}"}


def int8_figures() -> Figures:
    """Return what docs/guides/int8.md says of the sizes of files."""
    record = PrecisionRecord.load(DOCS / "guides/int8/mobilenetv3.json")
    sizes = {
        row.precision: row.num_bytes
        for row in record.rows
        if (row.network, row.engine) == ("compact", "openvino")
    }
    return {name: f"{size / 1e6:.2f}" for name, size in sizes.items()}


def generalisation_figures() -> Figures:
    """Return what docs/generalisation.md says of its tables."""
    return {**calibration_figures(), **corruption_figures(), **transfer_figures()}


def calibration_figures() -> Figures:
    """Return what is said of calibration."""
    folder = DOCS / "generalisation"
    resnet = CalibrationRecord.load(folder / "calibration_resnet20.json").compared()
    mobile = CalibrationRecord.load(folder / "calibration_mobilenetv3.json").compared()
    channel, depth18, depth14 = (resnet[f"resnet20_cifar10_{n}"] for n in ENTRIES)
    ece = [one.ece.value for one in resnet.values()]
    steps = [one.ece.value / one.ece.se for one in resnet.values()]
    (half,) = mobile.values()
    return {
        "channel_other": f"{channel.disagreement.value:.1f}",
        "depth14_lost": f"{depth14.error.value:.1f}",
        "depth18_gained": f"{-depth18.error.value:.1f}",
        "ece_low": f"{min(ece):.1f}",
        "ece_high": f"{max(ece):.1f}",
        "ece_se_low": f"{min(steps):.1f}",
        "ece_se_high": f"{max(steps):.1f}",
        "half_other": f"{half.disagreement.value:.1f}",
    }


ENTRIES = ("channel", "depth18", "depth14")


def corruption_figures() -> Figures:
    """Return what is said of corruptions."""
    folder = DOCS / "generalisation"
    record = CorruptionRecord.load(folder / "corruption_resnet20.json")
    rows = {name: record.row(f"resnet20_cifar10_{name}") for name in ("dense", *ENTRIES)}
    small = CorruptionRecord.load(folder / "corruption_mobilenetv3.json")
    large_row, half_row = small.rows

    def loss(entry: str, corruption: str | None = None) -> Estimate:
        row = rows[entry]
        assert row is not None
        found = record.loss(row, corruption)
        assert found is not None
        return found

    def clean(entry: str) -> str:
        row = rows[entry]
        assert row is not None
        return f"{row.clean.value:.1f}"

    kinds = list(record.rows[0].corruptions)
    every = [loss(entry, kind).value for entry in ENTRIES for kind in kinds]
    fog = [loss(entry, "fog").value for entry in ENTRIES]
    noise = [-loss("channel", f"{kind}_noise").value for kind in ("gaussian", "shot", "impulse")]
    worse = [loss("depth14", k).value for k in ("fog", "elastic_transform", "pixelate")]
    gain = small.loss(half_row)
    assert gain is not None
    return {
        "most": f"{min(max(every), -min(every)):.0f}",
        "fog_low": f"{min(fog):.1f}",
        "fog_high": f"{max(fog):.1f}",
        "channel": f"{-loss('channel').value:.2f}",
        "channel_se": f"{loss('channel').se:.2f}",
        "noise_low": f"{min(noise):.1f}",
        "noise_high": f"{max(noise):.1f}",
        "depth14": f"{loss('depth14').value:.2f}",
        "depth14_se": f"{loss('depth14').se:.2f}",
        "depth14_clean": clean("depth14"),
        "dense_clean": clean("dense"),
        "worse_low": f"{min(worse):.1f}",
        "worse_high": f"{max(worse):.1f}",
        "jpeg": f"{-loss('depth14', 'jpeg_compression').value:.1f}",
        "glass": f"{-loss('depth14', 'glass_blur').value:.1f}",
        "half": f"{-gain.value:.2f}",
        "half_se": f"{gain.se:.2f}",
        "half_clean": f"{half_row.clean.value:.1f}",
        "large_clean": f"{large_row.clean.value:.1f}",
    }


def transfer_figures() -> Figures:
    """Return what is said of transfer."""
    folder = DOCS / "generalisation"
    resnet = TransferRecord.load(folder / "probe_resnet20.json")
    losses = [loss for row in resnet.rows if (loss := resnet.loss(row)) is not None]
    probe = TransferRecord.load(folder / "probe_mobilenetv3.json")
    tuned = TransferRecord.load(folder / "finetune_mobilenetv3.json")
    probed, trained = probe.loss(probe.rows[1]), tuned.loss(tuned.rows[1])
    assert probed is not None
    assert trained is not None
    seeds = [-loss for loss in tuned.seed_losses(tuned.rows[1])]
    return {
        "probe_low": f"{min(-one.value for one in losses):.1f}",
        "probe_high": f"{max(-one.value for one in losses):.1f}",
        "probe_se": f"{max(-one.value / one.se for one in losses):.1f}",
        "features": f"{probe.rows[1].features:,}",
        "all_features": f"{probe.rows[0].features:,}",
        "probe_loss": f"{probed.value:.1f}",
        "tuned": f"{-trained.value:.1f}",
        "tuned_se": f"{trained.se:.1f}",
        "tuned_low": f"{min(seeds):.2f}",
        "tuned_high": f"{max(seeds):.2f}",
    }


PROSE: dict[str, Prose] = {
    "docs/budgets.md": Prose(
        budget_figures,
        (
            "is the lowest or within {behind} points of it in all seven tables",
            "It is {mobilenetv3_short_val} points below norms on MobileNetV3-small in short runs "
            "(in the long one {mobilenetv3_long_val} in validation and {mobilenetv3_long_test} in "
            "test), whose norms say little, and {resnet20_short_val} and {resnet20_long_val} on "
            "ResNet-20, short and long ({resnet20_short_test} and {resnet20_long_test} in test); "
            "on LeNet {lenet} below all but a record of the loss",
            "{ours10} and {best10} %, {ours25} and {best25} %, {ours50} and {best50} %.",
            "With 0.004, errors are {low} to {high} %",
            "best by {fade} points on LeNet at half ({fade_seeds} seeds)",
        ),
    ),
    "docs/decisions.md": Prose(
        budget_figures,
        (
            "by {steered_lenet} points on LeNet, {steered_resnet20} on ResNet-20 and "
            "{steered_mobilenetv3} on MobileNetV3-small",
        ),
    ),
    "docs/recipes.md": Prose(
        recipe_figures,
        (
            "seeds differ by {low} to {high} points",
            "({dense} million beside three times {half}), and takes off {gain} points",
        ),
    ),
    "docs/sensitivity.md": Prose(
        sensitivity_figures,
        ("can lose half of their channels for at most {most} points each",),
    ),
    "docs/guides/int8.md": Prose(
        int8_figures, ("its file is hardly smaller in OpenVINO, {float32} MB and then {int8}",)
    ),
    "docs/generalisation.md": Prose(
        generalisation_figures,
        (
            "different classes for {channel_other} % of the images",
            "`depth14` has lost {depth14_lost} points, `depth18`, which was trained longest, has "
            "gained {depth18_gained};",
            "ECE of the sparse ones is higher by {ece_low} to {ece_high} points, {ece_se_low} to "
            "{ece_se_high} standard errors;",
            "another class than the dense one for {half_other} % of the images",
            "differ from the dense one by up to {most} points in both directions",
            "All three are worse in fog, by {fog_low} to {fog_high} points.",
            "has {channel} ± {channel_se} points less error on corrupted ones, most of it under "
            "the three kinds of noise ({noise_low} to {noise_high} points)",
            "`depth14` is {depth14} ± {depth14_se} points worse, less than it is on these clean "
            "images ({depth14_clean} and {dense_clean} %)",
            "worse by {worse_low} to {worse_high} points in fog, elastic distortion and "
            "pixelation, and better by {jpeg} in JPEG compression and {glass} in glass blur",
            "better by {half} ± {half_se} points in the mean, less than on these clean images "
            "({half_clean} and {large_clean} %)",
            "differences are {probe_low} to {probe_high} points in their favour, {probe_se} "
            "standard errors",
            "has kept {features} of the {all_features} features",
            "a linear classifier on them loses {probe_loss} points",
            "better by {tuned} ± {tuned_se} points, though by {tuned_low} to {tuned_high} with",
        ),
    ),
}
"""Page -> its sentences with figures that were measured."""
