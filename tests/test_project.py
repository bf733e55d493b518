"""The project around the code: versions, imports, configs, import costs, README."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from conftest import ROOT

SOURCE = ROOT / "src" / "ssl_lightning"
ROOMS = [
    "lazy",
    "suggest",
    "registry",
    "files",
    "parsing",
    "progress",
    "kernels",
    "backbones",
    "graph",
    "groups",
    "schedules",
    "steps",
    "locks",
    "penalties",
    "compaction",
    "measure",
    "costs",
    "low_rank",
    "prune",
    "export",
    "evaluation",
    "report",
    "checkpoints",
    "data",
    "zoo",
    "module",
    "callbacks",
    "hugging_face",
    "publishing",
    "sweep",
    "cli",
]
"""The order of imports: a room imports only from rooms before it (docs/decisions.md)."""

LIGHTNING = {"data", "module", "callbacks", "hugging_face", "publishing", "sweep", "cli"}
TORCHLESS = {"lazy", "suggest", "registry", "files", "parsing", "progress", "report"}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


FILES = sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")


def test_every_room_is_in_the_order():
    assert {room_of(path) for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    here = ROOMS.index(room_of(path))
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "ssl_lightning" and len(parts) > 1 and parts[1] in ROOMS:
            assert ROOMS.index(parts[1]) <= here, f"imports {name}"
        if parts[0] in ("lightning", "pytorch_lightning"):
            assert room_of(path) in LIGHTNING, f"imports {name}"
        if parts[0] in ("torch", "torchvision"):
            assert room_of(path) not in TORCHLESS, f"imports {name}"


MOST_LINES, MOST_STATEMENT_LINES = 400, 50


def statement_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement to the last: signature and docstring are no complexity."""
    documented = ast.get_docstring(function, clean=False) is not None
    body = function.body[1:] if documented else function.body
    return function.body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_files_and_functions_are_short():
    long = []
    for path in FILES:
        text, name = path.read_text(), path.relative_to(SOURCE)
        if (lines := len(text.splitlines())) > MOST_LINES:
            long.append(f"{name}: {lines} lines, at most {MOST_LINES}")
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        for node in filter(lambda n: isinstance(n, functions), ast.walk(ast.parse(text))):
            if (lines := statement_lines(node)) > MOST_STATEMENT_LINES:
                where = f"{name}:{node.lineno}: {node.name}"
                long.append(f"{where}: {lines} lines of statements, at most {MOST_STATEMENT_LINES}")
    assert not long, "too long:\n" + "\n".join(long)


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(m for m in sys.modules if '.' not in m))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(run.stdout.split())


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import ssl_lightning", {"torch", "lightning", "numpy"}),
        ("from ssl_lightning import create_backbone", {"lightning", "timm", "wandb", "matplotlib"}),
        (
            "from ssl_lightning import SSLLightningModule, SparsityMonitor, MNISTDataModule",
            {"timm", "wandb"},  # torchmetrics itself imports matplotlib where it is installed,
        ),
        ("import ssl_lightning.report", {"torch", "lightning", "matplotlib"}),
        ("from ssl_lightning.cli import main; main(['--help'])", {"torch", "lightning", "rich"}),
        (
            "from ssl_lightning.cli import main; main(['zoo', 'list'])",
            {"torch", "lightning", "matplotlib"},
        ),
        (
            "from ssl_lightning import zoo; [zoo.card(name) for name in zoo.list_models()]",
            {"torch", "lightning", "matplotlib"},
        ),
        (
            "from ssl_lightning.cli import main\n"
            "try: main(['report', '--help'])\n"
            "except SystemExit: 0",
            {"torch", "lightning", "matplotlib"},
        ),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code, absent):
    assert not absent & modules_after(code)


def test_all_public_names_exist():
    import ssl_lightning

    for name in ssl_lightning.__all__:
        assert getattr(ssl_lightning, name) is not None
    assert set(ssl_lightning.__all__) <= set(dir(ssl_lightning))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ssl_lightning.nothing


IMPORTED_LAST = """
import importlib.util, os, pathlib, sys
import lightning.pytorch, timm, torchmetrics, torchvision  # once, for all the processes to come

names = importlib.import_module("ssl_lightning").__all__
package = pathlib.Path(importlib.util.find_spec("ssl_lightning").origin).parent
modules = {path.stem for path in package.rglob("*.py")} | {p.name for p in package.rglob("*/")}
source = importlib.util.find_spec("ssl_lightning").loader.get_source("ssl_lightning")
homes = importlib.import_module("ssl_lightning.lazy").deferred_imports(source)
for module in [m for m in sys.modules if m.split(".")[0] == "ssl_lightning"]:
    del sys.modules[module]
wrong = []
for last in modules.intersection(names):
    child = os.fork()
    if not child:
        import ssl_lightning

        for name in names:
            name == last or getattr(ssl_lightning, name)
        exec(f"from ssl_lightning import {last} as found")
        home = homes[last]
        wanted = importlib.import_module("ssl_lightning.zoo" if last == "zoo" else home)
        os._exit(found is not (wanted if last == "zoo" else getattr(wanted, last)))
    if os.waitpid(child, 0)[1]:
        wrong.append(last)
print(",".join(wrong))
"""


def test_every_public_name_is_the_same_when_it_is_imported_last():
    """A subpackage with the name of its function would take the function's place."""
    run = subprocess.run(
        [sys.executable, "-c", IMPORTED_LAST], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == ""


def test_type_checkers_see_the_same_public_names():
    import ssl_lightning

    tree = ast.parse((SOURCE / "__init__.py").read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    seen = {alias.name for node in block.body for alias in node.names}
    assert seen == set(ssl_lightning.__all__)


def test_environment_has_the_versions_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in environment if isinstance(entry, dict)]
    assert [entry for entry in pip if not entry.startswith("--")] == project["dependencies"]
    assert f"python{project['requires-python']}" in environment


def test_the_version_stands_in_one_place():
    import ssl_lightning

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in pyproject["project"]
    assert "version" in pyproject["project"]["dynamic"]
    source = pyproject["tool"]["setuptools"]["dynamic"]["version"]
    assert source == {"attr": "ssl_lightning.__version__"}
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = r"(\d+\.\d+\.\d+) \((?:unreleased|\d{4}-\d\d-\d\d)\)"
    versions = [re.fullmatch(released, heading) for heading in headings]
    assert all(versions), headings
    assert versions[0][1] == ssl_lightning.__version__


def test_committed_text_names_no_place_of_a_machine():
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not files:
        pytest.skip("not a git checkout")
    for name in files:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".yml", ".toml", "") and path.is_file():
            text = path.read_text(errors="ignore")
            assert "/home" + "/" not in text, name
            assert "/root" + "/" not in text, name
