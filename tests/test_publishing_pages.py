"""Pages are generated from cards, and never edited by hand."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import pytest

from ssl_lightning import publishing, zoo
from ssl_lightning.cli import main
from ssl_lightning.publishing import rewriting, writing
from ssl_lightning.publishing.evaluations import evaluated
from ssl_lightning.publishing.pages import entry_page
from ssl_lightning.zoo.cards import CARD, GOLDEN, PAGE
from ssl_lightning.zoo.listing import Family, families, table_page, write_table
from ssl_lightning.zoo.records import median_result
from test_cli import short_run
from zoo_runs import ENTRIES, LOG, NAME, OTHER, ZOO, train


def test_the_table_of_the_zoo_is_that_of_the_cards():
    assert (ZOO / PAGE).read_text() == table_page([zoo.card(name) for name in ENTRIES])


@pytest.mark.parametrize("name", ENTRIES)
def test_every_page_is_that_of_its_card(name):
    """After a change of the pages: `ssl-lightning zoo pages` writes them anew."""
    card = zoo.card(name)
    assert (ZOO / name / PAGE).read_text() == entry_page(card, evaluated(card, ZOO / name))


@pytest.mark.parametrize("name", ENTRIES)
def test_every_page_is_a_model_card(name):
    from huggingface_hub import ModelCard

    data = ModelCard.load(ZOO / name / PAGE).data
    card = zoo.card(name)
    assert (data.license, data.datasets, data.metrics) == (
        "apache-2.0",
        [card.data.name],
        ["accuracy"],
    )
    (result,) = data.eval_results
    assert result.metric_value == pytest.approx(100 - card.test_error)


def test_pages_of_cards_with_everything(published):
    card = zoo.card("both", published)
    page = entry_page(card)
    for title in ("Latency", "Seeds", "Controls", "Training"):
        assert f"## {title}" in page
    assert "plain magnitude pruning" in page
    assert "![Error and sparsity per epoch](curves.png)" in page
    assert "Training took" in page
    assert "## Not measured" not in page
    assert "goal missed" in page
    kinds = {
        ("filter", "shape"): "trained with group lasso and compacted",
        ("l1",): "trained with l1 on single weights and compacted",
        ("l1", "filter"): "trained with group lasso and l1 on single weights and compacted",
    }
    for given, sentence in kinds.items():
        penalties = tuple({"kind": kind, "strength": 1e-3} for kind in given)
        assert f"on mnist, {sentence}: a plain" in entry_page(
            dataclasses.replace(card, penalties=penalties)
        )


def test_controls_stand_in_the_first_paragraph(published):
    card = zoo.card("both", published)
    first = entry_page(card).partition("\n## ")[0]
    errors = {c.kind: median_result(c.seeds).test_error for c in card.controls}
    assert errors.keys() == {"magnitude", "small_dense"}
    for error in errors.values():
        assert f" {error:.2f} %" in first.partition("Controls of about as many")[2]
    better = sum(error < card.test_error for error in errors.values())
    assert f"; {better or 'none'} of 2 better." in first
    in_time = dataclasses.replace(card, budget={"latency": 0.5, "engine": "openvino"})
    assert "Controls of the same budget (`latency: 0.5`): " in entry_page(in_time)
    assert "Controls of" not in entry_page(dataclasses.replace(card, controls=(), unmeasured={
        **card.unmeasured, "controls": "none"}))  # fmt: skip


def test_the_dense_network_is_no_control_of_equal_cost(published):
    card = zoo.card("both", published)
    dense = dataclasses.replace(card.controls[0], kind="dense")
    error = median_result(dense.seeds).test_error
    both = entry_page(dataclasses.replace(card, controls=(*card.controls, dense)))
    assert " of 2 better. The dense network trained as long: " + f"{error:.2f} %." in both
    alone = entry_page(dataclasses.replace(card, controls=(dense,)))
    assert f"The dense network trained as long: {error:.2f} %." in alone
    assert "Controls of" not in alone


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory):
    """A zoo with an entry that a budget and a teacher made, without penalties."""
    folder = tmp_path_factory.mktemp("budgeted")
    distill = {"class_path": "Distill", "init_args": {"teacher": "zoo:lenet_mnist_dense"}}
    arguments = short_run(folder, "--model.penalties=null", *LOG, "--budget.macs=0.5")
    callbacks = arguments.index("--trainer.callbacks") + 1
    kept = [c for c in json.loads(arguments[callbacks]) if c["class_path"] != "ThresholdPruning"]
    arguments[callbacks] = json.dumps([*kept, distill])
    root = tmp_path_factory.mktemp("zoo_of_budgets")
    publishing.publish(train(arguments, folder), "half", root)
    return root


def test_a_budget_and_a_teacher_are_in_the_card_and_on_the_page(budgeted):
    card = zoo.card("half", budgeted)
    assert card.penalties == ()
    assert (card.budget["macs"], card.budget["importance"]) == (0.5, "measured")
    assert "parameters" not in card.budget
    assert card.teacher == "zoo:lenet_mnist_dense"
    assert card.compact.macs <= card.dense.macs / 2
    words = "brought down to a budget of `macs: 0.5` by measured importance and compacted"
    assert f"{words}, distilled from `zoo:lenet_mnist_dense`:" in entry_page(card)
    assert "step_cost" in card.unmeasured
    assert all(check.ok for check in publishing.verify("half", budgeted, latency=False))


def test_penalties_without_a_strength_only_say_what_may_go(budgeted):
    card = zoo.card("half", budgeted)
    some = dataclasses.replace(card, penalties=({"kind": "coupled", "strength": None},))
    words = entry_page(some).partition("multiply-adds")[0].partition("# half")[2]
    assert words == entry_page(card).partition("multiply-adds")[0].partition("# half")[2]
    assert "group lasso" not in words
    dense = dataclasses.replace(card, budget=None)
    assert "trained densely, distilled from `zoo:lenet_mnist_dense`:" in entry_page(dense)


def test_families_have_a_picture_of_all_entries_and_controls():
    cards = [zoo.card(name) for name in ENTRIES]
    found = families(cards)
    assert {f.picture for f in found} == {path.name for path in ZOO.glob("errors_*.png")}
    for family in found:
        members = [
            card
            for card in cards
            if (card.backbone, card.data.name) == (family.backbone, family.data)
        ]
        by_macs, by_latency = family.by_macs(), family.by_latency()
        errors = sorted(error for networks in by_macs.values() for _, error, _ in networks)
        expected = [card.test_error for card in members]
        expected += [median_result(c.seeds).test_error for m in members for c in m.controls]
        assert errors == sorted(expected)
        assert [name for name, *_ in by_macs["entries"]] == [
            re.sub(f"^.*_{family.data}_", "", card.name) for card in members
        ]
        assert len(by_latency["entries"]) == len(members)
        assert f"]({family.picture})" in (ZOO / PAGE).read_text()


def test_a_picture_goes_with_its_family(copied):
    page = write_table(copied)
    (picture,) = copied.glob("errors_*.png")
    assert picture.name == "errors_lenet_mnist.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "](errors_lenet_mnist.png)" in page.read_text()
    shutil.rmtree(copied / OTHER)
    assert "errors_" not in write_table(copied).read_text()
    assert not picture.exists()


def test_names_of_one_word_are_not_shortened():
    cards = [zoo.card(name) for name in ENTRIES[:2]]
    names = ("a", "a_b", "c")
    family = Family("x", "y", [dataclasses.replace(cards[0], name=name) for name in names])
    assert list(family.short_names().values()) == list(names)
    same = Family("x", "y", family.cards[:2])
    assert list(same.short_names().values()) == ["a", "a_b"]


def test_the_page_counts_kept_rows_times_kept_columns_as_the_paper_does():
    page = entry_page(zoo.card("lenet_mnist_shape_small"))
    assert "| multiply-adds of conv1, conv2, % | 5 - 5 | - |" in page
    assert "| the same, kept rows x kept columns | 0.4 - 2.4 | 1.4 - 2.8 |" in page
    page = entry_page(zoo.card("lenet_mnist_filter_channel"))
    assert "kept rows x kept columns" not in page  # a plain network computes no more than these


@pytest.mark.parametrize("name", ENTRIES)
def test_the_table_tells_what_is_left_of_every_sparse_entry(name):
    card = zoo.card(name)
    line = next(row for row in table_page([card]).splitlines() if row.startswith("| ["))
    left = [cell.strip() for cell in line.split("|")][-3]
    if not card.penalties and card.budget is None:
        assert left == "-"
        return
    page = entry_page(card)
    for part in left.split("; "):
        what, numbers = part.split(" ", 1)  # fails where nothing is told
        assert f"| {what} left | {numbers} | " in page


def test_where_the_paper_names_no_groups_all_layers_are_counted():
    lost = [card.layer_macs for card in map(zoo.card, ENTRIES) if card.backbone == "resnet20"]
    assert {sum(compact > 0 for compact, _ in layers.values()) for layers in lost} == {14, 18, 20}
    page = entry_page(zoo.card("resnet20_cifar10_depth14"))
    assert "| layers left | 14 of 20 | - |" in page
    assert "filters left" not in page  # the layers that are left have all of theirs
    page = entry_page(zoo.card("resnet20_cifar10_channel"))
    assert "| filters left | 615 of 698 | - |" in page
    assert "layers left" not in page


def test_pages_are_written_anew_and_nothing_else(copied, monkeypatch, capsys):
    def files(name):
        return {p.name: p.read_bytes() for p in (copied / name).iterdir()}

    before = {name: files(name) for name in (NAME, OTHER)}
    publishing.write_page(NAME, copied)
    assert {name: files(name) for name in (NAME, OTHER)} == before
    (copied / PAGE).unlink()
    monkeypatch.setattr(writing, "entry_page", lambda card, _: f"{card.name}, in other words")
    assert main(["zoo", "pages", "--root", str(copied)]) == 0
    assert "Wrote" in capsys.readouterr().out
    for name in (NAME, OTHER):
        changed = {file for file, content in files(name).items() if content != before[name][file]}
        assert changed == {PAGE, CARD}
        assert (copied / name / PAGE).read_text() == f"{name}, in other words"
        assert zoo.card(name, copied).test_error == zoo.card(name).test_error
    assert NAME in (copied / PAGE).read_text()


def test_pages_of_damaged_entries_are_not_written(copied):
    path = copied / NAME / GOLDEN
    path.write_bytes(b"x")
    before = (copied / NAME / CARD).read_bytes()
    with pytest.raises(ValueError, match=f"{GOLDEN} has 1 bytes"):
        publishing.write_page(NAME, copied)
    assert (copied / NAME / CARD).read_bytes() == before


def test_the_step_cost_alone_is_measured_again(copied, monkeypatch):
    before = zoo.card(NAME, copied)
    seen = []
    monkeypatch.setattr(writing, "measure_step_cost", lambda *given: seen.append(given) or cost)
    cost = dataclasses.replace(before.step_cost, ratio=1.5)
    monkeypatch.setattr(rewriting, "open_data", lambda section: Data())

    class Data:
        def train_dataloader(self):
            return ["a batch"]

    publishing.write_page(NAME, copied, step_cost=True, threads=2)
    after = zoo.card(NAME, copied)
    assert after == dataclasses.replace(before, step_cost=cost, files=after.files)
    ((settings, backbone, batch, precision, threads),) = seen
    assert settings["penalties"] == list(before.penalties)
    assert (batch, precision, threads) == ("a batch", None, 2)
    assert sum(p.numel() for p in backbone().parameters()) == before.dense.num_parameters
    assert "A step with the penalties takes 1.500" in (copied / NAME / PAGE).read_text()


def test_a_page_holds_no_html_of_a_card():
    """In its front matter a card has words alone; everywhere else `<` is written as an entity."""
    card = dataclasses.replace(
        zoo.card(NAME),
        remark="<b>{{ 7 * 7 }}</b> --- {% raw %}",
        penalties=({"kind": "a|b", "layers": "<i>"},),
        budget={"macs": "<b>", "importance": "a`\n\n# b"},
        teacher="zoo:`<i>",
    )
    page = entry_page(card)
    assert "&lt;b>{{ 7 * 7 }}&lt;/b> --- {% raw %}" in page
    assert "<" not in page
    assert "`macs: &lt;b>` by a' # b importance and compacted, distilled from `zoo:'&lt;i>`" in page
    assert "| `a\\|b` | `&lt;i>` |" in page
