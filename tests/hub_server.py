"""The Hugging Face hub's API for data sets, as far as its clients ask for it here: files of a folder at pinned commits.

Clients are sent to it with HF_ENDPOINT. It answers what huggingface_hub, fsspec's hf:// and datasets ask: a revision's
commit, the tree (in pages), information on paths, and files, with ranges; large ones behind a redirection, as there.

    with Hub() as hub:
        commit = hub.add("allenai/c4", {"en/c4-train.00000-of-01024.json.gz": content})
        subprocess.run(..., env=os.environ | {"HF_ENDPOINT": hub.address})
        hub.asked      # [(method, path, range), ...]
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".gz", ".zst", ".parquet")  # kept by git-lfs, as .gitattributes of data sets say
PAGE = 3  # entries of a tree in one answer; the hub's is 1,000


class Hub:
    """{repository: {revision: {path: content}}}, served on this machine while the block lasts.

    cut: {path: bytes}: the connection breaks after so many bytes of that file, once for each of `cuts`.
    missing: paths that the tree lists and that are not there. changed: {path: content} sent in place of what is listed.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.cut: dict[str, int] = {}
        self.cuts = 1
        self.missing: set[str] = set()
        self.changed: dict[str, bytes] = {}

    def add(self, repository: str, files: dict[str, bytes], *names: str) -> str:
        """A commit of these files; also reached by `names`. Returns its 40 digits."""
        digest = hashlib.sha1(json.dumps([[name, git(files[name])] for name in sorted(files)]).encode()).hexdigest()
        for name in (digest, *names):
            self.files.setdefault(repository, {})[name] = files
        return digest

    def alias(self, repository: str, name: str, commit: str) -> None:
        """A commit by another name: a branch, or the digits that a specification pins."""
        self.files[repository][name] = self.files[repository][commit]

    def __enter__(self) -> "Hub":
        hub = self

        class Bound(Handler):
            pass

        Bound.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def git(content: bytes) -> str:
    """The id of a file in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git(content)}
    if path.endswith(LARGE):
        found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return found


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.form = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.hub.asked.append((self.command, unquote(self.path), self.headers.get("Range") or ""))
        if found := re.fullmatch(r"/blobs/([^/]+/[^/]+)/([^/]+)/(.+)", url.path):  # where the hub's redirections lead
            repository, revision, path = map(unquote, found.groups())
            return self.file(path, self.hub.files[repository][revision][path])
        about = r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?"
        found = re.fullmatch(about, url.path) or re.fullmatch(
            r"/datasets/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)", url.path
        )
        if not found:
            return self.refuse(404, "", "no such address")
        repository, what, revision, path = (unquote(part or "") for part in found.groups())
        if repository not in self.hub.files:
            return self.refuse(401, "RepoNotFound", "Repository not found")
        revision = revision or "main"
        if revision not in self.hub.files[repository]:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = self.hub.files[repository][revision]
        if what in ("", "revision"):
            return self.send(
                {
                    "_id": "0",
                    "id": repository,
                    "sha": self.commit(repository, revision),
                    "private": False,
                    "gated": False,
                    "disabled": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "siblings": [{"rfilename": name} for name in sorted(files)],
                }
            )
        if what == "tree":
            return self.tree(files, path, parse_qs(url.query), f"{self.hub.address}{url.path}")
        if what == "paths-info":
            return self.send(self.information(files))
        if path not in files or path in self.hub.missing:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        about = entry(path, files[path])
        headers = {"X-Repo-Commit": self.commit(repository, revision)}
        if "lfs" in about:
            elsewhere = self.hub.address.replace("127.0.0.1", "localhost")  # as the hub: another host
            headers |= {
                "Location": f"{elsewhere}/blobs/{repository}/{revision.replace('/', '%2F')}/{path}",
                "X-Linked-Size": str(about["size"]),
                "X-Linked-Etag": f'"{about["lfs"]["oid"]}"',
            }
            return self.send(b"", 302, headers)
        self.file(path, files[path], headers)

    def commit(self, repository: str, revision: str) -> str:
        """The 40 digits that a revision stands for."""
        if re.fullmatch(r"[0-9a-f]{40}", revision):
            return revision
        revisions = self.hub.files[repository]
        return next(name for name, files in revisions.items() if len(name) == 40 and files is revisions[revision])

    def tree(self, files: dict[str, bytes], path: str, query: dict[str, list[str]], address: str) -> None:
        prefix = f"{path}/" if path else ""
        below = {name for name in files if name.startswith(prefix)}
        if not below:
            return self.refuse(404, "EntryNotFound", f"{path} does not exist")
        folders = {name[: at.start()] for name in below for at in re.finditer("/", name) if at.start() >= len(prefix)}
        listed = [entry(name, files[name]) for name in below] + [
            {"type": "directory", "path": name, "oid": git(name.encode()), "size": 0} for name in folders
        ]
        if query.get("recursive", ["False"])[0].lower() != "true":
            listed = [each for each in listed if "/" not in each["path"][len(prefix) :]]
        listed.sort(key=lambda each: each["path"])
        start = int(query.get("cursor", ["0"])[0])
        more = {}
        if len(listed) > start + PAGE:
            rest = "&".join(f"{key}={value[0]}" for key, value in query.items() if key != "cursor")
            more["Link"] = f'<{address}?{rest}&cursor={start + PAGE}>; rel="next"'
        self.send(listed[start : start + PAGE], headers=more)

    def information(self, files: dict[str, bytes]) -> list[dict[str, Any]]:
        found = []
        for path in parse_qs(self.form).get("paths", []):
            if path in files:
                found.append(entry(path, files[path]))
            elif any(name.startswith(f"{path}/") for name in files):
                found.append({"type": "directory", "path": path, "oid": git(path.encode()), "size": 0})
        return found

    def file(self, path: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        about, hub = entry(path, content), self.hub
        content = hub.changed.get(path, content)
        tag = about["lfs"]["oid"] if "lfs" in about else about["oid"]
        headers = {"ETag": f'"{tag}"', "Accept-Ranges": "bytes"} | (headers or {})
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start, end = 0, len(content)
        if asked:
            start, end = int(asked[1]), min(int(asked[2] or end) + 1, end)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        if self.command != "HEAD" and hub.cuts and start <= hub.cut.get(path, -1) < end:
            hub.cuts -= 1
            self.send(content[start:end], 206 if asked else 200, headers, hub.cut[path] - start)
            self.wfile.flush()
            self.close_connection = True
            return
        self.send(content[start:end], 206 if asked else 200, headers)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.send({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def send(
        self, body: Any, status: int = 200, headers: dict[str, str] | None = None, most: int | None = None
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/octet-stream" if isinstance(body, bytes) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:most])
