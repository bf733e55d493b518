"""The zoo as one HTML file: what its cards and pages say, and nothing that a card could run."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re

import pytest
from PIL import Image

from html_pages import HOSTILE, by_id, check_page, read, table_rows, text_of, titles
from ssl_lightning import publishing, suggest, zoo
from ssl_lightning.cli import main
from ssl_lightning.publishing.markdown import parts
from ssl_lightning.zoo.records import StoredFile
from zoo_runs import ENTRIES, NAME, OTHER, ZOO

LIMIT = 2_000_000  # bytes of the page of the repository's zoo


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    found = tmp_path_factory.mktemp("site") / "zoo.html"
    assert main(["zoo", "site", "--output", str(found), "--root", str(ZOO)]) == 0
    return found


@pytest.fixture(scope="module")
def tree(path):
    return check_page(path)


def card_of(name):
    """A card as plain JSON, read without the package."""
    return json.loads((ZOO / name / "card.json").read_text())


def median_error(seeds):
    ordered = sorted(seeds, key=lambda seed: (seed["validation_error"], seed["seed"]))
    return ordered[(len(ordered) - 1) // 2]["test_error"]


def test_the_page_is_small(path):
    assert path.stat().st_size < LIMIT


@pytest.mark.parametrize("name", ENTRIES)
def test_rows_of_the_table_are_those_of_the_cards(tree, name):
    card = card_of(name)
    (row,) = [row for row in table_rows(by_id(tree, "zoo-table")) if row["entry"] == name]
    assert row["network"] == card["backbone"]
    assert row["data set"] == card["data"]["name"]
    assert row["test error, %"] == f"{card['test_error']:.2f}"
    for head, key in (("multiply-adds", "macs"), ("parameters", "num_parameters")):
        count, share = re.fullmatch(r"([\d.]+) \(([\d.]+) %\)", row[f"{head}, millions"]).groups()
        part, whole = card["compact"][key], card["dense"][key]
        assert float(count) == pytest.approx(part / 1e6, rel=6e-3)
        assert float(share) == pytest.approx(100 * part / whole, rel=6e-3)
    for record in card["latency"]:
        cell = row[f"ms in PyTorch, batch {record['batch_size']} (ratio to dense)"]
        time, ratio = re.fullmatch(r"([\d.,]+) \(([\d.]+)\)", cell).groups()
        assert float(time.replace(",", "")) == pytest.approx(
            record["median_ms"]["compact"], rel=6e-3
        )
        assert float(ratio) == pytest.approx(record["ratio"]["compact"], abs=6e-3)
    unstored = card["weights"]["unstored"]
    size = (unstored or card["files"]["model.safetensors"])["num_bytes"] / 1e6
    assert float(row["weights, MB"].split()[0].replace(",", "")) == pytest.approx(size, rel=6e-3)
    assert ("not stored" in row["weights, MB"]) == (unstored is not None)
    errors = {c["kind"]: median_error(c["seeds"]) for c in card["controls"] if c["kind"] != "dense"}
    if errors:
        best = min(errors.values())
        word = "better" if best < card["test_error"] else "not better"
        assert row["best control, error %"].startswith(f"{best:.2f} ({word}): ")
    else:
        assert row["best control, error %"] == "not measured"


@pytest.mark.parametrize("name", ENTRIES)
def test_sections_hold_what_the_markdown_pages_hold(tree, name):
    """All words and cells of an entry's README.md, which is generated apart from this page."""
    (section,) = [
        e for e in tree.iter("article") if e.get("aria-labelledby") == f"entry-{name}"
    ]  # fmt: skip
    words = text_of(section).replace("&lt;", "<")
    page = (ZOO / name / "README.md").read_text().split("---\n", 2)[2]
    for line in page.splitlines():
        if line.startswith(("#", "![", "|---", "```")):
            continue
        plain = re.sub(r"[`*]|\\(?=\|)|^- ", "", line).replace("&lt;", "<")
        for cell in plain.strip("|").split(" | "):
            assert " ".join(cell.split()) in words, cell
    for heading in re.findall(r"^## (.*)", page, flags=re.M):
        assert heading in [text_of(e) for e in section.iter("h4")]


@pytest.mark.parametrize("name", ENTRIES)
def test_the_first_paragraph_names_the_controls(tree, name):
    card = card_of(name)
    (section,) = [e for e in tree.iter("article") if e.get("aria-labelledby") == f"entry-{name}"]
    first = text_of(next(section.iter("p")))
    if not card["controls"]:
        assert f"Controls: not measured ({card['unmeasured']['controls']})." in first
    for control in card["controls"]:
        assert f"{median_error(control['seeds']):.2f} %" in first.partition("Controls of")[2]


@pytest.mark.parametrize("name", ENTRIES)
def test_pictures_are_inlined_small_with_their_words(tree, name):
    (section,) = [e for e in tree.iter("article") if e.get("aria-labelledby") == f"entry-{name}"]
    shown = list(section.iter("img"))
    files = set(card_of(name)["files"])
    assert len(shown) == len({"filters.png"} & files)
    charts = [svg.get("aria-label") for svg in section.iter("svg")]
    sparse = "Not drawn: zero groups, %" not in text_of(section)
    assert len(charts) == len({"curves.csv"} & files) * (1 + sparse)
    assert all(f" of {name} over " in words for words in charts)
    for img in shown:
        head, _, data = img.get("src").partition(",")
        assert head == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as found:
            assert found.size == (int(img.get("width")), int(img.get("height")))
        assert name in img.get("alt")


def test_words_of_pictures_have_figures(tree):
    words = {e.get("alt") or e.get("aria-label") for e in tree.iter() if e.tag in ("img", "svg")}
    lines = [line.split(",") for line in (ZOO / NAME / "curves.csv").read_text().splitlines()]
    column = {head: [float(line[i]) for line in lines[1:]] for i, head in enumerate(lines[0])}
    training, validation = (
        f"{found[0]:.3g} to {found[-1]:.3g}"
        for found in (column["train/error"], column["val/error"])
    )
    assert (
        f"Chart of error, % of {NAME} over {len(lines) - 1} epochs: training error from "
        f"{training}; validation error from {validation}."
    ) in words
    left, of = card_of(NAME)["groups"]["conv1"]["filters"]
    assert f"Filters of {NAME}; of the first layer, conv1, {left} of {of} are left." in words


def networks(data):
    """Name, error, multiply-adds and latency of all entries and controls of a data set."""
    for name in ENTRIES:
        card = card_of(name)
        if card["data"]["name"] == data:
            times = [r["median_ms"]["compact"] for r in card["latency"] if r["batch_size"] == 1]
            yield name, card["test_error"], card["compact"]["macs"], times[0]
            for control in card["controls"]:
                ordered = sorted(
                    control["seeds"], key=lambda seed: (seed["validation_error"], seed["seed"])
                )
                median = ordered[(len(ordered) - 1) // 2]
                yield f"control of {name}", median["test_error"], median["macs"], None


@pytest.mark.parametrize("data", sorted({card_of(name)["data"]["name"] for name in ENTRIES}))
def test_charts_have_every_network_and_the_front(tree, data):
    (heading,) = [e for e in tree.iter("h3") if text_of(e) == data]
    (fronts,) = [e for e in tree.iter("section") if e.get("aria-labelledby") == "fronts"]
    charts = list(fronts)[list(fronts).index(heading) + 1]
    macs, *latency = charts.iter("figure")
    found = list(networks(data))
    said = titles(macs)
    for name, error, count, _ in found:
        assert [w for w in said if w.startswith(name) and f"{error:.2f} % error, {count:,} mu" in w]
    assert len(said) == len(found)
    best = sorted({
        (count, error, name) for name, error, count, _ in found
        if not any(e <= error and c <= count and (e, c) != (error, count)
                   for _, e, c, _ in found)
    })  # fmt: skip
    caption = text_of(next(macs.iter("figcaption")))
    places = [caption.index(f"{name}") for _, _, name in best]
    assert places == sorted(places)
    for _, error, name in best:
        assert re.search(rf"{name}[^;]* {error:.2f} %", caption)
    timed = [words for chart in latency for words in titles(chart)]
    assert len(timed) == len([1 for *_, time in found if time is not None])
    machines = {
        json.dumps([record["machine"], record["threads"]])
        for name, *_ in found
        if name in ENTRIES
        for record in card_of(name)["latency"]
        if record["batch_size"] == 1
    }
    assert len(latency) == len(machines)


def test_every_field_filters_a_column_that_there_is(tree):
    table = by_id(tree, "zoo-table")
    heads = [text_of(head) for head in table.find("thead").iter("th")]
    (form,) = tree.iter("form")
    assert form.get("data-table") == "zoo-table"
    filtered = {
        heads[int(e.get("data-column"))]: e.get("data-test")
        for e in form.iter() if e.get("data-test")
    }  # fmt: skip
    assert set(filtered) == set(heads)
    choices = {option.get("value") for option in form.iter("option")} - {""}
    assert choices >= {card_of(name)["backbone"] for name in ENTRIES}
    keys = [row[3].get("data-key") or text_of(row[3]) for row in table.find("tbody")]
    assert sorted(map(float, keys)) == sorted(card_of(name)["test_error"] for name in ENTRIES)


# --- other zoos ---


def forge(folder, **changes):
    """Write a card with other values, as somebody else's zoo could hold it."""
    card = dataclasses.replace(zoo.card(folder.name, folder.parent), **changes)
    (folder / "card.json").write_bytes(card.to_bytes())
    return card


def test_texts_of_a_card_are_never_code(copied, tmp_path):
    card = zoo.card(NAME, copied)
    remark = (
        f"{HOSTILE}\n\n![p](http://127.0.0.1:9/p.png) text ![q](x.png) [l](javascript:alert(3)) "
        f"<javascript:alert(4)> [r]\n\n[r]: http://127.0.0.1:9/\n\n## Use {HOSTILE}\n\n"
        f"# b\n\n### c\n\n```html\n{HOSTILE}\n```\n\n    {HOSTILE}\n\n| a |\n|---|\n| {HOSTILE} |\n"
    )
    latency = tuple(
        dataclasses.replace(r, machine=dataclasses.replace(r.machine, processor=HOSTILE))
        for r in card.latency
    )
    forge(
        copied / NAME,
        remark=remark,
        latency=latency,
        groups={f"conv{HOSTILE}": kinds for kinds in card.groups.values()},
        layer_macs={f"{name}{HOSTILE}": macs for name, macs in card.layer_macs.items()},
        penalties=({"kind": HOSTILE, "layers": HOSTILE, "strength": 1.0, "function": HOSTILE},),
        budget={"macs": HOSTILE, "importance": HOSTILE},
        teacher=HOSTILE,
        paper={"row": HOSTILE, "error": HOSTILE, "reference": HOSTILE},
        controls=(),
        unmeasured={"controls": HOSTILE},
    )
    tree = check_page(publishing.write_site(tmp_path / "zoo.html", copied))
    assert len(list(tree.iter("script"))) == 1
    assert len(list(tree.iter("img"))) == 2
    whole = (tmp_path / "zoo.html").read_text()
    assert "http" not in re.sub(r"127\.0\.0\.1|http-equiv", "", re.sub(r">[^<]*<", "><", whole))
    assert "{{ 7 * 7 }}" in text_of(tree)
    assert "alert(1)" in text_of(tree)
    assert "alert(3)" in text_of(tree)  # as text


def test_what_a_card_lacks_is_said(copied, tmp_path):
    card = zoo.card(OTHER, copied)
    files = {name: file for name, file in card.files.items() if not name.startswith("curves")}
    unmeasured = {name: f"{name} was too long" for name in ("latency", "step_cost", "curves")}
    forge(
        copied / OTHER, latency=(), step_cost=None, training_seconds=None, files=files,
        unmeasured={**unmeasured, "training_seconds": "no timer"},
    )  # fmt: skip
    tree = check_page(publishing.write_site(tmp_path / "zoo.html", copied))
    (row,) = [row for row in table_rows(by_id(tree, "zoo-table")) if row["entry"] == OTHER]
    assert row["ms in PyTorch, batch 1 (ratio to dense)"] == "not measured"
    (section,) = [e for e in tree.iter("article") if e.get("aria-labelledby") == f"entry-{OTHER}"]
    assert "latency: latency was too long" in text_of(section)
    assert f"Latency at batch 1 was not measured of {OTHER}." in text_of(tree)
    for name in (OTHER, NAME):
        forge(copied / name, latency=(), unmeasured={
            **zoo.card(name, copied).unmeasured, "latency": "no"})  # fmt: skip
    tree = check_page(publishing.write_site(tmp_path / "zoo.html", copied))
    assert not [h for h in table_rows(by_id(tree, "zoo-table"))[0] if "PyTorch" in h]


def test_damaged_zoos_leave_the_page_as_it_was(copied, tmp_path):
    page = tmp_path / "zoo.html"
    page.write_text("old")
    (copied / NAME / "filters.png").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"filters\.png has 5 bytes"):
        publishing.write_site(page, copied)
    (copied / NAME / "filters.png").write_bytes((ZOO / NAME / "filters.png").read_bytes())
    for content in (b"epoch,val/error\n0,<b>\n", b"epoch,val/error\n0,1,2\n", b"\xff"):
        (copied / OTHER / "curves.csv").write_bytes(content)
        files = zoo.card(OTHER, copied).files | {"curves.csv": StoredFile.of(content)}
        forge(copied / OTHER, files=files)
        with pytest.raises(ValueError, match=r"curves\.csv is damaged: expected a table of num"):
            publishing.write_site(page, copied)
    (copied / NAME / "card.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged or was edited"):
        publishing.write_site(page, copied)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the zoo has no entries"):
        publishing.write_site(page, tmp_path / "empty")
    assert page.read_text() == "old"


def test_without_the_extra_the_command_says_what_to_install(monkeypatch, capsys, tmp_path):
    real = suggest.find_spec
    monkeypatch.setattr(suggest, "find_spec", lambda n: None if n == "altair" else real(n))
    monkeypatch.chdir(tmp_path)
    assert main(["zoo", "site"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: `zoo site` needs altair, not installed here.")
    assert "pip install 'ssl-lightning[html]'" in said
    assert not list(tmp_path.iterdir())


def test_the_file_is_named_zoo_html_by_default(copied, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["zoo", "site", "--root", str(copied)]) == 0
    assert "Wrote zoo.html" in capsys.readouterr().out
    assert read(tmp_path / "zoo.html").get("lang") == "en"


def test_markdown_is_split_at_headings_of_the_second_level():
    text = "# a\n\none\n\n![p](p.png)\n\n## b\n\n| c | d |\n|---|---|\n| 1 | 2 |\n\n### e\n\nf"
    first, second = parts(text, "net")
    assert (first.title, first.text) == ("", "<p>one</p>\n")
    assert second.title == "b"
    assert '<th scope="row">1</th>\n<td>2</td>' in second.text
    assert "<h5>e</h5>\n<p>f</p>" in second.text


def test_pages_are_valid_html(path):
    html5lib = pytest.importorskip("html5lib", reason="html5lib is not installed")
    html5lib.HTMLParser(strict=True).parse(path.read_text())
