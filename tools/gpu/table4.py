"""Stage ``table4``: the paper's Table 4 on a GPU, each layer against its fastest dense form."""

from __future__ import annotations

import statistics
from typing import Any

from stages import Context
from timing import use_interpreter

TITLE = "The paper's Table 4"
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")
Row = dict[str, Any]
Key = tuple[str, int, str, str, int]


def run(context: Context) -> None:
    """Measure all cases that fit into the minutes, after those of earlier calls."""
    use_interpreter(context.device)
    from measuring import measure_cases  # imports Triton

    measure_cases(context)


def headline(result: Row | None) -> str:
    """Say in a line what was measured."""
    if not result or not result["cases"]:
        return "nothing"
    found = [one for row in result["cases"] for one in row["candidates"]]
    failures = sum(one["failure"] is not None for one in found)
    parts = [f"{len(result['cases'])} cases"]
    parts += [
        f"#2 at batch 1, {mode}: {statistics.fmean(speedups.values()):.2f} times"
        for (_, batch, mode, name, number), speedups in complete(speedups_of(result)).items()
        if (batch, name, number) == (1, "columns", 2)
    ]
    parts += [f"{failures} of {len(found)} candidates failed"] if failures else []
    return "; ".join(parts)


def speedups_of(result: Row, field: str = "speedup") -> dict[Key, dict[str, float]]:
    """Return a field of the sparse forms, by layer.

    Returns:
        (device, batch, mode, candidate, configuration) -> layer -> the field, where it is known.
    """
    found: dict[Key, dict[str, float]] = {}
    for row in result["cases"]:
        for one in row["candidates"]:
            if one["configuration"] and one[field] is not None:
                key = (row["device"], row["batch"], row["mode"], one["name"], one["configuration"])
                found.setdefault(key, {})[row["layer"]] = one[field]
    return found


def complete(found: dict[Key, dict[str, float]]) -> dict[Key, dict[str, float]]:
    """Return those that have all five layers, without the conv part."""
    return {
        key: {layer: layers[layer] for layer in LAYERS}
        for key, layers in found.items()
        if layers.keys() >= set(LAYERS)
    }
