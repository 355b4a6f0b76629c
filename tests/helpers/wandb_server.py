"""As much of W&B's server as a run needs, and the ways in which it fails."""

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROJECT = {"id": "p", "name": "genstab", "entity": {"id": "e", "name": "me"}}


def resumable(name, rows):
    """Return what the server knows of a run that it has some rows of."""
    counts = {"logLineCount": 0, "historyLineCount": len(rows), "eventsLineCount": 0}
    tails = {"historyTail": json.dumps([json.dumps(rows[max(rows)])]), "eventsTail": "[]", "summaryMetrics": "{}"}
    more = {"displayName": "d", "config": "{}", "tags": [], "wandbConfig": '{"t": 1}'}
    return {"id": "r", "name": name, **counts, **tails, **more}


class Server(ThreadingHTTPServer):
    """Takes runs while `mode` is "well"; answers with a number of HTTP, or never while it is "silent".

    `rows` are the rows of history that came, by the id of the run.
    """

    daemon_threads = True

    def __init__(self, mode="well", then=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode, self.then, self.rows = mode, then, {}
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def close(self):
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that goes away is no error."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server
        if server.mode == "silent":
            server.closing.wait()
        elif isinstance(server.mode, int):
            self.answer({"errors": [{"message": "no"}]}, server.mode)
        elif self.path == "/graphql":
            asked = json.loads(body)
            self.answer({"data": self.found(asked["query"], asked.get("variables") or {})})
        else:
            if self.path.endswith("/file_stream"):
                self.stream(json.loads(body))
                server.mode = server.then or server.mode
            self.answer({"exitcode": None, "limits": {}})

    do_GET = do_PUT = do_POST  # noqa: N815

    def stream(self, content):
        for name, part in (content.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                rows = self.server.rows.setdefault(self.path.split("/")[-2], {})
                rows.update(enumerate(map(json.loads, part["content"]), part["offset"]))

    def found(self, query, variables):
        if "mutation UpsertBucket" in query:
            names = {"id": "r", "name": variables.get("name"), "displayName": "d", "sweepName": None, "config": "{}"}
            run = {**names, "project": PROJECT, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": run, "inserted": True}}
        if "query RunResumeStatus" in query:
            rows = self.server.rows.get(variables["name"])
            return {"model": {**PROJECT, "bucket": rows and resumable(variables["name"], rows)}}
        if "mutation CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/up/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass
