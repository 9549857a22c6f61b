"""Answers every request with the name of its pod. Knows nothing of the mesh."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two writes: without this the second waits for the first's acknowledgement.
    disable_nagle_algorithm = True

    def do_GET(self):
        caller = self.headers.get("remora-client-id", "someone outside the mesh")
        body = f"hello from {os.environ['POD']} to {caller}\n".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("", 8000), Hello).serve_forever()
