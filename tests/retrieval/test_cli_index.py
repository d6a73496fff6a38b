"""``ragft index`` on files as they are: too many, broken, unreadable, interrupted."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ragft_plugin.cli.main import run
from ragft_plugin.retrieval import KnowledgeBase


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert run(["init"]) == 0
    (tmp_path / "docs").mkdir()
    return tmp_path


class Terminal(io.StringIO):
    """A terminal that keeps what is written."""

    def isatty(self) -> bool:
        return True


def knowledge_bases(project: Path) -> list[Path]:
    """Where there is one; while it is made it lies in a hidden folder."""
    return [path.parent for path in project.rglob("knowledge.db") if not path.parent.name.startswith(".")]


def test_the_bar_tells_share_amount_rate_and_time_left(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(30):
        (project / "docs" / f"{n}.md").write_text(f"Lamp {n} is red.")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run(["index", "docs"]) == 0
    shown = terminal.getvalue()
    assert "indexing" in shown
    assert "100%" in shown
    assert "440 B of 440 B" in shown
    assert "B/s" in shown


def test_json_on_a_terminal_shows_no_bar(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "docs" / "a.md").write_text("Lamps are red.")
    capsys.readouterr()
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run(["index", "docs", "--json"]) == 0
    assert terminal.getvalue() == ""
    assert json.loads(capsys.readouterr().out)["added"] == 1


def test_what_cannot_be_read_is_named_and_the_rest_is_indexed(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pypdf")
    docs = project / "docs"
    (docs / "good.md").write_text("Lamps are red.")
    (docs / "broken.pdf").write_bytes(b"%PDF-1.4 and then nothing of the kind")
    (docs / "binary.txt").write_bytes(bytes(range(256)))
    (docs / "gone.md").symlink_to(docs / "was-here-once.md")
    (docs / "picture.png").write_bytes(b"\x89PNG")
    (docs / "secret.md").write_text("No one may read this.")
    plain = Path.read_bytes

    def refuse(self: Path) -> bytes:  # permissions do not stop the administrator, as whom tests may run
        if self.name == "secret.md":
            raise PermissionError(13, "Permission denied")
        return plain(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    capsys.readouterr()
    assert run(["index", "docs"]) == 0
    out, err = capsys.readouterr()
    assert "added 1" in out
    skipped = {Path(line.split(": ", 1)[0].removeprefix("skipped ")).name: line for line in err.splitlines()}
    assert sorted(skipped) == ["binary.txt", "broken.pdf", "gone.md", "picture.png", "secret.md"]
    assert "cannot be read: Permission denied" in skipped["secret.md"]
    assert "cannot be read: No such file" in skipped["gone.md"]
    assert "no reader for .png" in skipped["picture.png"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may read every file")
def test_a_file_without_read_permission_is_skipped(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "docs" / "good.md").write_text("Lamps are red.")
    (project / "docs" / "secret.md").write_text("No one may read this.")
    (project / "docs" / "secret.md").chmod(0)
    assert run(["index", "docs"]) == 0
    assert "secret.md: cannot be read: Permission denied" in capsys.readouterr().err


def test_a_malformed_row_costs_its_file_alone_and_is_told_by_the_exit_status(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "docs" / "bad.csv").write_text("a,b\n1\n")
    (project / "docs" / "good.md").write_text("Lamps are red.")
    assert run(["index", "docs"]) == 2
    out, err = capsys.readouterr()
    assert "added 1" in out
    assert "bad.csv:2" in err


def test_a_second_folder_needs_a_name(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("docs", "more"):
        (project / name).mkdir(exist_ok=True)
        (project / name / "a.md").write_text(f"Lamps of {name}.")
    assert run(["index", "docs"]) == 0
    assert run(["index", "more"]) == 2
    assert "--collection NAME" in capsys.readouterr().err
    assert run(["index", "more", "--collection", "more"]) == 0
    assert "passages 2" in capsys.readouterr().out
    (project / "docs").rename(project / "papers")
    assert run(["index", "papers"]) == 2
    assert run(["index", "papers", "--moved"]) == 0


def test_another_encoder_than_that_of_the_knowledge_base_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "docs" / "a.md").write_text("Lamps are red.")
    assert run(["index", "docs"]) == 0
    settings = project / "ragft.yaml"
    plain = settings.read_text()
    for other, told in (("minilm", "all-MiniLM"), ("none", "encoder: none"), ("nowhere", "unknown encoder")):
        settings.write_text(plain.replace("encoder: hashing", f"encoder: {other}"))
        assert run(["index", "docs"]) == 2
        assert told in capsys.readouterr().err


def test_the_true_reason_is_told_when_no_knowledge_base_can_be_made(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "docs" / "a.md").write_text("Lamps are red.")
    (project / "knowledge_base").mkdir()
    (project / "knowledge_base" / "something").write_text("else")
    assert run(["index", "docs"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_documents_are_cut_as_the_settings_say(project: Path) -> None:
    (project / "docs" / "a.txt").write_text("Lamps are red. Gears are blue. Wheels are round.")
    settings = project / "ragft.yaml"
    settings.write_text(settings.read_text() + "chunks: {size: 20, overlap: 0}\n")
    assert run(["index", "docs"]) == 0
    with KnowledgeBase.open(project / "knowledge_base", read_only=True) as kb:
        assert len(kb) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_a_killed_run_goes_on_where_it_stopped(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = 1500
    for n in range(count):
        (project / "docs" / f"{n:04}.txt").write_text(f"Lamp {n} is red.")
    program = "from ragft_plugin.cli.main import run; run(['index', 'docs'])"
    child = subprocess.Popen([sys.executable, "-c", program], cwd=project)
    held = 0
    while child.poll() is None and not held:
        time.sleep(0.02)
        for path in knowledge_bases(project):
            with KnowledgeBase.open(path, read_only=True) as kb:
                held = len(kb)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    with KnowledgeBase.open(knowledge_bases(project)[0], read_only=True) as kb:
        held = len(kb)
    assert 0 < held < count
    capsys.readouterr()
    assert run(["index", "docs", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["unchanged"], report["added"], report["passages"]) == (held, count - held, count)
