"""A small hub on this machine that speaks the real one's protocol: model info, trees, files with ETag and Range."""

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Repository:
    """Folders by commit, and the commit that `main` is."""

    commits: dict[str, Path]
    main: str
    gated: bool = False


@dataclass
class SmallHub:
    """What is served, and what was asked for. cut: of files by name, after how many bytes the first answer breaks off.

    answers: (method, path, status, first byte) of each request.
    """

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    answers: list[tuple[str, str, int, int]] = field(default_factory=list)

    def environment(self, home: Path) -> dict[str, str]:
        """Of a command that finds this hub, with the cache in `home`, and whatever the shell says of the real one's
        way and cache left out.
        """
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().endswith("_PROXY") and not name.startswith(("HF_", "HUGGING"))
        }
        return {**kept, "HF_ENDPOINT": self.address, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}

    def fetched(self, name: str) -> list[tuple[str, int, int]]:
        """(revision, status, first byte) of each download of the file `name`."""
        return [
            (path.split("/resolve/")[1].split("/")[0], status, first)
            for method, path, status, first in self.answers
            if method == "GET" and path.endswith(f"/{name}")
        ]


def put_in_cache(cache: Path, model_id: str, files: dict[str, str], commit: str = "c0ffee") -> None:
    """Puts `files` where the hub's `cache` keeps those of `commit`, which becomes `main`."""
    folder = cache / f"models--{model_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    for name, text in files.items():
        path = folder / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@contextlib.contextmanager
def small_hub() -> Iterator[SmallHub]:
    hub = SmallHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *given: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def say(self, status: int, body: bytes = b"", first: int = 0, **headers: str) -> None:
            hub.answers.append((self.command, self.path.split("?")[0], status, first))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                name = self.path.rsplit("/", 1)[-1]
                if "/resolve/" in self.path and name in hub.cut:
                    self.wfile.write(body[: hub.cut.pop(name)])
                    self.close_connection = True
                    return
                self.wfile.write(body)

        def answer(self) -> None:
            path = self.path.split("?")[0]
            asked = re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path)
            asked_file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
            found = asked or asked_file
            if found is None:
                return self.say(200)
            repository = hub.repositories.get(found[1])
            if repository is None:
                return self.say(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            revision = (asked[3] if asked else asked_file[2]) or "main"  # type: ignore[index]
            commit = repository.main if revision == "main" else revision
            if commit not in repository.commits:
                return self.say(404, X_Error_Code="RevisionNotFound")
            folder = repository.commits[commit]
            names = sorted(file.name for file in folder.iterdir())
            if asked and asked[2] == "tree":
                if asked[4]:
                    return self.say(404, X_Error_Code="EntryNotFound")
                files = [{"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": n} for n in names]
                return self.say(200, json.dumps(files).encode(), Content_Type="application/json")
            if asked:
                info = {"id": found[1], "sha": commit, "siblings": [{"rfilename": name} for name in names]}
                return self.say(200, json.dumps(info).encode(), Content_Type="application/json")
            if repository.gated:
                return self.say(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
            self.send_file(folder / asked_file[3], commit)  # type: ignore[index]

        def send_file(self, file: Path, commit: str) -> None:
            if not file.is_file():
                return self.say(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            body = file.read_bytes()
            headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if span is None:
                return self.say(200, body, **headers)
            first, last = int(span[1]), min(int(span[2] or len(body) - 1), len(body) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(body)}"
            self.say(206, body[first : last + 1], first, **headers)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
