"""Downloads from a server on this machine that answers as the Open Science Framework does."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from scvci.datasets import download_marson, download_sciplex

MARSON = "marson_formatted_raw.h5ad"
SCIPLEX = [f"sciplex_raw_chunk_{i}.h5ad" for i in range(5)]


class _Server(ThreadingHTTPServer):
    """Lists a folder ``raw`` in pages of two files, and counts what is fetched."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.base = f"http://127.0.0.1:{self.server_port}"
        self.files = {name: f"content of {name}".encode() * 50 for name in [*SCIPLEX, MARSON]}
        self.hashes = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        self.fetched: list[str] = []
        self.broken: set[str] = set()

    def entry(self, name):
        return {
            "attributes": {
                "kind": "file",
                "name": name,
                "extra": {"hashes": {"md5": "", "sha256": self.hashes[name]}},
            },
            "links": {"download": f"{self.base}/download/{name}"},
        }

    def page(self, number):
        names = list(self.files)
        more = 2 * number + 2 < len(names)
        return {
            "data": [self.entry(name) for name in names[2 * number : 2 * number + 2]],
            "links": {"next": f"{self.base}/inside?page={number + 1}" if more else None},
        }

    def root(self):
        related = {"links": {"related": {"href": f"{self.base}/inside?page=0"}}}
        entries = [
            {"attributes": {"kind": "file", "name": "README.md"}, "links": {}},
            {"attributes": {"kind": "folder", "name": "other"}, "relationships": {}},
            {
                "attributes": {"kind": "folder", "name": "raw"},
                "relationships": {"files": related},
            },
        ]
        return {"data": entries, "links": {"next": None}}


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self):
        if self.path.startswith("/download/"):
            name = self.path.rsplit("/", 1)[1]
            self.server.fetched.append(name)
            data = self.server.files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:100] if name in self.server.broken else data)
            return
        if self.path == "/nodes/q6tpk/files/osfstorage/":
            body = self.server.root()
        else:
            body = self.server.page(int(self.path.rsplit("=", 1)[1]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def server(monkeypatch):
    server = _Server()
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setattr("scvci.datasets._osf._API", server.base)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_files_are_fetched_once(server, tmp_path):
    folder = tmp_path / "new" / "folder"
    paths = download_sciplex(folder)
    assert [path.name for path in paths] == SCIPLEX
    assert all(path.parent == folder for path in paths)
    assert [path.read_bytes() for path in paths] == [server.files[name] for name in SCIPLEX]
    assert sorted(server.fetched) == SCIPLEX
    assert download_sciplex(folder) == paths
    assert sorted(server.fetched) == SCIPLEX
    path = download_marson(str(folder))
    assert path.read_bytes() == server.files[MARSON]


def test_a_file_that_changed_here_is_fetched_again(server, tmp_path):
    (tmp_path / MARSON).write_bytes(b"half of it")
    assert download_marson(tmp_path).read_bytes() == server.files[MARSON]


def test_a_file_with_another_hash_is_refused(server, tmp_path):
    server.hashes[MARSON] = "0" * 64
    with pytest.raises(ValueError, match=f"hash of downloaded file \\({MARSON}\\)"):
        download_marson(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_breaks_off_is_not_kept(server, tmp_path):
    server.broken.add(MARSON)
    with pytest.raises((OSError, ValueError)):
        download_marson(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_listed_is_named(server, tmp_path):
    del server.files[SCIPLEX[3]]
    with pytest.raises(
        FileNotFoundError, match=f"q6tpk .* lists no {SCIPLEX[3]} in 'raw'. Listed:"
    ):
        download_sciplex(tmp_path)
    assert server.fetched == []


def test_a_project_without_the_folder(server, tmp_path, monkeypatch):
    monkeypatch.setattr("scvci.datasets._osf._FOLDER", "moved")
    with pytest.raises(FileNotFoundError, match="in 'moved'. Listed: no file"):
        download_marson(tmp_path)


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr("scvci.datasets._osf._API", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"cannot be read .*by hand and give their paths"):
        download_marson(tmp_path)
