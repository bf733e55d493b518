"""The page of an entry, generated from its card: a model card as hubs show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ssl_lightning.costs import RESOURCES
from ssl_lightning.measure.record import Machine
from ssl_lightning.measure.table4 import LAYERS, TABLE4
from ssl_lightning.publishing.evaluations import Evaluated
from ssl_lightning.report.run_report import GROUP_KINDS
from ssl_lightning.report.table import NOTHING, percent
from ssl_lightning.zoo.cards import CURVES_PICTURE, FILTERS_PICTURE, Card
from ssl_lightning.zoo.records import CONTROLS, SeedResult, median_result
from ssl_lightning.zoo.wording import (
    escaped,
    function_of,
    layers_of,
    left_of,
    paper_groups,
    schedule_of,
    share,
    table_row,
)

TEMPLATE = Path(__file__).with_name("page.md.jinja")
TASK = "image-classification"
TAGS = ("structured-sparsity", "group-lasso", "pruning", "model-compression")
PICTURES = {CURVES_PICTURE: "Error and sparsity per epoch", FILTERS_PICTURE: "First filters"}
SHOWN = 12  # layers in an entry's page; of deeper networks those that lost most multiply-adds
FORMS = {
    "columns": {
        "heading": "column %",
        "zeros": "Row and column %: filters, and filter shapes, that are zero.",
    },
    "csr": {
        "heading": "weight %",
        "zeros": "Weight %: single weights that are zero; such layers are products of compressed "
        "sparse rows (CSR) and the lowered input.",
    },
}
"""Form of a sparse layer -> heading of its second sparsity, and what the sparsities are."""

TARGETS = (*RESOURCES, *(r.absolute for r in RESOURCES.values() if r.absolute), "multiple")
ABOUT = 0.2
"""How far a share is from 1 at most that is about 1."""
Rows = list[tuple[object, ...]]


def entry_page(card: Card, evaluations: Evaluated | None = None) -> str:
    """Return the text of an entry's README: a model card with its YAML front matter.

    Args:
        card: of the entry.
        evaluations: what its records of ``evaluate`` say.
    """
    page = model_card(card, evaluations)
    front = page.content.removesuffix(page.text)
    return f"{front}{page_text(page)}\n"


def page_text(page: ModelCard) -> str:
    """Return the Markdown of a page without its front matter."""
    return page.text.replace("<", "&lt;")


def model_card(card: Card, evaluations: Evaluated | None = None) -> ModelCard:
    """Return an entry's page as a model card."""
    given: dict[str, Any] = {f.__name__: f for f in FUNCTIONS}
    page: ModelCard = ModelCard.from_template(
        metadata(card),
        template_path=str(TEMPLATE),
        card=card,
        paper=card.paper or {},
        pictures=PICTURES,
        kinds=GROUP_KINDS,
        control_names=CONTROLS,
        how_trained=how_trained(card),
        beside_controls=beside_controls(card),
        figures=figures(card),
        layers=layers(card),
        evaluations=evaluations,
        **speedups(card),
        count="{:,}".format,
        row=table_row,
        **given,
    )
    return page


def metadata(card: Card) -> ModelCardData:
    """Return what model hubs read."""
    result = EvalResult(
        task_type=TASK,
        dataset_type=card.data.name,
        dataset_name=card.data.name,
        dataset_split="test",
        metric_type="accuracy",
        metric_name="accuracy, test split",
        metric_value=round(100.0 - card.test_error, 4),
    )
    return ModelCardData(
        license=card.licence.lower(),
        library_name="ssl_lightning",
        pipeline_tag=TASK,
        tags=[*TAGS, card.backbone],
        datasets=[card.data.name],
        metrics=["accuracy"],
        model_name=card.name,
        eval_results=[result],
    )


def how_trained(card: Card) -> str:
    """Name the penalties: their functions, on groups or on single weights; or the budget; or none.

    Penalties without a strength say what may go, and are named with the budget.
    """
    names = sorted({function_of(p) for p in card.penalties if p.get("strength") is not None})
    ways = [f"trained with {' and '.join(names)}"] if names else []
    ways += [f"brought down to a budget of {budget_of(card.budget)}"] if card.budget else []
    teacher = f", distilled from `{literal(card.teacher)}`" if card.teacher else ""
    return (f"{', '.join(ways)} and compacted" if ways else "trained densely") + teacher


def budget_of(budget: Mapping[str, Any]) -> str:
    """Write the targets of a budget, and by what groups were chosen.

    Example:
        >>> budget_of({"macs": 0.5, "importance": "measured", "end": 0})
        '`macs: 0.5` by measured importance'
    """
    importance = f" by {literal(budget['importance'])} importance" if "importance" in budget else ""
    importance += f" by `{literal(budget['class'])}`" if "class" in budget else ""
    return f"{targets_of(budget)}{importance}"


def targets_of(budget: Mapping[str, Any]) -> str:
    """Write the targets of a budget."""
    found = ", ".join(f"{name}: {budget[name]}" for name in TARGETS if name in budget)
    return f"`{literal(found)}`"


def literal(value: object) -> str:
    """Write a value so that it cannot end the code span that it stands in."""
    return escaped(value).replace("`", "'")


def beside_controls(card: Card) -> str:
    """Say in one sentence what the controls reach, best first."""
    errors = card.control_errors()
    said = f" The {CONTROLS['dense']}: {errors.pop('dense'):.2f} %." if "dense" in errors else ""
    if not errors:
        return said
    parts = [
        f"{CONTROLS[kind]} {errors[kind]:.2f} %" for kind in sorted(errors, key=errors.__getitem__)
    ]
    better = sum(error < card.test_error for error in errors.values()) or "none"
    of = of_multiply_adds(card)
    if card.budget and "macs" not in card.budget:
        of = f"the same budget ({targets_of(card.budget)})"
    return f" Controls of {of}: {', '.join(parts)}; {better} of {len(errors)} better.{said}"


def of_multiply_adds(card: Card) -> str:
    """Say how many multiply-adds the controls have, but for the dense network."""
    medians = [median_result(c.seeds).macs for c in card.controls if c.kind != "dense"]
    shares = [macs / card.compact.macs for macs in medians]
    if all(abs(share - 1) <= ABOUT for share in shares):
        return "about as many multiply-adds"
    return f"{min(shares):.0%} to {max(shares):.0%} of its multiply-adds"


def figures(card: Card) -> Rows:
    """Return the main figures, beside the paper's row if there is one."""
    paper, dense, compact = card.paper or {}, card.dense, card.compact
    return [
        ("test error, %", f"{card.test_error:.2f}", paper.get("error", NOTHING)),
        ("validation error, %", f"{card.validation_error:.2f}", NOTHING),
        *(
            (f"{what} left", here, paper_groups(paper, what))
            for what, here in left_of(card).items()
        ),
        *macs_per_layer(card, paper.get("flop_percent")),
        ("multiply-adds", share(compact.macs, dense.macs), NOTHING),
        ("parameters", share(compact.num_parameters, dense.num_parameters), NOTHING),
    ]


def macs_per_layer(card: Card, flop_percent: Any) -> Rows:
    """Return the rows that compare the layers' shares of multiply-adds, if the paper gives them.

    The paper counts retained rows x retained columns. A plain network also computes the zero
    columns of retained channels, so there are two rows where the counts differ.
    """
    if not isinstance(flop_percent, dict):
        return []
    names = [name for name in flop_percent if name in card.layer_macs]
    title = f"multiply-adds of {', '.join(flop_percent)}, %"
    theirs = " - ".join(map(str, flop_percent.values()))
    plain = " - ".join(percent(*card.layer_macs[name]) for name in names)
    groups = " - ".join(groups_percent(card, name) for name in names)
    if groups == plain:
        return [(title, plain, theirs)]
    return [(title, plain, NOTHING), ("the same, kept rows x kept columns", groups, theirs)]


def groups_percent(card: Card, name: str) -> str:
    """Write the share that a layer's retained rows x retained columns have of its weight."""
    groups = card.groups.get(name, {})
    if "columns" not in groups:
        return percent(*card.layer_macs[name])
    (rows, all_rows), (columns, all_columns) = groups["filters"], groups["columns"]
    return percent(rows * columns, all_rows * all_columns)


def layers(card: Card) -> Rows:
    """Return the groups and multiply-adds of each layer, or of those that lost most."""
    lost = {name: dense - compact for name, (compact, dense) in card.layer_macs.items()}
    most = sorted(lost, key=lambda name: (-lost[name], -card.layer_macs[name][1]))[:SHOWN]
    return [
        (f"`{name}`", *map(partial(group_cell, card, name), GROUP_KINDS), share(*macs))
        for name, macs in card.layer_macs.items()
        if name in most
    ]


def group_cell(card: Card, layer: str, kind: str) -> str:
    """Write how many groups of a kind a layer has, of how many."""
    return "/".join(map(str, card.groups.get(layer, {}).get(kind, ()))) or NOTHING


def speedups(card: Card) -> dict[str, Any]:
    """Return layers beside a row of the paper's table: sparsities, limits and speed-ups."""
    record = card.layer_speedups
    if record is None:
        return {"speedups": []}
    number, form = record.rows[0].configuration, FORMS[record.rows[0].form]
    paper, rows = TABLE4[number], Rows()
    limits = [limit_of(*pair) for pair in zip(paper.rows, paper.columns, strict=True)]
    for row in record.rows:
        i = list(LAYERS).index(row.layer)
        shares = [f"{100 * s:.1f}" for s in (row.row_sparsity, row.column_sparsity)]
        mine = (f"{row.limit:.2f}", f"**{row.speedup:.2f}** ± {row.speedup_iqr:.2f}")
        theirs = (f"{s:.1f}" for s in (paper.rows[i], paper.columns[i]))
        ends = (f"{limits[i]:.2f}", f"{paper.speedups[i]:.2f}")
        rows.append((f"`{row.layer}`", *shares, *mine, row.dense_engine, *theirs, *ends))
    means = [
        sum(values) / len(rows)
        for values in (
            [row.limit for row in record.rows],
            [row.speedup for row in record.rows],
            limits,
            paper.speedups,
        )
    ]
    limit, speedup, *theirs_means = (f"{mean:.2f}" for mean in means)
    rows.append(("mean", "", "", limit, f"**{speedup}**", "", "", "", *theirs_means))
    heads = ("row %", form["heading"], "limit, x", "CPU, x")
    return {
        "speedups": rows,
        "form": form,
        "paper_head": [f"paper #{number}: {what}" for what in heads],
    }


def limit_of(rows: float, columns: float) -> float:
    """Return the speed-up that the arithmetic allows at sparsities in percent.

    Example:
        >>> round(limit_of(46.9, 84.7), 2)
        12.31
    """
    return 1 / ((1 - rows / 100) * (1 - columns / 100))


def where(machine: Machine, threads: int) -> str:
    """Say on what a timing was taken."""
    plural = "" if threads == 1 else "s"
    return (
        f"{threads} thread{plural} of {machine.processor} ({machine.num_cores} cores), torch "
        f"{machine.torch}, Python {machine.python}"
    )


def control_cells(results: tuple[SeedResult, ...]) -> tuple[str, str, str]:
    """Write the median run of a method, and the test errors of all."""
    median = median_result(results)
    errors = ", ".join(f"{r.test_error:.2f}" for r in sorted(results, key=lambda r: r.seed))
    return f"{median.test_error:.2f}", errors, f"{median.macs:,}"


FUNCTIONS: tuple[Callable[..., Any], ...] = (
    literal,
    escaped,
    percent,
    where,
    control_cells,
    layers_of,
    schedule_of,
)
"""What the template calls."""
