"""A Hugging Face hub on loopback, and caches in its layout.

`python -m tests.stand_in_hub` writes tests/hub again, the cache with the model LOCAL/FIXTURE.
"""

import hashlib
import json
import shutil
import tempfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlxhog.checkpoint import formats
from mlxhog.checkpoint.formats.converting import convert
from tests.saved import letters, saved_run

FIXTURE, COMMIT = "LOCAL/FIXTURE", "c0ffee" + "0" * 34
CACHE = Path(__file__).parent / "hub"


def files_of(folder):
    """The files of a folder by name, as a repository has them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def small_model():
    """The files of a model of transformers, with letters and newlines as its text."""
    with tempfile.TemporaryDirectory() as folder:
        run = saved_run(Path(folder) / "runs", params=letters())
        convert(
            formats.open(next(run.checkpoints.glob("step-*"))),
            Path(folder, "out"),
            "hf",
            "bfloat16",
        )
        return files_of(Path(folder, "out"))


def blob(content):
    return hashlib.sha256(content).hexdigest()


def in_cache(cache, repo, files, commit=COMMIT):
    """Write a snapshot into a cache, as the package `huggingface_hub` does."""
    storage = cache / f"models--{repo.replace('/', '--')}"
    for name, content in files.items():
        path = storage / "snapshots" / commit / name
        for parent in (path.parent, storage / "blobs", storage / "refs"):
            parent.mkdir(parents=True, exist_ok=True)
        (storage / "blobs" / blob(content)).write_bytes(content)
        up = "../" * (2 + name.count("/"))
        path.symlink_to(f"{up}blobs/{blob(content)}")
    (storage / "refs" / "main").write_text(commit)
    return storage / "snapshots" / commit


class StandInHub:
    """Repositories by name: files by name. `asked` are the methods and paths of all requests,
    `tokens` those of requests for a repository.

    `gated` files answer 403; `cut_at` bytes of a file are sent, then `before_cut` is called and the
    connection ends; `sizes` are other sizes than the files', as the listing has them.
    """

    def __init__(self):
        self.repos, self.asked, self.tokens = {}, [], []
        self.gated, self.card, self.sizes, self.cut_at = False, {"license": "mit"}, {}, None
        self.before_cut = lambda: None

    def answer(self, http):
        self.asked.append((http.command, http.path))
        path = unquote(urlsplit(http.path).path).strip("/")
        api = path.startswith("api/models/")
        repo = "/".join(path.removeprefix("api/models/").split("/")[:2])
        if repo not in self.repos:
            return self.refuse(http, 404, "RepoNotFound")  # and what the library asks for itself
        self.tokens.append(http.headers.get("authorization"))
        files, revision = self.repos[repo], path.split("/")[-1 if api else 3]
        if revision not in ("main", COMMIT):
            return self.refuse(http, 404, "RevisionNotFound")
        if api:
            listed = [
                {"rfilename": n, "size": self.sizes.get(n, len(c)), "blobId": blob(c)}
                for n, c in files.items()
            ]
            info = {"id": repo, "sha": COMMIT, "siblings": listed, "cardData": self.card}
            return self.send(http, json.dumps(info).encode(), {})
        if self.gated:
            return self.refuse(http, 403, "GatedRepo")
        content = files[path.split("/", 4)[4]]
        self.send(http, content, {"ETag": f'"{blob(content)}"', "X-Repo-Commit": COMMIT})

    def refuse(self, http, status, code):
        http.send_response(status)
        http.send_header("X-Error-Code", code)
        http.send_header("Content-Length", "0")
        http.end_headers()

    def send(self, http, content, headers):
        http.send_response(200)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            http.send_header(name, str(value))
        http.end_headers()
        if http.command == "HEAD":
            return
        if self.cut_at is not None and len(content) > self.cut_at and "ETag" in headers:
            http.wfile.write(content[: self.cut_at])
            self.before_cut()
            content = content[self.cut_at :] if self.before_cut.__name__ != "<lambda>" else b""
        http.wfile.write(content)


@contextmanager
def serving(hub):
    """Serve a hub on loopback; the value is its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            hub.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    shutil.rmtree(CACHE, ignore_errors=True)
    in_cache(CACHE, FIXTURE, small_model())
