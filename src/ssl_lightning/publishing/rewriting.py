"""Pages and cards of entries, written anew while their other files remain as they were."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ssl_lightning.files import appearing, in_turn, restore
from ssl_lightning.parsing import parse_yaml
from ssl_lightning.publishing.controls import Place
from ssl_lightning.publishing.runs import first_stepped, open_data
from ssl_lightning.publishing.writing import step_cost_of, write_card
from ssl_lightning.zoo.cards import CONFIG, PAGE, Card
from ssl_lightning.zoo.entries import card as read_card
from ssl_lightning.zoo.entries import (
    checked_entry,
    checked_file,
    entry_folder,
    list_models,
    zoo_root,
)
from ssl_lightning.zoo.listing import write_table
from ssl_lightning.zoo.loading import read_recipe


def write_page(
    name: str, root: Place | None = None, step_cost: bool = False, threads: int = 1
) -> Path:
    """Write an entry's page, and the table of its zoo, anew from the cards.

    Args:
        name: an entry.
        root: folder of entries; see :func:`ssl_lightning.zoo.entries.zoo_root` for the default.
        step_cost: also time again what the penalties add to a step, on an otherwise idle machine.
        threads: to do that with.

    Returns:
        The folder of the entry.

    Raises:
        FileNotFoundError: if there is no zoo, or a file of the entry or its data set is missing.
        ValueError: if the name is no plain name or unknown, or a file but the page is not what was
            published. The entry is unchanged then.
    """
    with in_turn(zoo_root(root)):
        restore(zoo_root(root))
        target, card = entry_folder(name, root), read_card(name, root)
        if step_cost and card.step_cost is not None:
            files = checked_entry(name, root)[1]
            config, recipe = parse_yaml(files[CONFIG], CONFIG), read_recipe(files)
            data = open_data(config["data"])
            found = step_cost_of(config, partial(first_stepped, recipe), data, threads)
            card = dataclasses.replace(card, step_cost=found)
        rewrite(target, card)
        write_table(target.parent)
    return target


def rewrite(target: Path, card: Card, more: Mapping[str, bytes] | None = None) -> None:
    """Write an entry's page and card anew; its other files, which are checked, are as they were.

    So are files beside them that are no part of the entry.

    Args:
        target: folder of the entry.
        card: as it is from now on.
        more: file -> content, of files that are added or replaced.

    Raises:
        ValueError: if a file, or another entry's card, is not what was published.
    """
    for name in list_models(target.parent):
        read_card(name, target.parent)  # the table is of all: a damaged one is found before
    files = [file for file in card.files if file != PAGE]
    others = {file: checked_file(target / file, card.files[file]) for file in files}
    with appearing(target, replace=True) as folder:
        for file, content in {**others, **(more or {})}.items():
            (folder / file).write_bytes(content)
        write_card(card, folder)
        for path in target.iterdir():
            if not (folder / path.name).exists():
                copy = shutil.copytree if path.is_dir() else shutil.copy2
                copy(path, folder / path.name)
