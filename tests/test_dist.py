"""tools/dist.py: a commit is built twice, and kept if both builds are equal."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "dist.py"
DATE = 1_700_000_000


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(root)}
    dates = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), f"{DATE} +0000")
    subprocess.run(["git", *who, *arguments], cwd=root, check=True, env={**environment, **dates})


@pytest.fixture
def dist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tool over a repository of one file, where to build is to copy the source."""
    spec = importlib.util.spec_from_file_location("dist_tool", SCRIPT)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    root = tmp_path / "repository"
    root.mkdir()
    (root / "code.py").write_text("committed")
    git(root, "init", "--quiet")
    git(root, "add", "code.py")
    git(root, "commit", "--quiet", "--message", "One")
    monkeypatch.setattr(tool, "ROOT", root)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    tool.builds = []

    def build(source: Path, output: Path, epoch: str, umask: int) -> dict[str, Path]:
        tool.builds.append((source, epoch, umask))
        output.mkdir(parents=True)
        (output / "a.whl").write_text((source / "code.py").read_text())
        return {"a.whl": output / "a.whl"}

    monkeypatch.setattr(tool, "build", build)
    return tool


def test_what_was_committed_is_built_twice_at_its_time(
    dist: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (dist.ROOT / "code.py").write_text("changed")
    dist.main()
    assert (dist.ROOT / "dist" / "a.whl").read_text() == "committed"
    assert len({source for source, _, _ in dist.builds}) == 2
    assert len({umask for _, _, umask in dist.builds}) == 2
    assert {epoch for _, epoch, _ in dist.builds} == {str(DATE)}
    printed = capsys.readouterr().out
    assert "without these changes:\nM code.py" in printed
    assert f"Two builds were equal, SOURCE_DATE_EPOCH={DATE}." in printed


def test_a_time_that_is_given_is_taken(dist: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "5")
    dist.main()
    assert {epoch for _, epoch, _ in dist.builds} == {"5"}


def test_what_differs_is_refused(dist: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(source: Path, output: Path, epoch: str, umask: int) -> dict[str, Path]:
        output.mkdir(parents=True)
        for name in ("a.whl", "a.tar.gz"):
            (output / name).write_text(str(source) if name == "a.whl" else "the same")
        return {path.name: path for path in output.iterdir()}

    monkeypatch.setattr(dist, "build", build)
    with pytest.raises(SystemExit, match=r"differ in a\.whl\. Nothing was written"):
        dist.main()
    assert not (dist.ROOT / "dist").exists()


def test_without_git_the_error_says_what_to_use(
    dist: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(SystemExit, match=r"git checkout; elsewhere use `python -m build`"):
        dist.main()
