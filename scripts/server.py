"""A real ComfyUI server as a context manager: boot, queue a graph, follow it, stop it.

with ComfyServer(comfyui, base, log) as server:
    entry = server.wait(server.queue(graph), on_event=print)
"""

import asyncio
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from scripts.steps import tail

PROGRESS_TEXT = (3).to_bytes(4, "big")  # how such a message of the websocket begins
BOOT_SECONDS = 300
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
LAST_EVENTS = ("execution_success", "execution_error", "execution_interrupted")

OnEvent = Callable[[str, dict], None]


class ServerError(Exception):
    """The server did not start, died, or refused a request."""


class GraphError(ServerError):
    """A graph was refused or failed; the message names the node and holds what it said."""


class GraphInterrupted(GraphError):
    """A graph was interrupted before its end."""


class ComfyServer:
    """One ComfyUI process on a free port of this machine.

    Args:
        comfyui: folder with ComfyUI's main.py.
        base: base directory with models, custom_nodes, input, output and user.
        log: file that takes all the server prints.
        python: interpreter to run it with.
        arguments: further arguments of main.py.
        port: of this machine; 0 takes a free one.
        cpu: whether ComfyUI leaves a GPU alone.
    """

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        log: Path,
        python: str | Path = sys.executable,
        arguments: tuple[str, ...] = (),
        port: int = 0,
        cpu: bool = True,
    ) -> None:
        self.comfyui = Path(comfyui)
        self.base = Path(base)
        self.log = Path(log)
        self.requested_port = port
        self.command = [
            str(python),
            str(self.comfyui / "main.py"),
            *(["--cpu"] if cpu else []),
            "--base-directory",
            str(self.base),
            # In memory: two servers must not share a database file.
            "--database-url",
            "sqlite:///:memory:",
            "--disable-auto-launch",
            "--disable-api-nodes",
            *arguments,
        ]
        self.client = uuid.uuid4().hex
        self.events: queue.Queue[tuple[str, dict]] = queue.Queue()
        self.process: subprocess.Popen | None = None
        self.listener: threading.Thread | None = None

    def __enter__(self) -> "ComfyServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Boots the server and returns once it answers and its events are listened to."""
        self.port = self.requested_port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*self.command, "--port", str(self.port)],
                cwd=self.comfyui,
                env={**os.environ, **OFFLINE},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_up()
            self._listen()
        except BaseException:
            self.stop()
            raise

    def wait_until_it_ends(self) -> None:
        """Waits for the process, which ends by itself only when something goes wrong."""
        code = self.process.wait()
        raise ServerError(f"ComfyUI ended with code {code}:\n{tail(self.log)}")

    def stop(self) -> None:
        """Ends the process, by force if it does not go by itself."""
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    # --- requests

    def get(self, path: str) -> bytes:
        """The body that the server answers to a GET."""
        return self._request(urllib.request.Request(self.url + path))

    def get_json(self, path: str) -> Any:
        """What the server answers to a GET, as JSON."""
        return json.loads(self.get(path))

    def post(self, path: str, body: dict) -> bytes:
        """The body that the server answers to a POST of JSON."""
        headers = {"Content-Type": "application/json"}
        return self._request(urllib.request.Request(self.url + path, json.dumps(body).encode(), headers))

    def object_info(self) -> dict:
        """Every node that the server has, with its inputs and outputs."""
        return self.get_json("/object_info")

    def view(self, image: dict) -> bytes:
        """The file of one image that a history entry names (`filename`, `subfolder`, `type`)."""
        return self.get("/view?" + urllib.parse.urlencode(image))

    def queue(self, graph: dict) -> str:
        """Queues a graph in API format and returns its prompt id.

        Raises:
            GraphError: if the server refuses it; the message has what it says about each node.
        """
        try:
            answer = self.post("/prompt", {"prompt": graph, "client_id": self.client})
        except urllib.error.HTTPError as error:
            raise GraphError(refusal(json.loads(error.read()), graph)) from None
        answer = json.loads(answer)
        if answer["node_errors"]:  # The server would run the outputs that are right and leave out the others.
            self.post("/queue", {"delete": [answer["prompt_id"]]})
            self.post("/interrupt", {"prompt_id": answer["prompt_id"]})
            raise GraphError(refusal(answer, graph))
        return answer["prompt_id"]

    def wait(self, prompt_id: str, on_event: OnEvent | None = None, timeout: float | None = None) -> dict:
        """Follows a queued graph to its end and returns its entry of /history.

        Args:
            prompt_id: what `queue` returned.
            on_event: called with the name and the data of every event of this graph, such as
                `"progress", {"value": 3, "max": 20, "node": "7"}`.
            timeout: seconds after which a ServerError is raised; the graph goes on.

        Raises:
            GraphError: if a node failed, with its message.
            GraphInterrupted: if it was interrupted.
        """
        end = time.monotonic() + timeout if timeout else float("inf")
        while True:
            kind, data = self._next_event(end)
            if kind != "progress_text" and data.get("prompt_id") != prompt_id:
                continue
            if on_event:
                on_event(kind, data)
            if kind in LAST_EVENTS:
                entry = self.history(prompt_id)
                raise_if_failed(kind, data)
                return entry

    def run(self, graph: dict, on_event: OnEvent | None = None, timeout: float | None = None) -> dict:
        """Queues a graph and waits for it."""
        return self.wait(self.queue(graph), on_event, timeout)

    def history(self, prompt_id: str) -> dict:
        """The entry of a graph that has ended: written just after its last event is sent."""
        for _ in range(100):
            entry = self.get_json(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                return entry
            time.sleep(0.05)
        raise ServerError(f"no history of {prompt_id}")

    def interrupt(self) -> None:
        """Asks the node that runs now to stop."""
        self.post("/interrupt", {})

    # --- inside

    def _request(self, request: urllib.request.Request) -> bytes:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()

    def _wait_until_up(self) -> None:
        end = time.monotonic() + BOOT_SECONDS
        while True:
            self._check_alive()
            try:
                self.get("/object_info")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if time.monotonic() > end:
                    raise ServerError(f"no answer in {BOOT_SECONDS} s:\n{tail(self.log)}") from None
                time.sleep(0.2)

    def _check_alive(self) -> None:
        if self.process.poll() is not None:
            raise ServerError(f"ComfyUI ended with code {self.process.returncode}:\n{tail(self.log)}")
        if self.listener and not self.listener.is_alive():
            raise ServerError(f"the websocket of {self.url} was closed:\n{tail(self.log)}")

    def _listen(self) -> None:
        """Reads the websocket in a thread of its own, so that no event is missed between two calls."""
        connected = threading.Event()
        read = self._read_events(connected)
        self.listener = threading.Thread(target=asyncio.run, args=(read,), daemon=True)
        self.listener.start()
        while not connected.wait(timeout=1):
            self._check_alive()

    async def _read_events(self, connected: threading.Event) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={self.client}", max_msg_size=0) as socket_,
        ):
            connected.set()
            async for message in socket_:
                if message.type is aiohttp.WSMsgType.TEXT:
                    event = json.loads(message.data)
                    self.events.put((event["type"], event["data"]))
                elif message.type is aiohttp.WSMsgType.BINARY and message.data[:4] == PROGRESS_TEXT:
                    end = 8 + int.from_bytes(message.data[4:8], "big")
                    text = {"node": message.data[8:end].decode(), "text": message.data[end:].decode()}
                    self.events.put(("progress_text", text))

    def _next_event(self, end: float) -> tuple[str, dict]:
        while time.monotonic() < end:
            try:
                return self.events.get(timeout=1)
            except queue.Empty:
                self._check_alive()
        raise ServerError("the graph took longer than its time")


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def raise_if_failed(kind: str, data: dict) -> None:
    """Raises what the last event of a graph says, unless that is success."""
    node = f"{data.get('node_type')} (node {data.get('node_id')})"
    if kind == "execution_error":
        raise GraphError(f"{node}: {data['exception_message'].strip()}")
    if kind == "execution_interrupted":
        raise GraphInterrupted(f"interrupted in {node}")


def refusal(answer: dict, graph: dict) -> str:
    """What the server says about a graph that it refuses, node by node."""
    lines = []
    for node_id, node in answer.get("node_errors", {}).items():
        name = f"{graph[node_id]['class_type']} (node {node_id})"
        lines += [f"{name}: {error['message']}: {error['details']}" for error in node["errors"]]
    return "\n".join(lines) or f"{answer['error']['message']}: {answer['error']['details']}"
