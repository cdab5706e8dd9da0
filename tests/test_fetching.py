"""Where data is looked for and written, and downloads from a web server of our own."""

import hashlib
import http.server
import threading
from functools import partial

import pytest

from vsr_lightning.data import fetching
from vsr_lightning.errors import UserError
from vsr_lightning.files import temporary_path


def test_directories_in_order_of_precedence(monkeypatch):
    monkeypatch.setenv("VSR_DATA_DIR", "shared")
    assert [str(folder) for folder in fetching.read_dirs("mine")] == ["mine", "shared", "data"]
    assert str(fetching.write_dir("mine")) == "mine"
    assert str(fetching.write_dir()) == "data"  # never $VSR_DATA_DIR
    monkeypatch.delenv("VSR_DATA_DIR")
    assert [str(folder) for folder in fetching.read_dirs()] == ["data"]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a local web server that has `file.bin`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "file.bin").write_bytes(b"digits")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def url_infos(url, content):
    from tensorflow_datasets.core.download.checksums import UrlInfo

    return {url: UrlInfo(size=len(content), checksum=hashlib.sha256(content).hexdigest(), filename="file.bin")}


def test_download_through_tfds(tmp_path, server):
    url, path = f"{server}/file.bin", tmp_path / "got" / "file.bin"
    fetching.download(url, path, url_infos(url, b"digits"))
    assert path.read_bytes() == b"digits"
    assert list(path.parent.iterdir()) == [path]  # no cache, no temporary folder


def test_download_with_another_checksum_leaves_nothing(tmp_path, server):
    url, path = f"{server}/file.bin", tmp_path / "got" / "file.bin"
    with pytest.raises(UserError, match=r"file.bin: what arrived has another checksum .* kept$"):
        fetching.download(url, path, url_infos(url, b"others"))
    assert not list(path.parent.iterdir())


def test_what_an_earlier_process_of_this_number_left_does_not_stop_a_download(tmp_path, server):
    url, path = f"{server}/file.bin", tmp_path / "got" / "file.bin"
    leftover = temporary_path(path)
    leftover.mkdir(parents=True)
    (leftover / "half").touch()
    fetching.download(url, path, url_infos(url, b"digits"))
    assert list(path.parent.iterdir()) == [path]


def test_download_gives_up_at_once_without_the_file(tmp_path, server):
    with pytest.raises(UserError, match="out of reach"):
        fetching.download(f"{server}/missing", tmp_path / "file.bin", {})
    with pytest.raises(UserError, match="out of reach"):  # answers, but with less than asked for
        fetching.download(f"{server}/file.bin", tmp_path / "file.bin", {}, first_bytes=100)
