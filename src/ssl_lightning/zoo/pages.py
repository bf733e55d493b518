"""The page of an entry, generated from its card: a model card as hubs show it."""

from __future__ import annotations

from typing import Any

import yaml

from ssl_lightning.measure.record import Machine
from ssl_lightning.measure.table4 import LAYERS, TABLE4
from ssl_lightning.report.run_report import GROUP_KINDS
from ssl_lightning.report.table import NOTHING, percent
from ssl_lightning.zoo.cards import CONFIG, CURVES_PICTURE, FILTERS_PICTURE, Card
from ssl_lightning.zoo.records import CONTROLS, SeedResult, median_result
from ssl_lightning.zoo.wording import escaped, function_of, left_of, paper_groups, share, table

TAGS = ("structured-sparsity", "group-lasso", "pruning", "model-compression")
SHOWN = 12  # layers in an entry's page; of deeper networks those that lost most multiply-adds


def entry_page(card: Card) -> str:
    """Return the text of an entry's README: a model card with its YAML front matter."""
    front = yaml.safe_dump(front_matter(card), sort_keys=False, allow_unicode=True)
    sections = [
        f"# {card.name}",
        summary(card),
        "## Figures",
        figures(card),
        pictures(card),
        "## Layers",
        layers(card),
        *section("Layers beside the paper's Table 4", speedups(card)),
        *section("Latency", latency(card)),
        *section("Seeds", seeds(card)),
        *section("Controls", controls(card)),
        "## Training",
        training(card),
        *section("Not measured", unmeasured(card)),
        "## Use",
        use(card),
    ]
    body = "\n\n".join(s for s in sections if s)
    return f"---\n{front}---\n\n{body.replace('<', '&lt;')}\n"


def section(title: str, text: str) -> list[str]:
    """Return a heading and its text, or nothing if there is no text."""
    return [f"## {title}", text] if text else []


def front_matter(card: Card) -> dict[str, Any]:
    """Return the metadata that model hubs read."""
    accuracy = {"type": "accuracy", "name": "accuracy, test split", "value": accuracy_of(card)}
    data = {"type": card.data.name, "name": card.data.name, "split": "test"}
    task = {"type": "image-classification"}
    return {
        "license": card.licence.lower(),
        "library_name": "ssl_lightning",
        "pipeline_tag": "image-classification",
        "tags": [*TAGS, card.backbone],
        "datasets": [card.data.name],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": card.name,
                "results": [{"task": task, "dataset": data, "metrics": [accuracy]}],
            }
        ],
    }


def accuracy_of(card: Card) -> float:
    """Return the accuracy on the test split in percent."""
    return round(100.0 - card.test_error, 4)


def summary(card: Card) -> str:
    """Say in two sentences what the entry is."""
    data = card.data
    text = (
        f"`{card.backbone}` on {data.name}, {how_trained(card)}: a plain network "
        f"of {card.compact.macs:,} multiply-adds ({percent(card.compact.macs, card.dense.macs)} % "
        f"of the dense one) with {card.test_error:.2f} % error on the {data.num_test:,} test "
        f"images. Trained on {data.num_train:,} images; {data.num_validation:,} were held out; the "
        "test split was used to measure only."
    )
    return f"{text}\n\n{card.remark}" if card.remark else text


def how_trained(card: Card) -> str:
    """Name the penalties: their functions, on groups or on single weights; or none."""
    names = sorted({function_of(penalty) for penalty in card.penalties})
    return f"trained with {' and '.join(names)} and compacted" if names else "trained densely"


def figures(card: Card) -> str:
    """Return the table of the main figures, beside the paper's row if there is one."""
    paper = card.paper or {}
    rows = [
        ("test error, %", f"{card.test_error:.2f}", paper.get("error", NOTHING)),
        ("validation error, %", f"{card.validation_error:.2f}", NOTHING),
        *(
            (f"{what} left", here, paper_groups(paper, what))
            for what, here in left_of(card).items()
        ),
        *macs_per_layer(card, paper.get("flop_percent")),
        ("multiply-adds", share(card.compact.macs, card.dense.macs), NOTHING),
        (
            "parameters",
            share(card.compact.num_parameters, card.dense.num_parameters),
            NOTHING,
        ),
    ]
    row = paper.get("row", "no published row")
    text = table(("figure", "here", f"the paper ({row})"), rows)
    return f"{text}\n\nThe paper: {escaped(paper['reference'])}." if "reference" in paper else text


def macs_per_layer(card: Card, flop_percent: Any) -> list[tuple[str, str, str]]:
    """Return the rows that compare the layers' shares of multiply-adds, if the paper gives them.

    The paper counts kept rows x kept columns. A plain network also computes the zero columns of
    kept channels, so both are told where they differ.
    """
    if not isinstance(flop_percent, dict):
        return []
    names = [name for name in flop_percent if name in card.layer_macs]
    layers = ", ".join(flop_percent)
    theirs = " - ".join(map(str, flop_percent.values()))
    plain = " - ".join(percent(*card.layer_macs[name]) for name in names)
    kept = " - ".join(kept_percent(card, name) for name in names)
    if kept == plain:
        return [(f"multiply-adds of {layers}, %", plain, theirs)]
    return [
        (f"multiply-adds of {layers}, %", plain, NOTHING),
        ("the same, kept rows x kept columns", kept, theirs),
    ]


def kept_percent(card: Card, name: str) -> str:
    """Write the share that a layer's kept rows x kept columns have of its weight."""
    groups = card.groups.get(name, {})
    if "columns" not in groups:
        return percent(*card.layer_macs[name])
    (rows, all_rows), (columns, all_columns) = groups["filters"], groups["columns"]
    return percent(rows * columns, all_rows * all_columns)


def pictures(card: Card) -> str:
    """Show the pictures that the entry has."""
    captions = {CURVES_PICTURE: "Error and sparsity per epoch", FILTERS_PICTURE: "First filters"}
    return "\n\n".join(
        f"![{what}]({file})" for file, what in captions.items() if file in card.files
    )


def layers(card: Card) -> str:
    """Return a table of what is left of each layer."""
    lost = {name: dense - compact for name, (compact, dense) in card.layer_macs.items()}
    most = sorted(lost, key=lambda name: (-lost[name], -card.layer_macs[name][1]))[:SHOWN]
    names = [name for name in card.layer_macs if name in most]
    rows = [
        (
            f"`{name}`",
            *(
                "/".join(map(str, card.groups.get(name, {}).get(k, ()))) or NOTHING
                for k in GROUP_KINDS
            ),
            share(*card.layer_macs[name]),
        )
        for name in names
    ]
    text = table(("layer", *GROUP_KINDS, "multiply-adds"), rows)
    hidden = len(card.layer_macs) - len(names)
    return f"{text}\n\n{hidden} more layers are in `card.json`." if hidden else text


def speedups(card: Card) -> str:
    """Return AlexNet's layers beside a row of the paper's table: sparsities, limits, speed-ups."""
    record = card.layer_speedups
    if record is None:
        return ""
    paper, rows = TABLE4[record.rows[0].configuration], []
    for row in record.rows:
        i = list(LAYERS).index(row.layer)
        theirs = paper.rows[i], paper.columns[i]
        rows.append(
            (
                f"`{row.layer}`",
                *(f"{100 * s:.1f}" for s in (row.row_sparsity, row.column_sparsity)),
                f"{row.limit:.2f}",
                f"**{row.speedup:.2f}** ± {row.speedup_iqr:.2f}",
                row.dense_engine,
                *(f"{s:.1f}" for s in theirs),
                f"{limit_of(*theirs):.2f}",
                f"{paper.speedups[i]:.2f}",
            )
        )
    means = [sum(getattr(r, key) for r in record.rows) / len(rows) for key in ("limit", "speedup")]
    limits = [limit_of(*pair) for pair in zip(paper.rows, paper.columns, strict=True)]
    theirs_means = [sum(values) / len(values) for values in (limits, paper.speedups)]
    rows.append(
        (
            "mean",
            *("", ""),
            f"{means[0]:.2f}",
            f"**{means[1]:.2f}**",
            *("", "", ""),
            *(f"{mean:.2f}" for mean in theirs_means),
        )
    )
    number, form = record.rows[0].configuration, record.rows[0].form
    columns, zeros = FORMS[form]
    head = ("layer", "row %", columns, "limit, x", "CPU, x ± IQR", "dense engine")
    theirs_head = ("row %", columns, "limit, x", "CPU, x")
    return (
        table((*head, *(f"paper #{number}: {what}" for what in theirs_head)), rows)
        + f"\n\n{zeros} Limit: what the "
        "arithmetic allows. CPU x: against the fastest dense engine for that layer, batch 1, "
        "lowering, padding and writing all filters included, zeros at random positions; "
        f"{where(record.machine, record.rows[0].threads)}, {record.instruction_set}. The paper "
        "timed the product of the lowered matrices alone."
    )


FORMS = {
    "columns": ("column %", "Row and column %: filters, and filter shapes, that are zero."),
    "csr": (
        "weight %",
        "Weight %: single weights that are zero; such layers are products of compressed sparse "
        "rows (CSR) and the lowered input.",
    ),
}
"""Form of a sparse layer -> heading of its second sparsity, and what the sparsities are."""


def limit_of(rows: float, columns: float) -> float:
    """Return the speed-up that the arithmetic allows at sparsities in percent.

    Example:
        >>> round(limit_of(46.9, 84.7), 2)
        12.31
    """
    return 1 / ((1 - rows / 100) * (1 - columns / 100))


def latency(card: Card) -> str:
    """Return the tables of latency: ratios first."""
    if not card.latency:
        return ""
    rows = [
        (
            record.batch_size,
            model,
            f"{ratio:.2f} ± {record.ratio_iqr[model]:.2f}",
            f"{record.median_ms[model]:.3g}",
        )
        for record in card.latency
        for model, ratio in record.ratio.items()
    ]
    text = table(("batch", "network", "ratio to dense ± IQR", "ms per batch"), rows)
    record = card.latency[0]
    rounds = dict.fromkeys(str(record.num_rounds) for record in card.latency)
    return (
        f"{text}\n\nMedians of {' and '.join(rounds)} rounds in which the networks took turns, "
        f"{where(record.machine, record.threads)}."
    )


def where(machine: Machine, threads: int) -> str:
    """Say on what a timing was taken."""
    plural = "" if threads == 1 else "s"
    return (
        f"{threads} thread{plural} of {machine.processor} ({machine.num_cores} cores), torch "
        f"{machine.torch}, Python {machine.python}"
    )


def seeds(card: Card) -> str:
    """Return the table of all seeds."""
    rows = [
        (
            f"**{r.seed}**" if r.seed == card.seed else r.seed,
            f"{r.validation_error:.2f}",
            f"{r.test_error:.2f}",
            f"{r.macs:,}",
        )
        for r in card.seeds
    ]
    text = table(("seed", "validation error, %", "test error, %", "multiply-adds"), rows)
    if len(card.seeds) == 1:
        return f"{text}\n\nOne seed only."
    return f"{text}\n\nPublished is the one with the median validation error, in bold."


def controls(card: Card) -> str:
    """Return the table of what other methods reach."""
    if not card.controls:
        return ""
    rows = [
        ("this entry", *control_cells(card.seeds)),
        *((CONTROLS[control.kind], *control_cells(control.seeds)) for control in card.controls),
    ]
    head = ("method", "test error, % (median seed)", "all seeds", "multiply-adds")
    return table(head, rows)


def control_cells(results: tuple[SeedResult, ...]) -> tuple[str, str, str]:
    """Write the median run of a method, and the test errors of all."""
    median = median_result(results)
    errors = ", ".join(f"{r.test_error:.2f}" for r in sorted(results, key=lambda r: r.seed))
    return f"{median.test_error:.2f}", errors, f"{median.macs:,}"


def training(card: Card) -> str:
    """Say how it was trained and what that cost."""
    lines = [f"{card.epochs} epochs, seed {card.seed}; the whole run is in `config.yaml`."]
    if card.training_seconds is not None:
        lines.append(f"Training took {card.training_seconds / 60:.1f} minutes.")
    if card.step_cost is not None:
        cost = card.step_cost
        lines.append(
            f"A step with the penalties takes {cost.ratio:.3f} (± {cost.ratio_iqr:.3f} IQR) times "
            f"one without: {cost.median_ms['with']:.3g} ms instead of "
            f"{cost.median_ms['without']:.3g} ms at batch {cost.batch_size} in {cost.precision}, "
            f"{where(cost.machine, cost.threads)}."
        )
    rows = [
        (f"`{p.get('kind')}`", layers_of(p), p.get("strength"), schedule_of(p))
        for p in card.penalties
    ]
    penalties = table(("penalty", "layers", "strength", "schedule"), rows) if rows else ""
    return "\n\n".join(part for part in (" ".join(lines), penalties) if part)


def layers_of(penalty: dict[str, Any]) -> str:
    """Write the patterns that say which layers a penalty is on.

    Example:
        >>> layers_of({"layers": ["fc1", "fc2"]}), layers_of({})
        ('`fc1`, `fc2`', '`*`')
    """
    given = penalty.get("layers") or "*"
    return ", ".join(f"`{pattern}`" for pattern in ([given] if isinstance(given, str) else given))


def schedule_of(penalty: dict[str, Any]) -> str:
    """Write a penalty's schedule.

    Example:
        >>> schedule_of({"schedule": {"kind": "window", "start": 5, "end": 13}})
        'window, start 5, end 13'
    """
    given = penalty.get("schedule")
    if not isinstance(given, dict):
        return str(given or "constant")
    name = given.get("kind", given.get("class_path"))
    arguments = given.get("init_args") or {} if "class_path" in given else given
    rest = (f"{key} {value}" for key, value in arguments.items() if key != "kind")
    return ", ".join([str(name), *rest])


def unmeasured(card: Card) -> str:
    """List what is not known, and why."""
    return "\n".join(f"- {field}: {reason}" for field, reason in card.unmeasured.items())


def use(card: Card) -> str:
    """Show how to load and to check the entry."""
    if (unstored := card.weights.unstored) is not None:
        return (
            f"The weights are not stored: {unstored.num_bytes / 1e6:.1f} MB in "
            f"{card.weights.dtype}, sha256 `{unstored.sha256}`. `ssl-lightning fit --config "
            f'{card.name}/{CONFIG}` trains them again; `zoo.load("{card.name}", '
            "pretrained=False)` gives the network with fresh weights."
        )
    return (
        "```python\n"
        "from ssl_lightning import zoo\n\n"
        f'model = zoo.load("{card.name}")  # a plain nn.Module that can be trained on\n'
        "```\n\n"
        f"`ssl-lightning zoo verify {card.name}` measures every figure of this page again. Every "
        "file is checked against `card.json` before it is parsed; nothing is unpickled."
        f"{stored(card)}"
    )


def stored(card: Card) -> str:
    """Say in what type weights are stored, if it is not the usual one."""
    if card.weights.dtype == "float32":
        return ""
    return (
        f" Weights are stored in {card.weights.dtype} and computed with in float32; all figures "
        "are those of the weights so stored."
    )
