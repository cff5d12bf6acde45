"""A server that answers what huggingface_hub asks of the Hugging Face hub, with its repositories in memory."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = re.compile(r"/api/models/([^/]+/[^/]+)/(revision|tree|preupload|commit|branch)/([^/?]+)")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")


class Hub:
    """Repositories: files by name at every commit, and branches.

    Attributes:
        commits: by repository and commit the files.
        branches: by repository and name the commit.
        private: repositories that were made so.
        asked: requests, ``METHOD path``.
        status: what every answer has in place of 200, if it is set.
        torn: names of files of which half is sent.
    """

    def __init__(self):
        self.commits, self.branches, self.private, self.asked, self.tokens = {}, {}, set(), [], set()
        self.messages = []
        self.status, self.torn = None, set()

    def create(self, repo, private):
        self.commits.setdefault(repo, {})
        if repo not in self.branches:
            self.branches[repo] = {}
            self.commit(repo, "main", {})
            if private:
                self.private.add(repo)

    def commit(self, repo, branch, files):
        before = self.commits[repo].get(self.branches[repo].get(branch), {})
        together = before | files
        told = json.dumps(
            {name: hashlib.sha1(value).hexdigest() for name, value in together.items()} | {"n": len(self.commits[repo])}
        )
        sha = hashlib.sha1(told.encode()).hexdigest()
        self.commits[repo][sha] = together
        self.branches[repo][branch] = sha
        return sha

    def files(self, repo, revision="main"):
        return self.commits[repo][self.branches[repo].get(revision, revision)]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, content=None, status=200, body=True, **headers):
        raw = b"" if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(raw)

    def begin(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.sent = self.rfile.read(length)
        self.hub.asked.append(f"{self.command} {self.path}")
        if self.headers.get("Authorization"):
            self.hub.tokens.add(self.headers["Authorization"])
        if self.hub.status:
            code = "RepoNotFound" if self.hub.status in (401, 404) else ""
            self.answer({"error": "no"}, self.hub.status, **({"X-Error-Code": code} if code else {}))
            return False
        return True

    def missing(self, code):
        self.answer({"error": code}, 404, X_Error_Code=code)

    def do_HEAD(self):
        if self.begin():
            self.file(body=False)

    def do_GET(self):
        if not self.begin():
            return
        if FILE.match(self.path):
            self.file(body=True)
            return
        if not (asked := MODEL.match(self.path)):
            self.answer({"error": "unknown"}, 404)
            return
        repo, what, revision = asked.groups()
        if repo not in self.hub.commits:
            self.missing("RepoNotFound")
            return
        sha = self.hub.branches[repo].get(revision, revision)
        if sha not in self.hub.commits[repo]:
            self.missing("RevisionNotFound")
            return
        files = self.hub.commits[repo][sha]
        if what == "revision":
            siblings = [{"rfilename": name} for name in files]
            self.answer(
                {
                    "id": repo,
                    "modelId": repo,
                    "sha": sha,
                    "siblings": siblings,
                    "tags": [],
                    "private": False,
                    "downloads": 0,
                    "likes": 0,
                }
            )
        else:
            self.answer(
                [
                    {"type": "file", "path": n, "size": len(v), "oid": hashlib.sha1(v).hexdigest()}
                    for n, v in files.items()
                ]
            )

    def file(self, body):
        repo, revision, name = FILE.match(self.path).groups()
        if repo not in self.hub.commits:
            self.missing("RepoNotFound")
            return
        sha = self.hub.branches[repo].get(revision, revision)
        if sha not in self.hub.commits[repo]:
            self.missing("RevisionNotFound")
            return
        content = self.hub.commits[repo][sha].get(name)
        if content is None:
            self.missing("EntryNotFound")
            return
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        if body and name in self.hub.torn:
            self.send_response(200)
            for key, value in (("ETag", etag), ("X-Repo-Commit", sha), ("Content-Length", str(len(content)))):
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.answer(content, body=body, ETag=etag, X_Repo_Commit=sha)

    def do_POST(self):
        if not self.begin():
            return
        hub = self.hub
        if self.path.startswith("/api/repos/create"):
            asked = json.loads(self.sent)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            hub.create(repo, asked.get("private") or asked.get("visibility") == "private")
            self.answer({"url": f"http://{self.headers['Host']}/{repo}"})
        elif self.path.startswith("/api/validate-yaml"):
            self.answer({"errors": [], "warnings": []})
        else:
            repo, what, revision = MODEL.match(self.path).groups()
            if what == "branch":
                hub.branches[repo].setdefault(revision, hub.branches[repo]["main"])
                self.answer({})
            elif what == "preupload":
                files = json.loads(self.sent)["files"]
                self.answer(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                )
            else:
                lines = [json.loads(line) for line in self.sent.splitlines()]
                hub.messages.append(next(line["value"]["summary"] for line in lines if line["key"] == "header"))
                files = {
                    part["value"]["path"]: base64.b64decode(part["value"]["content"])
                    for part in lines
                    if part["key"] == "file"
                }
                sha = hub.commit(repo, revision, files)
                self.answer({"commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{sha}", "commitOid": sha})


@contextmanager
def hub_server():
    """Serve a hub on a free port; gives it and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
