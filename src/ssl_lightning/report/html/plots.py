"""Charts as SVG without a script: drawn by Vega-Lite when the page is written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from ssl_lightning.report.curves import round_values

if TYPE_CHECKING:
    import altair as alt

WIDTH, HEIGHT = 250, 200  # of the frame; with its words a chart then fits a phone
SERIES = tuple(f"var(--series-{i})" for i in (3, 2, 4, 5, 6, 7, 8, 1))
FORMS = tuple(f"var(--series-{i})" for i in (1, 2, 3, 4, 5, 6, 7, 8))  # dense is grey
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2])
LOGARITHMIC = 20.0  # ratio of largest and smallest from which an axis is logarithmic
LARGE, SMALL = 95, 40  # points with a name, and those without
MOST_MARKS = 25  # points of a line that say their figures
BAR = 11  # height
SHORT = 18  # letters of a name of which two fit beside each other
CONFIG = {
    "background": "transparent",
    "font": "sans-serif",
    "padding": {"left": 12, "right": 6, "top": 6, "bottom": 6},
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "gridColor": "var(--grid)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
    },
    "legend": {
        "labelColor": "currentColor",
        "labelFontSize": 11,
        "labelLimit": 220,
        "orient": "bottom",
        "title": None,
        "columnPadding": 24,
        "symbolOpacity": 1,
    },
    "text": {"color": "currentColor", "fontSize": 10},
}
FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
PACKAGES, EXTRA = ("altair", "markdown_it", "vl_convert"), "html"
"""What pages need, and what brings it."""
SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
ROLES = ("role", "aria-roledescription", "aria-label", "aria-hidden")


@dataclass(frozen=True)
class Point:
    """A point of a chart.

    Attributes:
        series: that it belongs to.
        x: where it is.
        y: where it is.
        words: what it says under the pointer.
        target: identity of the element that it leads to, if any.
        label: name of what it is, if it has one.
    """

    series: str
    x: float
    y: float
    words: str
    target: str = ""
    label: str = ""


@dataclass(frozen=True)
class Bar:
    """A bar of a chart.

    Attributes:
        group: of bars that it stands in.
        series: that it belongs to.
        value: its length; None where there is nothing, for which ``label`` gives the reason.
        label: at its end.
        words: what it says under the pointer.
    """

    group: str
    series: str
    value: float | None
    label: str
    words: str


def points_plot(points: Sequence[Point], x: str, y: str, alternative: str) -> Markup:
    """Draw points, and the line of the smallest ``y`` that an ``x`` buys.

    Args:
        points: what to draw; those with a target are links.
        x: title of the axis.
        y: title of the axis.
        alternative: what the chart shows, for those who do not see it.
    """
    import altair as alt

    series = list(dict.fromkeys(point.series for point in points))
    legend = legend_of(series)
    known = [
        asdict(p)
        | {"target": f"#{p.target}" if p.target else None, "size": LARGE if p.label else SMALL}
        for p in points
    ]
    across = alt.X("x:Q", title=x, **scaled([p.x for p in points]))
    up = alt.Y("y:Q", title=y, **scaled([p.y for p in points]))
    line = (
        alt.Chart(alt.InlineData(values=steps(points)))
        .mark_line(interpolate="step-after", color="var(--line)", strokeWidth=1.5, aria=False)
        .encode(x=across, y=up)
    )
    marks = (
        alt.Chart(alt.InlineData(values=known))
        .mark_point(filled=True, opacity=1, stroke="var(--paper)", strokeWidth=0.7)
        .encode(
            x=across,
            y=up,
            color=alt.Color("series:N", sort=series, scale=ordered(series, SERIES), legend=legend),
            shape=alt.Shape("series:N", sort=series, scale=ordered(series, SHAPES), legend=legend),
            size=alt.Size("size:Q", scale=None, legend=None),
            href="target:N",
            description="words:N",
        )
    )
    return drawn(line + marks, alternative)


def bars_plot(bars: Sequence[Bar], title: str, alternative: str) -> Markup:
    """Draw groups of horizontal bars from zero, each with a label at its end.

    Args:
        bars: what to draw.
        title: of the axis.
        alternative: what the chart shows, for those who do not see it.
    """
    import altair as alt

    groups = list(dict.fromkeys(bar.group for bar in bars))
    series = list(dict.fromkeys(bar.series for bar in bars))
    values = [
        asdict(bar) | {"value": bar.value or 0.0, "label": f"{bar.series} {bar.label}"}
        for bar in bars
    ]
    top = max([bar.value or 0.0 for bar in bars], default=1.0) or 1.0
    base = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X("value:Q", title=title, scale=alt.Scale(domain=[0, 1.5 * top]), axis=ticks_of(5)),
        y=alt.Y("group:N", title=None, sort=groups, axis=alt.Axis(labelLimit=110, ticks=False)),
        yOffset=alt.YOffset("series:N", sort=series),
        description="words:N",
    )
    rectangles = base.mark_bar().encode(
        color=alt.Color("series:N", sort=series, scale=ordered(series, FORMS), legend=None)
    )
    labels = base.mark_text(align="left", baseline="middle", dx=3, aria=False).encode(
        text="label:N"
    )
    height = len(groups) * (len(series) * BAR + 8)
    return drawn(rectangles + labels, alternative, width=WIDTH - 20, height=height)


def lines_plot(lines: Mapping[str, Sequence[float]], title: str, alternative: str) -> Markup:
    """Draw values over epochs, the first of which is 1; NaN leaves a gap.

    Args:
        lines: series -> value per epoch.
        title: of the vertical axis.
        alternative: what the chart shows, for those who do not see it.
    """
    import altair as alt

    series = list(lines)
    known = [
        (name, epoch, value if math.isfinite(value) else None)
        for name, found in lines.items()
        for epoch, value in enumerate(found, 1)
    ]
    values = [{"series": name, "x": epoch, "y": value} for name, epoch, value in known]
    every = math.ceil(max((len(found) for found in lines.values()), default=1) / MOST_MARKS)
    marked = [
        {"series": name, "x": epoch, "y": value, "words": f"{name}, epoch {epoch}: {value:.4g}"}
        for name, epoch, value in known
        if value is not None and (epoch - 1) % every == 0
    ]
    finite = [value for _, _, value in known if value is not None]
    across = alt.X("x:Q", title="epochs trained", scale=alt.Scale(zero=False), axis=ticks_of(6))
    up = alt.Y("y:Q", title=title, **scaled(finite))
    legend = legend_of(series)
    color = alt.Color("series:N", sort=series, scale=ordered(series, SERIES), legend=legend)
    drawn_lines = (
        alt.Chart(alt.InlineData(values=values))
        .mark_line(strokeWidth=1.8, aria=False)
        .encode(
            x=across,
            y=up,
            color=color,
            strokeDash=alt.StrokeDash(
                "series:N", sort=series, scale=ordered(series, DASHES), legend=None
            ),
        )
    )
    marks = (
        alt.Chart(alt.InlineData(values=marked))
        .mark_point(filled=True, size=26, opacity=1)
        .encode(
            x=across,
            y=up,
            color=color,
            shape=alt.Shape("series:N", sort=series, scale=ordered(series, SHAPES), legend=legend),
            description="words:N",
        )
    )
    return drawn(drawn_lines + marks, alternative)


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that have less ``y`` than all of a smaller or the same ``x``.

    Example:
        >>> points = [Point("a", 1, 3, ""), Point("a", 2, 3, ""), Point("b", 3, 1, "")]
        >>> [(point.x, point.y) for point in front(points)]
        [(1, 3), (3, 1)]
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, point.y)):
        if not found or point.y < found[-1].y:
            found.append(point)
    return found


def steps(points: Sequence[Point]) -> list[dict[str, float]]:
    """Return where the line of the front begins, steps and ends."""
    found = [{"x": point.x, "y": point.y} for point in front(points)]
    return found + [{"x": max(point.x for point in points), "y": p["y"]} for p in found[-1:]]


def scaled(values: Sequence[float]) -> dict[str, Any]:
    """Return scale and axis for values: logarithmic if they are positive and far apart."""
    import altair as alt

    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0 and high > LOGARITHMIC * low:
        ticks = round_values(low, high) if low >= 0.001 and high <= 1000 else None
        scale = alt.Scale(type="log", nice=False, padding=12)
        return {"scale": scale, "axis": ticks_of(5, ticks)}
    return {"scale": alt.Scale(zero=low == 0, nice=True, padding=8), "axis": ticks_of(5)}


def ticks_of(count: int, values: Sequence[float] | None = None) -> alt.Axis:
    """Return an axis of about so many ticks, or of these."""
    import altair as alt

    given = {"tickCount": count} if values is None else {"values": list(values)}
    return alt.Axis(format=".6~g", labelOverlap="greedy", labelSeparation=6, **given)


def legend_of(series: Sequence[str]) -> alt.Legend:
    """Return a legend that fits below a chart."""
    import altair as alt

    longest = max(map(len, series), default=0)
    return alt.Legend(columns=1 if longest > SHORT else 2, symbolLimit=0, symbolStrokeWidth=0)


def ordered(series: Sequence[str], values: Sequence[Any]) -> alt.Scale:
    """Return a scale that gives each series one of the values, by its place."""
    import altair as alt

    given = [values[i % len(values)] for i in range(len(series))]
    return alt.Scale(domain=list(series), range=given)


def drawn(
    chart: alt.LayerChart, alternative: str, width: int = WIDTH, height: int = HEIGHT
) -> Markup:
    """Return a chart as markup."""
    import vl_convert

    spec = chart.properties(width=width, height=height).to_dict()
    svg = vl_convert.vegalite_to_svg(printable(spec), config=CONFIG)
    return embedded(svg, printable(alternative))


def printable(value: Any) -> Any:
    r"""Return texts, and those in lists and mappings, without characters that no XML may hold.

    Example:
        >>> printable(["a\x00b", {"c": "\ud800"}, 1])
        ['a b', {'c': '?'}, 1]
    """
    if isinstance(value, str):
        return FORBIDDEN.sub(" ", value.encode(errors="replace").decode())
    if isinstance(value, list):
        return [printable(item) for item in value]
    if isinstance(value, dict):
        return {key: printable(item) for key, item in value.items()}
    return value


def embedded(svg: str, alternative: str) -> Markup:
    """Return an SVG of Vega as part of a page.

    It takes the width that it is given and the page's colours. Marks that have a description say it
    as ``title``, which the page's script shows under the pointer and at the focus; those with a
    target are links within the page. Everything else that Vega says about parts is left out, since
    the page has the figures as a table.
    """
    root = ElementTree.fromstring(svg)
    links = 0
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        words = element.get("aria-label") if element.get("role") == "graphics-symbol" else None
        is_mark = words is not None and element.tag in ("path", "rect")
        for name in (*ROLES, "pointer-events"):
            element.attrib.pop(name, None)
        if LINK in element.attrib:
            target = element.attrib.pop(LINK).partition("#")[2]  # before it stands Vega's own place
            if target:
                element.set("href", f"#{target}")
                links += 1
            else:
                element.tag = "g"
        if is_mark and words:
            ElementTree.SubElement(element, "title").text = words
        for name, value in element.attrib.items():
            element.set(name, re.sub(r"(\.\d\d)\d+", r"\1", value) if name in PLACES else value)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    width = float(root.get("viewBox", "0 0 300 200").split()[2])
    root.set("style", f"max-width: {1.5 * width:.0f}px")
    root.set("class", "chart")
    root.set("role", "group" if links else "img")
    root.set("aria-label", alternative)
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


PLACES = ("d", "transform", "x", "y", "x2", "y2", "width", "height")
"""Attributes that hold places, for which two decimals are enough."""
