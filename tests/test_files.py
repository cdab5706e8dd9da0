"""Files are whole or absent, on disk before they have their name, and errors say which file they are about."""

import errno
import os
import socket
import subprocess
import sys

import pytest

from vsr_lightning import files


def test_replacing_writes_syncs_and_renames(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    path = tmp_path / "table.csv"
    path.write_text("old")
    files.write_text(path, "new")
    assert path.read_text() == "new"
    assert done == [f"{path}.tmp", "rename", str(tmp_path)]
    assert list(tmp_path.iterdir()) == [path]


def write_half(path):
    with files.replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(KeyError):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_dead_processes_go(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = socket.gethostname()
    for dead in (f".clips.h5.{host}-{ended.pid}.part", f".file.bin.{host}-{ended.pid}.part/half"):
        (tmp_path / dead).parent.mkdir(exist_ok=True)
        (tmp_path / dead).touch()
    mine = files.temporary_path(tmp_path / "clips.h5").name
    kept = [mine, f".clips.h5.{host}-{os.getppid()}.part", f".clips.h5.elsewhere-{ended.pid}.part"]
    for name in kept:
        (tmp_path / name).touch()
    files.remove_abandoned(tmp_path / "clips.h5")
    files.remove_abandoned(tmp_path / "file.bin")
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_whoever_meets_it(error, tmp_path):
    with pytest.raises(OSError) as raised, files.naming(tmp_path / "clips.h5"):
        raise error
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "clips.h5"))


def test_other_errors_keep_their_kind_and_get_the_name(tmp_path):
    with pytest.raises(OSError) as raised, files.naming(tmp_path):
        raise OSError(errno.EIO, "Input/output error")
    assert raised.value.filename == str(tmp_path)
    with pytest.raises(ValueError, match="mine"), files.naming(tmp_path):
        raise ValueError("mine")


def test_a_lock_waits_for_the_end_of_the_process_that_holds_it(tmp_path, capfd):
    path = tmp_path / "rows.jsonl"
    hold = (
        "import sys, time; from pathlib import Path; from vsr_lightning import files\n"
        f"file = open({str(path)!r}, 'a'); files.lock(file, Path()); print('held', flush=True); sys.stdin.read(1)\n"
        "time.sleep(0.3); file.write('end'); file.flush()"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    holder.stdin.close()
    with path.open() as file:
        files.lock(file, tmp_path)
        assert file.read() == "end"
    assert f"{tmp_path}: another process is at work here" in capfd.readouterr().err
    holder.wait()
