"""A run's folder has one writer at a time."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from detr_fast.cli import main
from detr_fast.training.lock import FolderLock

HOLD = (
    "import os, sys, time\n"
    "from pathlib import Path\n"
    "from detr_fast.training.lock import FolderLock\n"
    "with FolderLock(Path(sys.argv[1])):\n"
    "    worker = os.fork()\n"
    "    if worker: print(worker, flush=True)\n"
    "    time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=tmp_path,  # not the checkout: its detr_fast may not be the installed one
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = int(process.stdout.readline())
    yield process
    process.kill()
    os.kill(worker, signal.SIGKILL)
    process.communicate()


def test_a_second_writer_is_refused_and_the_first_is_named(tmp_path, holder):
    expected = f"{tmp_path} is being written by process {holder.pid} on "
    with pytest.raises(ValueError, match=expected), FolderLock(tmp_path):
        pass


def test_an_ablation_refuses_a_folder_that_another_writes(tmp_path, holder, voc_folder, capsys):
    pytest.importorskip("pycocotools")
    options = ["ablate", "--data", f"voc:{voc_folder}", "--epochs", "1", "--batch-size", "4"]
    options += ["--num-queries", "6", "--repeats", "1", "--only", "no-giou", "--device", "cpu"]
    assert main([*options, "--out", str(tmp_path)]) == 2
    expected = f"{tmp_path} is being written by process {holder.pid}"
    assert expected in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_patience(tmp_path, holder):
    threading.Timer(1.0, holder.kill).start()
    with FolderLock(tmp_path, patience=60):
        assert holder.wait() == -signal.SIGKILL


def test_a_killed_process_holds_no_lock(tmp_path, holder):
    """Though what it has forked lives on."""
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with FolderLock(tmp_path) as lock:
        assert lock.path.read_text().startswith(f"process {os.getpid()} on ")


def test_nothing_is_left(tmp_path):
    for _ in range(2):
        with FolderLock(tmp_path):
            pass
        assert list(tmp_path.iterdir()) == []


def test_a_lock_that_its_owner_has_removed_is_no_lock(tmp_path, monkeypatch):
    """One waits for a file that is no longer there; whoever comes later locks another."""
    removed = []
    is_current = FolderLock._is_current

    def remove_first(lock, file):
        if not removed:
            lock.path.unlink()
            removed.append(lock.path)
        return is_current(lock, file)

    monkeypatch.setattr(FolderLock, "_is_current", remove_first)
    with FolderLock(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert removed and f"is being written by process {os.getpid()} on " in done.stderr


def test_a_file_system_without_locks_is_noted(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with FolderLock(tmp_path):
        assert f"{tmp_path} cannot be locked: Function not impl" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_two_runs_of_one_name(voc_folder, tmp_path):
    pytest.importorskip("pycocotools")
    command = [sys.executable, "-m", "detr_fast.cli", "train"]
    options = ["--runs", str(tmp_path), "--name", "twin", "--batch-size", "4", "--device", "cpu"]
    options += ["--epochs", "300", "--num-queries", "6"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": tmp_path}
    first = subprocess.Popen([*command, "--data", f"voc:{voc_folder}", *options], **pipes)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "twin" / "last.pt").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        done = subprocess.run([*command, "--resume", str(tmp_path / "twin")], **pipes)
        assert done.returncode == 2
        assert f"is being written by process {first.pid} on " in done.stdout
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGINT)
        output, _ = first.communicate()
    assert first.returncode == 130, output
    assert not (tmp_path / "twin" / ".lock").exists()
