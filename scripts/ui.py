"""Starts ComfyUI with the pack and TinyFlux for a browser: `python scripts/dev.py ui`. Ctrl-C ends it.

Models, pictures and saved workflows are in .cache/base. TinyFlux's files are there already.
"""

import argparse
import os
from pathlib import Path

from scripts.server import ComfyServer

ROOT = Path(__file__).resolve().parent.parent
PORT = 8188  # ComfyUI's usual one


def main() -> None:
    """Starts the server, prints its address and waits until it ends."""
    parser = argparse.ArgumentParser(prog="dev.py ui", description=__doc__)
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--gpu", action="store_true", help="use the GPU; TinyFlux needs none")
    args = parser.parse_args()
    log = ROOT / ".cache" / "ui.log"
    base = Path(os.environ["COMFYUI_BASE"])
    print("starting ComfyUI ...", flush=True)
    with ComfyServer(Path(os.environ["COMFYUI_PATH"]), base, log, port=args.port, cpu=not args.gpu) as server:
        print(f"ComfyUI with EraseAnything: {server.url}", flush=True)
        print("Open Workflow > Browse Templates > eraseanything > tinyflux_erase and press Run.")
        print(f"Ctrl-C ends it. What the server prints is in {log}", flush=True)
        try:
            server.wait_until_it_ends()
        except KeyboardInterrupt:
            print("\nended")


if __name__ == "__main__":
    main()
