"""Files are whole or absent, on disk before they have their name, and errors say which file they are about."""

import errno
import os
import socket
import subprocess
import sys
import zlib

import pytest
from damage import DAMAGES

from vsr_lightning import files
from vsr_lightning.errors import UserError


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


@pytest.mark.parametrize("error", [zlib.error("data error"), EOFError(), OSError("Unable to open file"), KeyError(1)])
def test_whatever_a_library_says_of_a_damaged_file_it_is_named(error, tmp_path):
    path = tmp_path / "clips.h5"
    reason = error.__class__.__name__
    with pytest.raises(UserError) as raised, files.reading(path, "go on"):
        raise error
    assert str(raised.value) == f"{path}: cannot be read ({reason}); go on"
    with pytest.raises(files.DamagedFile, match=f"clips.h5: .*{reason}.*go on"), files.reading(tmp_path, "elsewhere"):
        raise raised.value


def test_what_says_nothing_of_the_content_is_no_damage(tmp_path):
    path = tmp_path / "clips.h5"
    with pytest.raises(FileNotFoundError), files.reading(path, "go on"):
        path.read_bytes()
    with pytest.raises(OSError) as raised, files.reading(path, "go on"):
        raise OSError(errno.EIO, "Input/output error")
    assert raised.value.filename == str(path)
    with pytest.raises(MemoryError), files.reading(path, "go on"):
        raise MemoryError


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_is_read_as_text(tmp_path, end):
    path = tmp_path / "table.csv"
    path.write_bytes(end.join(["a,b", '1.0,"x, y"', ",", ""]).encode())
    assert files.read_table(path, "go on") == [{"a": "1.0", "b": "x, y"}, {"a": "", "b": ""}]
    path.write_bytes(f"a,b{end}".encode())
    assert files.read_table(path, "go on") == []


def test_a_written_table_is_read_back(tmp_path):
    path = tmp_path / "table.csv"
    files.write_table(path, ["a", "b"], [{"b": 0.1 + 0.2, "a": "x\ny"}, {"a": None}])
    assert files.read_table(path, "go on") == [{"a": "x\ny", "b": "0.30000000000000004"}, {"a": "", "b": ""}]
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError):
        files.write_table(path, ["a"], [{"c": 1}])
    assert len(files.read_table(path, "go on")) == 2


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_named(tmp_path, damage):
    path = tmp_path / "table.csv"
    path.write_text("video,psnr\n" + "".join(f"{video},{21 + video / 7}\n" for video in range(40)))
    damage(path)
    with pytest.raises(files.DamagedFile, match=r"table\.csv: cannot be read .*; go on"):
        files.read_table(path, "go on")


@pytest.mark.parametrize("content", ["a,b\n1,21.4", "a,b\n1,2,3\n", "a,b\n1\n", 'a,b\n1,"2\n', "a,b\n1,\0\n", ""])
def test_a_table_that_is_not_whole(tmp_path, content):
    """The first might have been 21.47."""
    path = tmp_path / "table.csv"
    path.write_text(content)
    with pytest.raises(files.DamagedFile):
        files.read_table(path, "go on")


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


def test_sizes_in_words():
    assert [files.size_in_words(size) for size in (0, 3_710_000, 999_000_000, 48.4e9)] == [
        *("0.0 MB", "3.7 MB", "999.0 MB", "48.4 GB")
    ]
