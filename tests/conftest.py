import os

# Several processes share the cores: set before torch is imported, for the processes that tests start as well.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/comfy/nodes.golden.json anew from the server",
    )
