"""What is measured after an entry was published: controls, and what `evaluate` wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from ssl_lightning.files import in_turn, restore
from ssl_lightning.parsing import parse_yaml
from ssl_lightning.publishing.controls import Place, measure_control
from ssl_lightning.publishing.evaluations import belonging, file_of, read_evaluation
from ssl_lightning.publishing.rewriting import rewrite
from ssl_lightning.suggest import pick, shortened
from ssl_lightning.zoo.cards import CONFIG, serial
from ssl_lightning.zoo.entries import card as read_card
from ssl_lightning.zoo.entries import checked_file, entry_folder, zoo_root
from ssl_lightning.zoo.listing import write_table
from ssl_lightning.zoo.records import CONTROLS


def add_controls(
    name: str,
    controls: Mapping[str, Sequence[Place]],
    root: str | Path | None = None,
    remark: str | None = None,
) -> Path:
    """Measure runs of other methods, and set them beside an entry in its card and on its page.

    Controls that are to have an entry's groups (:class:`~ssl_lightning.callbacks.PruneLike`) can
    only be trained once it is published. All else in the entry is unchanged.

    Args:
        name: an entry.
        controls: kind of control (:data:`~ssl_lightning.zoo.records.CONTROLS`) -> folders of
            finished runs, one per seed. Controls of a kind that the card has already give way.
        root: folder of entries; see :func:`ssl_lightning.zoo.entries.zoo_root` for the default.
        remark: what the card says from now on in place of its remark, ``""`` for nothing; None:
            as it was.

    Returns:
        The folder of the entry.

    Raises:
        FileNotFoundError: if there is no zoo, or a part of a run or its data set is missing.
        ValueError: if the name is unknown, a file of the entry is not what was published, no
            control is given, or one is of an unknown kind, is not finished, or was trained on
            other data than the entry. The entry is unchanged then.

    Example:
        >>> add_controls("lenet_mnist_shape", {}, "zoo")
        Traceback (most recent call last):
            ...
        ValueError: add_controls: expected runs of controls for lenet_mnist_shape, got none.
    """
    if not controls:
        raise ValueError(f"add_controls: expected runs of controls for {name}, got none.")
    with in_turn(zoo_root(root)):  # another such call would read the card before this one wrote it
        restore(zoo_root(root))
        return add_in_turn(name, controls, root, remark)


def add_in_turn(
    name: str,
    controls: Mapping[str, Sequence[Place]],
    root: str | Path | None,
    remark: str | None,
) -> Path:
    """Do what :func:`add_controls` does, while no other process writes to the zoo."""
    target, card = entry_folder(name, root), read_card(name, root)
    config = parse_yaml(checked_file(target / CONFIG, card.files[CONFIG]), CONFIG)
    data = config.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("class_path"), str):
        raise ValueError(
            f"{target / CONFIG} is not what `fit` writes: expected the `class_path` of a data "
            f"module, got {shortened(data)}. Get the entry again."
        )
    for kind in controls:
        pick("kind of control", kind, CONTROLS)
    of = {key: getattr(card, key) for key in ("name", "backbone", "epochs")}
    rows = tuple(measure_control(kind, found, of, config) for kind, found in controls.items())
    others = tuple(row for row in card.controls if row.kind not in controls)
    unmeasured = {field: why for field, why in card.unmeasured.items() if field != "controls"}
    if remark is not None:
        card = dataclasses.replace(card, remark=remark or None)
    rewrite(target, dataclasses.replace(card, controls=(*others, *rows), unmeasured=unmeasured))
    write_table(target.parent)
    return target


def add_evaluations(name: str, files: Sequence[Place], root: str | Path | None = None) -> Path:
    """Add records of ``evaluate`` to an entry, and their figures to its page.

    Of each record, what is about the entry and the dense network beside it. A record of the same
    kind gives way. All else in the entry is unchanged; :func:`verify` does not measure these again.

    Args:
        name: an entry.
        files: that ``evaluate calibration``, ``corruption`` or ``transfer`` wrote (``--output``).
        root: folder of entries; see :func:`ssl_lightning.zoo.entries.zoo_root` for the default.

    Returns:
        The folder of the entry.

    Raises:
        FileNotFoundError: if there is no zoo, or a file is missing.
        ValueError: if the name is unknown, a file of the entry is not what was published, none is
            given, or one is no such record, or not of this entry. The entry is unchanged then.

    Example:
        >>> add_evaluations("lenet_mnist_shape", [], "zoo")
        Traceback (most recent call last):
            ...
        ValueError: add_evaluations: expected what `evaluate` wrote of lenet_mnist_shape, got none.
    """
    if not files:
        raise ValueError(f"add_evaluations: expected what `evaluate` wrote of {name}, got none.")
    with in_turn(zoo_root(root)):
        target, card = entry_folder(name, root), read_card(name, root)
        records = [belonging(read_evaluation(path), card, path) for path in files]
        names = [file_of(record) for record in records]
        if len(set(names)) < len(names):
            raise ValueError(
                f"add_evaluations: expected one record of each kind, got {', '.join(names)}. Give "
                "the one that is to be on the page."
            )
        contents = [serial(record.to_dict()) for record in records]
        more = dict(zip(names, contents, strict=True))
        rewrite(target, card, more)
        write_table(target.parent)
    return target
