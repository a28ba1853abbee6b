"""A Hugging Face hub of one process: the endpoints that a push and a download use, on 127.0.0.1.

What it stores: `files` {repository: {path: content}}, one commit after another. As the hub does, it
takes files of 10 MB and more, and all safetensors, by git LFS.
"""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"


class HubStandIn(ThreadingHTTPServer):
    """`address` is what HF_ENDPOINT is set to."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.blobs, self.commits, self.visibility = {}, {}, {}, {}
        self.address = f"http://127.0.0.1:{self.server_port}"

    def sha(self, repo):
        return hashlib.sha1(f"{repo}{self.commits[repo]}".encode()).hexdigest()


@contextlib.contextmanager
def hub_stand_in():
    """A running stand-in."""
    server = HubStandIn()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def environment_of(server, home):
    """The environment of a process that knows no other hub; `home`: its empty cache."""
    return {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code, message):
        self.answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def do_GET(self):
        server, parts = self.server, unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo = "/".join(parts[2:4])
            if repo not in server.files:
                return self.refuse(404, "RepoNotFound", "Repository not found")
            if parts[4:5] == ["tree"]:
                rows = [
                    {"type": "file", "path": path, "size": len(content), "oid": git_id(content)}
                    for path, content in sorted(server.files[repo].items())
                ]
                return self.answer(rows)
            names = [{"rfilename": path} for path in sorted(server.files[repo])]
            return self.answer(
                {"id": repo, "modelId": repo, "sha": server.sha(repo), "siblings": names}
            )
        if len(parts) > 4 and parts[2] == "resolve":
            repo, path = "/".join(parts[:2]), "/".join(parts[4:])
            content = server.files.get(repo, {}).get(path)
            if repo not in server.files:
                return self.refuse(404, "RepoNotFound", "Repository not found")
            if content is None:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            about = {"ETag": f'"{git_id(content)}"', "X_Repo_Commit": server.sha(repo)}
            return self.answer(content, **about)
        return self.refuse(404, "Unknown", f"no such endpoint: {self.path}")

    do_HEAD = do_GET

    def do_PUT(self):
        content = self.body()
        self.server.blobs[self.path.rpartition("/")[2]] = content
        self.answer(b"")

    def do_POST(self):
        server, content = self.server, self.body()
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "", "Invalid username or password.")
        if parts == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        if parts == ["api", "repos", "create"]:
            asked = json.loads(content)
            repo = f"{asked.get('organization') or 'user'}/{asked['name']}"
            server.files.setdefault(repo, {})
            server.commits.setdefault(repo, 0)
            server.visibility.setdefault(repo, asked.get("visibility"))
            return self.answer({"url": f"{server.address}/{repo}", "name": repo, "id": repo})
        if parts[-2:] == ["objects", "batch"]:
            wanted = json.loads(content)["objects"]
            places = [{"oid": one["oid"], "size": one["size"]} for one in wanted]
            for one in places:
                href = f"{server.address}/lfs/{one['oid']}"
                one["actions"] = {"upload": {"href": href, "header": {}}}
            return self.answer({"transfer": "basic", "objects": places})
        repo = "/".join(parts[2:4])
        if repo not in server.files:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        if parts[4] == "preupload":
            rows = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(content)["files"]
            ]
            return self.answer({"files": rows})
        assert parts[4] == "commit", self.path
        return self.commit(repo, content)

    def commit(self, repo, content):
        server = self.server
        for line in content.splitlines():
            asked = json.loads(line)
            value = asked["value"]
            if asked["key"] == "file":
                server.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif asked["key"] == "lfsFile":
                server.files[repo][value["path"]] = blob = server.blobs[value["oid"]]
                assert hashlib.sha256(blob).hexdigest() == value["oid"]
            elif asked["key"] == "deletedFile":
                del server.files[repo][value["path"]]
        server.commits[repo] += 1
        oid = server.sha(repo)
        self.answer({"commitUrl": f"{server.address}/{repo}/commit/{oid}", "commitOid": oid})


def git_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
