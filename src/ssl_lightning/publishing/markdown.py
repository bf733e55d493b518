"""An entry's Markdown page as parts of a page in HTML: nothing of it is code, a link or a load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

OFF = ("link", "autolink", "reference", "html_block", "html_inline")


@dataclass(frozen=True)
class Part:
    """What stands below a heading.

    Attributes:
        title: of the heading, empty for what stands before the first.
        text: markup.
    """

    title: str
    text: Markup


def parser() -> MarkdownIt:
    """Return a parser of CommonMark with tables that makes no links and lets no HTML through.

    Pictures become their alternative texts, since pages name files that are embedded elsewhere.
    """
    from markdown_it import MarkdownIt

    found = MarkdownIt("commonmark", {"html": False}).enable("table")
    found.disable(OFF)
    for name, rule in RULES.items():
        found.add_render_rule(name, rule)
    return found


def open_table(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """Begin a table that scrolls by itself and is reached with the keyboard."""
    where = escape(f"{env['name']}: {env['title']}, table {index}")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{where}">\n'
        f'<table aria-label="{where}">\n'
    )


def close_table(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """End a table."""
    return "</table>\n</div>\n"


def fence(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """Write a block of code that scrolls by itself and is reached with the keyboard."""
    where = escape(f"{env['name']}: {env['title']}, code {index}")
    text = escape(tokens[index].content)
    return f'<pre tabindex="0" role="region" aria-label="{where}"><code>{text}</code></pre>\n'


def image(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """Write the alternative text of a picture; its file is not read."""
    return str(escape(tokens[index].content))


RULES = {
    "table_open": open_table,
    "table_close": close_table,
    "fence": fence,
    "code_block": fence,
    "image": image,
}


def parts(text: str, name: str) -> list[Part]:
    r"""Return a page's parts, each with the heading of the second level that it stands below.

    Args:
        text: Markdown; headings of the first level, such as the page's own, are left out.
        name: of the entry, by which its tables are called.

    Example:
        >>> first, use = parts("# a\n\n<b> *one*\n\n## Use\n\n`two`", "a")
        >>> first.text, use.title, use.text
        (Markup('<p>&lt;b&gt; <em>one</em></p>\n'), 'Use', Markup('<p><code>two</code></p>\n'))
    """
    found = parser()
    written = []
    for title, tokens in sections(found.parse(text)):
        given = {"name": name, "title": title or "first words"}
        text = found.renderer.render(with_row_heads(tokens), found.options, given)
        written.append(Part(title, Markup(text)))  # all of it comes from rules that escape
    return written


def sections(tokens: Sequence[Token]) -> list[tuple[str, list[Token]]]:
    """Split at headings of the second level; those below become headings of the fifth and sixth."""
    found: list[tuple[str, list[Token]]] = [("", [])]
    inside = ""  # of a heading that is left out
    for token in without_pictures(tokens):
        if token.type == "heading_open" and token.tag in ("h1", "h2"):
            inside = token.tag
        elif inside and token.type == "heading_close":
            inside = ""
        elif inside == "h2":
            found.append((token.content, []))
        elif not inside:
            if token.type in ("heading_open", "heading_close"):
                token.tag = "h5" if token.tag == "h3" else "h6"
            found[-1][1].append(token)
    return found


def without_pictures(tokens: Sequence[Token]) -> list[Token]:
    """Leave out paragraphs that are nothing but a picture."""
    pictures = {
        index
        for index, token in enumerate(tokens)
        if token.type == "inline"
        and token.children
        and all(child.type == "image" for child in token.children)
    }
    left_out = pictures | {i - 1 for i in pictures} | {i + 1 for i in pictures}
    return [token for index, token in enumerate(tokens) if index not in left_out]


def with_row_heads(tokens: list[Token]) -> list[Token]:
    """Make the first cell of each row of a table's body the row's head."""
    is_first = False
    for token in tokens:
        if token.type == "tr_open":
            is_first = True
        elif token.type == "th_open":
            token.attrSet("scope", "col")
        elif token.type == "td_open" and is_first:
            token.tag = "th"
            token.attrSet("scope", "row")
        elif token.type == "td_close" and is_first:
            token.tag, is_first = "th", False
    return tokens
