"""A real HTTP server on loopback that speaks chat completions, well or badly."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Handler"], None]


class ChatServer(ThreadingHTTPServer):
    """Gives its replies in order, and the last one again and again. `requests` holds what it received.

    Args:
        replies: functions that take the handler and write a response.
    """

    daemon_threads = True

    def __init__(self, *replies: Reply) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies = list(replies)
        self.requests: list[dict[str, Any]] = []
        self.released = threading.Event()  # ends the replies that would wait for ever
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Records a request and lets the server's next reply answer it."""

    server: "ChatServer"
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Called by the standard library for every POST."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = {
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": body,
            "at": time.time(),
        }
        self.server.requests.append(request)
        number = min(len(self.server.requests), len(self.server.replies))
        reply = self.server.replies[number - 1]
        reply(self)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing: the tests read `requests`."""

    def send(self, status: int, body: bytes, claimed: int | None = None, **headers: str) -> None:
        """Writes a response.

        Args:
            claimed: the length that the header names; by default the body's.
            headers: more of them, with underscores for hyphens.
        """
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if claimed is None else claimed))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


def completion(text: Any) -> bytes:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return json.dumps(body).encode()


def says(text: Any) -> Reply:
    """A chat completion with this text; anything but a text is written as JSON."""
    content = text if isinstance(text, str) else json.dumps(text)
    return lambda handler: handler.send(200, completion(content))


def fails(status: int, message: str = "no", **headers: str) -> Reply:
    """An error; by default its client may retry at once."""
    headers = headers or {"retry_after_ms": "10"}
    return lambda handler: handler.send(status, json.dumps({"error": {"message": message}}).encode(), **headers)


def answers(body: Any, status: int = 200, **headers: str) -> Reply:
    """A response with this body; anything but bytes is written as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda handler: handler.send(status, content, **headers)


def hangs(handler: Handler) -> None:
    """Sends nothing for half a minute."""
    handler.server.released.wait(30)


def drips(handler: Handler) -> None:
    """Sends a byte now and then, so that no single read takes long."""
    handler.send(200, b"", claimed=10_000)
    while not handler.server.released.wait(0.05):
        try:
            handler.wfile.write(b" ")
        except OSError:
            return


def breaks_off(handler: Handler) -> None:
    """Closes the connection in the middle of the body."""
    body = completion("{}")
    handler.send(200, body[:40], claimed=len(body))


def huge(handler: Handler) -> None:
    """Ten megabytes of text."""
    handler.send(200, completion("x" * 10_000_000))
