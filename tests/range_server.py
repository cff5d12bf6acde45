"""A small HTTP server that serves parts of files, as a process: ``range_server.py FOLDER [OPTION=VALUE ...]``.

Prints its port. Options: ``latency`` (seconds before each answer), ``status`` (answer every GET of a part with it),
``short=1`` (send half of each part, under the right headers), ``put=1`` (take PUT and DELETE). GET ``/most`` says how
many requests were under way at once, ``/parts`` of which files parts were asked for.
"""

import json
import os
import re
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

OPTIONS = dict(option.split("=") for option in sys.argv[2:])
guard, under_way, parts = threading.Lock(), {"now": 0, "most": 0}, []


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # headers and content in one packet

    def do_GET(self):
        if self.path == "/most":
            return self.answer(200, str(under_way["most"]).encode())
        if self.path == "/parts":
            return self.answer(200, json.dumps(parts).encode())
        with guard:
            under_way["now"] += 1
            under_way["most"] = max(under_way.values())
        time.sleep(float(OPTIONS.get("latency", 0)))
        with guard:
            under_way["now"] -= 1
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.answer(404)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked:
            return self.answer(200, path.read_bytes())
        if "status" in OPTIONS:
            return self.answer(int(OPTIONS["status"]))
        parts.append(self.path)
        start, size = int(asked[1]), path.stat().st_size
        end = min(int(asked[2]) + 1, size)
        with open(path, "rb") as file:
            file.seek(start)
            part = file.read(end - start)
        self.answer(206, part, **{"Content-Range": f"bytes {start}-{end - 1}/{size}"})

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if "put" not in OPTIONS:
            return self.answer(405)
        path = Path(self.translate_path(self.path))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(content)
        os.replace(partial, path)
        self.answer(201)

    def do_DELETE(self):
        path = Path(self.translate_path(self.path))
        there = path.is_file()
        path.unlink(missing_ok=True)
        self.answer(204 if there else 404)

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = "short" in OPTIONS
        self.wfile.write(content[: len(content) // 2] if "short" in OPTIONS and status == 206 else content)

    def log_message(self, *_):
        pass


ThreadingHTTPServer.request_queue_size = 128  # of 5 many threads that connect at once overflow it, and wait
server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Handler(*a, directory=sys.argv[1]))
sys.stdout.write(f"{server.server_port}\n")
sys.stdout.flush()
server.serve_forever()
