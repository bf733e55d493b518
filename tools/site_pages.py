"""The pages of the documentation that are generated: reference, commands, zoo, gallery, notebooks.

``docs/conf.py`` calls :func:`write_all` before Sphinx reads the pages. Each page is written only if
its text differs, so that an unchanged page is not built again.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(path) for path in (ROOT / "src",) if str(path) not in sys.path]

REFERENCE: dict[str, tuple[str, str, str]] = {
    "networks": (
        "Networks",
        "Backbones by name, and what a network is called with.",
        "create_backbone list_backbones register_backbone BACKBONES Inputs load_backbone",
    ),
    "groups": (
        "Groups",
        "Which slices of weights become zero together.",
        "Selector GroupSet GroupKind resolve_groups group_norms kept_groups register_kind "
        "GroupLocks",
    ),
    "penalties": (
        "Penalties and schedules",
        "What a group costs as a function of its norm, and when.",
        "Regularizer Penalty PenaltyFunction GroupLasso MCP SCAD CappedLasso group_lasso "
        "group_lasso_subgradient prox_group_lasso register_penalty_function Schedule Constant Ramp "
        "Cosine Window register_schedule StageLR",
    ),
    "pruning": (
        "Pruning without training",
        "Zero groups at once, to a fraction, a threshold or a budget; low rank factors.",
        "prune_ PruneReport prune_like_ sensitivity Sensitivity LatencyMeter preferred_multiple "
        "factorise LowRankReport",
    ),
    "compaction": (
        "Plans and compact networks",
        "What can be removed without changing the function, and the smaller network.",
        "make_plan Plan compact apply_plan expand save_compact load_compact for_inference "
        "choose_layers Rule register_rule register_shrinker",
    ),
    "kernels": (
        "Column-sparse convolution",
        "The product of retained rows and columns only.",
        "ColumnSparseConv2d column_sparse_conv2d",
    ),
    "measuring": (
        "Measuring and exporting",
        "Multiply-adds, latency in engines, files for other runtimes, int8.",
        "count_macs benchmark BenchmarkResult Engine register_engine export_model ExportResult "
        "export_int8 Int8Result compare_precisions",
    ),
    "training": (
        "Training with Lightning",
        "The task module, the mixin for modules of your own, and the callbacks.",
        "SSLLightningModule StructuredSparsity Sparsify Budget ThresholdPruning DepthCollapse "
        "CompactDuringFit Distill LowRank PruneLike SaveCompact SparsityMonitor FilterPictures "
        "NormPictures",
    ),
    "data": (
        "Data modules",
        "Images and targets, with an order that resumes.",
        "MNISTDataModule FashionMNISTDataModule CIFAR10DataModule ImagenetteDataModule "
        "ImageNetDataModule ImageFolderDataModule ArrayDataModule ImageDataModule "
        "SyntheticDataModule LabelledImages",
    ),
    "zoo": ("The zoo", "Read entries; write, measure and compare them.", "zoo publishing"),
}
"""Page of the reference -> title, what it is about, its public names."""

NO_MEMBERS = {  # those of Lightning would hide their own; a tuple's fields are in its docstring
    "SSLLightningModule",
    "StructuredSparsity",
    "LabelledImages",
}
PROJECT_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Page in the root -> page of the documentation."""

LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def reference_page(title: str, about: str, names: str) -> str:
    """Return a page with the docstrings of some public names."""
    import ssl_lightning

    blocks = [f"# {title}\n\n{about}\n"]
    for name in names.split():
        blocks.append("```{eval-rst}\n" + "\n".join(directive(ssl_lightning, name)) + "\n```\n")
    return "\n".join(blocks)


def directive(package: Any, name: str) -> Iterator[str]:
    """Yield the lines that document one public name."""
    found = getattr(package, name)
    home = package.__name__
    if isinstance(found, type):
        yield f".. autoclass:: {home}.{name}"
        if name not in NO_MEMBERS:
            yield "   :members:"
    elif callable(found):
        yield f".. autofunction:: {home}.{name}"
    elif isinstance(found, dict):
        yield f".. py:data:: {home}.{name}"
        yield ""
        yield "   Name -> what makes it; :func:`~ssl_lightning.register_backbone` adds to it."
    else:
        yield f".. automodule:: {found.__name__}"
        for inner in found.__all__:
            yield ""
            yield from directive(found, inner)


def reference_index() -> str:
    """Return the list of the reference's pages."""
    rows = (f"| [{title}]({page}.md) | {about} |" for page, (title, about, _) in REFERENCE.items())
    pages = "\n".join(REFERENCE)
    return (
        "# Reference\n\nAll public names; `from ssl_lightning import ...`. The core imports no "
        "Lightning: it works in any loop.\n\n| page | what |\n|---|---|\n"
        + "\n".join(rows)
        + f"\n\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"
    )


def relocated(text: str, source: Path, target: Path) -> str:
    """Return a page's text with its relative links as they are seen from another folder.

    Example:
        >>> relocated("[a](b/c.md#d)", Path("/x"), Path("/x/y/z"))
        '[a](../../b/c.md#d)'
    """

    def moved(link: re.Match[str]) -> str:
        path, _, anchor = link[1].partition("#")
        place = PROJECT_PAGES.get(path) or os.path.relpath(source / path, target)
        return f"]({place}{anchor and '#'}{anchor}"

    return LINK.sub(moved, text)


def commands_page() -> str:
    """Return the help of every command."""
    from ssl_lightning.cli import COMMANDS

    parts = [
        "# Commands\n",
        "`ssl-lightning` after `pip install .`, `python cli.py` in a checkout. This is what "
        "`--help` prints.\n",
    ]
    for command, (_, about) in COMMANDS.items():
        parts += [
            f"## {command}\n",
            f"{about[0].upper()}{about[1:]}.\n",
            f"```text\n{help_of(command)}\n```\n",
        ]
    return "\n".join(parts)


def help_of(command: str) -> str:
    """Return what ``ssl-lightning COMMAND --help`` prints, at 80 columns."""
    from ssl_lightning.cli import main

    text = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    arguments, sys.argv = sys.argv, ["ssl-lightning", command]
    try:
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            main([command, "--help"])
    finally:
        sys.argv = arguments
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue()).strip()


SORTED = """
<a href="../../zoo.html">The same as a page that sorts and filters</a>
"""


def zoo_pages(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the pages of the zoo and its entries, as they lie in ``zoo/``, without front matter."""
    from readme_tables import FIGURES, figures
    from ssl_lightning.zoo import card
    from ssl_lightning.zoo.wording import table

    names = sorted(path.parent.name for path in (ROOT / "zoo").glob("*/README.md"))
    toc = "\n".join(f"{name} <{name}/README>" for name in names)
    head, after = (ROOT / "zoo" / "README.md").read_text().split("\n## ", 1)
    intro = f"{head.split(chr(10) + '|', 1)[0]}\n{SORTED}"
    rows = ((f"[{name}]({name}/README.md)", *figures(card(name))) for name in names)
    made = table(("entry", "test error", *FIGURES[1:]), rows)
    hidden = f"```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{toc}\n```\n"
    yield folder / "index.md", f"{intro}\n{made}\n\n## {after}\n{hidden}"
    for name in names:
        page = (ROOT / "zoo" / name / "README.md").read_text()
        yield folder / name / "README.md", re.sub(r"\A---\n.*?\n---\n+", "", page, flags=re.DOTALL)


GALLERY: dict[str, tuple[str, str]] = {
    "demo/report.png": (
        "The demo: LeNet dense, masked and compact, layer by layer",
        "../install.md",
    ),
    "demo/filters.png": ("The demo: first filters, dense and sparse", "../install.md"),
    "demo/norms.png": ("The demo: norms of all groups over the epochs", "../guides/runs.md"),
    "sparsify/lenet.png": (
        "Error over cost of one run of `sparsify`, beside its controls",
        "../sparsify.md",
    ),
    "sensitivity/sensitivity.png": (
        "Error after removing shares of each layer's channels",
        "../sensitivity.md",
    ),
    "guides/int8/resnet20.png": (
        "ResNet-20: dense and compact, float32 and int8",
        "../guides/int8.md",
    ),
    "guides/int8/mobilenetv3.png": (
        "MobileNetV3-small: dense and compact, float32 and int8",
        "../guides/int8.md",
    ),
    "generalisation/calibration_resnet20.png": (
        "Calibration of ResNet-20, dense and sparse",
        "../generalisation.md",
    ),
    "generalisation/corruption_resnet20.png": (
        "Errors of ResNet-20 on corrupted images",
        "../generalisation.md",
    ),
}
"""Picture of docs/ -> what it shows, and the page that says how it was made."""


def gallery_page() -> str:
    """Return a page with all pictures."""
    parts = [
        "# Gallery\n",
        "Every picture is made by a command of the library; its page says which.\n",
    ]
    shown = [(path, *rest) for path, rest in GALLERY.items() if (ROOT / "docs" / path).is_file()]
    for path, caption, page in shown:
        parts.append(f"## {caption}\n\n![{caption}](../{path})\n\n[How it was made]({page})\n")
    for path in sorted((ROOT / "zoo").glob("errors_*.png")):
        what = path.stem.removeprefix("errors_").replace("_", " ")
        caption = f"Test error over cost: {what}"
        parts.append(f"## {caption}\n\n![{caption}](zoo/{path.name})\n\n[The zoo](zoo/index.md)\n")
    return "\n".join(parts)


def copied_pictures(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield source and destination of the zoo's pictures, which the pages of the zoo show."""
    zoo = ROOT / "zoo"
    for path in [*zoo.glob("*.png"), *zoo.glob("*/*.png")]:
        yield path, folder / path.relative_to(zoo)


def notebook(tutorial: Path) -> str:
    """Return a tutorial as a Jupyter notebook, cells in the order of its code blocks."""
    import jupytext

    text = re.sub(r"```text\n.*?```\n", "", tutorial.read_text(), flags=re.DOTALL)  # outputs
    text = re.sub(r"^\{download\}`[^`]*`\n+", "", text, flags=re.MULTILINE)
    made = jupytext.reads(text, fmt="md")
    made.metadata["kernelspec"] = {
        "name": "python3",
        "language": "python",
        "display_name": "Python 3",
    }
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"  # drawn at random otherwise
    return jupytext.writes(made, fmt="ipynb") + "\n"


def write(path: Path, text: str) -> None:
    """Write a page unless it has this text."""
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_all(docs: Path) -> None:
    """Write all generated pages below ``docs/generated``."""
    from ssl_lightning.publishing import write_site

    folder = docs / "generated"
    for name, (title, about, names) in REFERENCE.items():
        write(folder / "reference" / f"{name}.md", reference_page(title, about, names))
    write(folder / "reference" / "index.md", reference_index())
    write(folder / "commands.md", commands_page())
    write(folder / "gallery.md", gallery_page())
    for path, text in zoo_pages(folder / "zoo"):
        write(path, text)
    write_site(folder / "files" / "zoo.html", ROOT / "zoo")
    for source, target in copied_pictures(folder / "zoo"):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    for tutorial in sorted((docs / "tutorials").glob("*.md")):
        if tutorial.stem != "index":
            write(folder / "notebooks" / f"{tutorial.stem}.ipynb", notebook(tutorial))
    for name, page in PROJECT_PAGES.items():
        write(folder / page, relocated((ROOT / name).read_text(), ROOT, folder))
