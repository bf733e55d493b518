"""Reading pages: a strict parser, and what every page must hold to."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

VOID = set("area base br col embed hr img input link meta source track wbr".split())
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;b&gt;{{ 7 * 7 }}"


class Strict(HTMLParser):
    """Builds a tree; refuses wrong or missing end tags, and repeated attributes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.builder = ElementTree.TreeBuilder()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}>: repeated attributes {names}"
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self.builder.end(tag)
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag not in VOID, f"</{tag}>"
        assert self.open.pop() == tag, f"</{tag}> does not fit"
        self.builder.end(tag)

    def handle_data(self, data):
        if self.open:
            self.builder.data(data)
        else:
            assert not data.strip(), f"text outside: {data[:40]!r}"

    def tree(self) -> Element:
        assert not self.open, f"not closed: {self.open}"
        return self.builder.close()


def read(path: Path) -> Element:
    parser = Strict()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    return parser.tree()


def text_of(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def by_id(tree: Element, identity: str) -> Element:
    (found,) = [element for element in tree.iter() if element.get("id") == identity]
    return found


def table_rows(table: Element) -> list[dict[str, str]]:
    """Rows of a table as head of the column -> text of the cell."""
    heads = [text_of(head) for head in table.find("thead").iter("th")]
    rows = [[text_of(cell) for cell in row] for row in table.find("tbody")]
    return [dict(zip(heads, row, strict=True)) for row in rows]


def titles(tree: Element) -> list[str]:
    """What the marks of all charts say."""
    return [text_of(title) for svg in tree.iter("svg") for title in svg.iter("title")]


def check_page(path: Path) -> Element:
    """Assert what holds for every page; return its tree."""
    tree = read(path)
    check_landmarks(tree)
    check_nothing_is_loaded(tree, path.read_text(encoding="utf-8"))
    check_pictures_and_tables(tree)
    check_script(tree)
    return tree


def check_landmarks(tree: Element) -> None:
    assert tree.get("lang") == "en"
    for landmark in ("header", "nav", "main", "footer", "title", "h1"):
        assert len([e for e in tree.iter(landmark) if e.tag == landmark]) >= 1, landmark
    assert len(list(tree.iter("main"))) == len(list(tree.iter("h1"))) == 1
    levels = [int(e.tag[1]) for e in tree.iter() if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1
    for before, after in pairwise(levels):
        assert after <= before + 1, "a level of headings is left out"
    identities = [e.get("id") for e in tree.iter() if e.get("id")]
    assert len(set(identities)) == len(identities)
    for e in tree.iter():
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert e.get(name, identities[0]) in identities
        if e.tag == "a":
            assert e.get("href").startswith("#")
            assert e.get("href")[1:] in identities
    viewport = [e.get("content") for e in tree.iter("meta") if e.get("name") == "viewport"]
    assert viewport == ["width=device-width, initial-scale=1"]


def check_nothing_is_loaded(tree: Element, text: str) -> None:
    for element in tree.iter():
        for name in ("src", "srcset", "poster", "data", "action", "background"):
            assert element.get(name, "data:").startswith("data:image/webp;base64,"[:5])
        assert element.tag not in ("link", "iframe", "object", "embed", "base", "image", "use")
        assert not [name for name in element.attrib if name.startswith("on")]
    for style in [e.text for e in tree.iter("style")] + [e.get("style", "") for e in tree.iter()]:
        assert "url(" not in style
        assert "@import" not in style
    (policy,) = [e.get("content") for e in tree.iter("meta") if e.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:; ")


def check_pictures_and_tables(tree: Element) -> None:
    for img in tree.iter("img"):
        assert len(img.get("alt")) > 10
        assert int(img.get("width")) <= 720
        assert int(img.get("height")) > 0
    for svg in tree.iter("svg"):
        assert len(svg.get("aria-label")) > 20
        assert svg.get("role") == ("group" if list(svg.iter("a")) else "img")
    for table in tree.iter("table"):
        heads = list(table.find("thead").iter("th"))
        assert {head.get("scope") for head in heads} == {"col"}
        for row in table.find("tbody"):
            assert row[0].tag == "th"
            assert row[0].get("scope") == "row"
            assert len(row) == len(heads)
    for cell in (e for table in tree.iter("table") for e in table.iter() if e.tag in ("td", "th")):
        assert text_of(cell) or text_of_row_is_mean(cell, tree), "an empty cell"


def text_of_row_is_mean(cell: Element, tree: Element) -> bool:
    """Whether a cell is in the row of means of the paper's table: some columns have none."""
    return any(cell in list(row) and text_of(row[0]) == "mean" for row in tree.iter("tr"))


def check_script(tree: Element) -> None:
    """The page's only script is the one whose hash its policy names."""
    (script,) = tree.iter("script")
    (policy,) = [e.get("content") for e in tree.iter("meta") if e.get("http-equiv")]
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy


def luminance(color: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
