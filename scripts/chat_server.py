"""A real HTTP server on loopback that speaks chat completions, well or badly."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatServer(ThreadingHTTPServer):
    """Gives its replies in order, the last one again and again, and keeps what it was asked.

    Args:
        replies: functions that take the handler and write a response.
    """

    daemon_threads = True

    def __init__(self, *replies):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.requests, self.released = list(replies), [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(
            {
                "path": self.path,
                "headers": {name.lower(): value for name, value in self.headers.items()},
                "body": body,
                "at": time.time(),
            }
        )
        self.server.replies[min(len(self.server.requests), len(self.server.replies)) - 1](self)
        self.close_connection = True

    def log_message(self, *_):
        pass

    def send(self, status: int, body: bytes, claimed: int | None = None, **headers: str):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if claimed is None else claimed))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


def completion(text) -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    ).encode()


def says(text):
    """A chat completion with this text; anything but a text is written as JSON."""
    text = text if isinstance(text, str) else json.dumps(text)
    return lambda handler: handler.send(200, completion(text))


def fails(status: int, message: str = "no", **headers: str):
    headers = headers or {"retry_after_ms": "10"}
    return lambda handler: handler.send(status, json.dumps({"error": {"message": message}}).encode(), **headers)


def hangs(handler):
    handler.server.released.wait(30)


def drips(handler):
    """Sends a byte now and then, so that no single read takes long."""
    handler.send(200, b"", claimed=10_000)
    while not handler.server.released.wait(0.05):
        try:
            handler.wfile.write(b" ")
        except OSError:
            return


def breaks_off(handler):
    body = completion("{}")
    handler.send(200, body[:40], claimed=len(body))


def huge(handler):
    handler.send(200, completion("x" * 10_000_000))
