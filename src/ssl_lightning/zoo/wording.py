"""How the zoo's pages write counts, shares and retained groups."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ssl_lightning.report.run_report import GROUP_KINDS
from ssl_lightning.report.table import NOTHING, percent
from ssl_lightning.zoo.cards import Card


def table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table.

    Example:
        >>> print(table(("a", "b"), [(1, 2)]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    lines = [table_row(*head), f"|{'---|' * len(head)}", *(table_row(*row) for row in rows)]
    return "\n".join(lines)


def table_row(*cells: object) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(map(escaped, cells))} |"


def escaped(cell: object) -> str:
    r"""Write a cell of a table so that it cannot end the cell or the row, nor be HTML.

    Example:
        >>> escaped("a|b<script>")
        'a\\|b&lt;script>'
    """
    text = " ".join(str(cell).split()).replace("<", "&lt;")
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def share(part: int, whole: int) -> str:
    """Write a count and its share of another.

    Example:
        >>> share(269_000, 2_293_000)
        '269,000 of 2,293,000 (11.7 %)'
    """
    return f"{part:,} of {whole:,} ({percent(part, whole)} %)"


def left_of(card: Card) -> dict[str, str]:
    """Write the retained groups: of kinds that the paper names, else of all with removed ones."""
    named = [kind for kind in GROUP_KINDS if kind in (card.paper or {})]
    return {kind: groups_line(card, kind) for kind in named} or totals_left(card)


def totals_left(card: Card) -> dict[str, str]:
    """Write how many layers are retained, and of those how many groups, if any were removed."""
    layers = [name for name, (compact, _) in card.layer_macs.items() if compact > 0]
    counts = {"layers": (len(layers), len(card.layer_macs))}
    for kind in GROUP_KINDS:
        found = [card.groups[n][kind] for n in layers if kind in card.groups.get(n, {})]
        counts[kind] = (sum(part for part, _ in found), sum(whole for _, whole in found))
    return {
        what: f"{part:,} of {whole:,}" for what, (part, whole) in counts.items() if part < whole
    }


def groups_line(card: Card, kind: str) -> str:
    """Write the retained groups of a kind, layer by layer, for the layers that the paper names."""
    named = (card.paper or {}).get(kind)
    wanted = list(named) if isinstance(named, dict) else list(card.groups)
    return " - ".join(
        str(card.groups[n][kind][0]) for n in wanted if kind in card.groups.get(n, {})
    )


def paper_groups(paper: dict[str, Any], kind: str) -> str:
    """Write the groups that the paper retained of a kind, ``-`` if it names none."""
    given = paper.get(kind, NOTHING)
    return " - ".join(map(str, given.values())) if isinstance(given, dict) else str(given)


def function_of(penalty: dict[str, Any]) -> str:
    """Name a penalty's function, and what it is on.

    Example:
        >>> function_of({"kind": "filter"}), function_of({"kind": "l1"})
        ('group lasso', 'l1 on single weights')
        >>> function_of({"kind": "coupled", "function": "mcp"})
        'mcp on groups'
    """
    given, single = penalty.get("function", "group_lasso"), penalty.get("kind") in ("l1", "element")
    if given == "group_lasso":
        return "l1 on single weights" if single else "group lasso"
    name = given.get("class_path") if isinstance(given, dict) else given
    return f"{name} on {'single weights' if single else 'groups'}"


def layers_of(penalty: dict[str, Any]) -> str:
    """Write the patterns that say which layers a penalty is on.

    Example:
        >>> layers_of({"layers": ["fc1", "fc2"]}), layers_of({})
        ('`fc1`, `fc2`', '`*`')
    """
    given = penalty.get("layers") or "*"
    return ", ".join(f"`{pattern}`" for pattern in (given if isinstance(given, list) else [given]))


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
