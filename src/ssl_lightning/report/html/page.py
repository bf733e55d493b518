"""The skeleton of pages: templates, tables, pictures. What is not markup already is escaped."""

from __future__ import annotations

import hashlib
import io
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ssl_lightning.files import replacing

HERE = Path(__file__).parent
PICTURE_WIDTH = 720  # pixels; wider pictures are made smaller
MOST_PIXELS = 2**25  # of a picture that is decoded
QUALITY = 75


@dataclass(frozen=True)
class Value:
    """A cell of a table.

    Attributes:
        text: what it shows; plain text is escaped.
        key: what it is sorted and filtered by: a number, a text, or None where nothing is known,
            which is sorted last.
    """

    text: str
    key: float | str | None


Cell = str | Value


@dataclass(frozen=True)
class Table:
    """A table whose columns have heads; the first cell of a row is the row's head.

    Attributes:
        caption: what it shows, above it.
        head: of the columns.
        rows: cells.
        identity: of the element, for filters and the text that counts rows; needed for sorting.
        can_sort: whether its columns can be sorted.
        numeric: columns that are aligned to the right.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    identity: str = ""
    can_sort: bool = False
    numeric: Sequence[int] = field(default=())

    def cells(self) -> list[list[Value]]:
        """Return all rows with cells of one kind.

        Raises:
            ValueError: if a row has another number of cells than there are heads, or one is empty.
        """
        found = [[c if isinstance(c, Value) else Value(c, c) for c in row] for row in self.rows]
        for row in found:
            if len(row) != len(self.head) or not all(str(cell.text).strip() for cell in row):
                raise ValueError(
                    f"Table {self.caption!r}: expected {len(self.head)} cells that say something, "
                    f"got {[str(cell.text) for cell in row]}. Say why there is no figure."
                )
        return found


@dataclass(frozen=True)
class Figure:
    """A chart or a picture, with the words below it.

    Attributes:
        drawn: markup of the chart or the picture.
        caption: words below.
        reason: why there is nothing to draw, instead of all else.
    """

    drawn: Markup | None = None
    caption: str = ""
    reason: str = ""


def write_page(path: str | Path, template: str, folder: Path = HERE, **given: Any) -> Path:
    """Fill a template and write the page; a reader never sees half a file.

    The page may load nothing, and run no script but this package's: its policy names the script's
    hash, so that markup that got in by a mistake of ours could still do nothing.

    Args:
        path: file to write.
        template: name of the template; it extends ``base.html.jinja``.
        folder: of that template.
        given: what it calls; the ``title`` of the page, and the ``source`` it was written from.

    Returns:
        The path.
    """
    text = environment(folder).get_template(template).render(given)
    with replacing(path) as temporary:
        temporary.write_bytes(f"{text.rstrip()}\n".encode(errors="replace"))
    return Path(path)


def environment(folder: Path = HERE) -> Environment:
    """Return templates of a folder and of the skeleton, which escape all that is no markup."""
    script, style = asset("script.js"), asset("style.css")
    loader = ChoiceLoader([FileSystemLoader(folder), FileSystemLoader(HERE)])
    found = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    from ssl_lightning import __version__

    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    found.globals |= {
        "script": Markup(script),  # a file of this package
        "style": Markup(style),  # a file of this package
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        "version": __version__,
        "next_number": count(1).__next__,
    }
    found.filters |= {"breakable": breakable}
    return found


@cache
def asset(name: str) -> str:
    """Return a file of this package without spaces around it."""
    return (HERE / name).read_text(encoding="utf-8").strip()


def breakable(text: object) -> Markup:
    """Escape a text, and let long names break after ``_``, ``.``, ``/`` and ``:``.

    Example:
        >>> breakable("a_b<c>"), breakable("1.5")
        (Markup('a_<wbr>b&lt;c&gt;'), Markup('1.5'))
    """
    if isinstance(text, Markup):
        return text
    return Markup("<wbr>").join(
        escape(part) for part in re.split(r"(?<=[_./:])(?=[A-Za-z])", str(text))
    )


def code(text: object) -> Markup:
    """Write a text as code.

    Example:
        >>> code("<b>")
        Markup('<code>&lt;b&gt;</code>')
    """
    return Markup("<code>{}</code>").format(str(text))


def picture(content: bytes, alternative: str, where: str) -> Markup:
    """Return a picture as part of the page: small, and written anew from its pixels.

    Args:
        content: of a PNG file.
        alternative: what it shows, for those who do not see it.
        where: the file's name in error messages.

    Returns:
        An ``img`` of at most 720 pixels width, WebP of quality 75.

    Raises:
        ValueError: if it is no PNG, damaged, or larger than 33 million pixels.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as found:
            width, height = found.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"it has {width} x {height} pixels")
            pixels = found.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{where} is no picture that can be shown: expected a PNG of at most {MOST_PIXELS:,} "
            f"pixels, got {error}. Draw it again."
        ) from error
    if width > PICTURE_WIDTH:
        height = max(1, round(height * PICTURE_WIDTH / width))
        width = PICTURE_WIDTH
        pixels = pixels.resize((width, height), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    pixels.save(written, format="WEBP", quality=QUALITY, method=6)
    return Markup(
        '<img src="data:image/webp;base64,{}" alt="{}" width="{}" height="{}" decoding="async">'
    ).format(b64encode(written.getvalue()).decode(), alternative, width, height)
