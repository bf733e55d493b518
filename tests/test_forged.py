"""Forged files: each is refused in a sentence or loaded rightly, and none has anything done.

A process of its own reads them under an audit hook. ``SSL_FORGED=300`` reads 300 entries and 200
checkpoints and compact folders each instead of a few.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from forge import HTML
from ssl_lightning import zoo
from ssl_lightning.publishing.pages import entry_page
from ssl_lightning.zoo.listing import table_page

FULL = int(os.environ.get("SSL_FORGED", "0"))
SIZES = {
    "entries": FULL or 30,
    "compact": FULL * 2 // 3 or 40,
    "checkpoints": FULL * 2 // 3 or 24,
}


def test_what_a_card_says_cannot_be_html_on_a_page():
    card = zoo.card("lenet_mnist_filter_channel", ROOT / "zoo")
    forged = dataclasses.replace(
        card, paper={"row": HTML, "reference": HTML, "error": HTML}, remark=f"{HTML} {HTML}"
    )
    pages = entry_page(forged) + table_page([forged])
    assert pages.count("&lt;script>alert(1)") == 7
    assert "<" not in pages
    with pytest.raises(ValueError, match=r"card\.licence: expected letters"):
        dataclasses.replace(card, licence=HTML)


def read(kind: str, folder: Path) -> list[dict]:
    """Read forged files in a new process; return what became of each."""
    command = [sys.executable, str(ROOT / "tests/forged_run.py"), kind, "0", str(SIZES[kind])]
    given = os.environ.get("PYTHONPATH")
    paths = os.pathsep.join(filter(None, [given, str(ROOT / "src"), str(ROOT / "tests")]))
    done = subprocess.run(
        [*command, str(folder)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.timeout(3600 if FULL else 600)
@pytest.mark.parametrize("kind", SIZES)
def test_forged_files_are_refused_in_a_sentence_or_loaded_rightly(kind, tmp_path):
    found = read(kind, tmp_path)
    assert [one["number"] for one in found] == list(range(SIZES[kind]))
    wrong = [
        (one["number"], one["what"], reader, end)
        for one in found
        for reader, end in one["ended"].items()
        if not end.startswith(("ok", "refused"))
    ]
    assert not wrong, "\n".join(map(str, wrong))
    touched = [(one["number"], one["what"], one["touched"]) for one in found if one["touched"]]
    assert not touched, "\n".join(map(str, touched))
    ends = [end.partition(":")[0] for one in found for end in one["ended"].values()]
    print(
        f"{kind}: {len(found)} files, {ends.count('ok')} readings fine, {ends.count('refused')} not"
    )
    assert ends.count("ok") > 0
    assert ends.count("refused") > len(found) // 2
