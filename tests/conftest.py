def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write tests/comfy/nodes.golden.json anew from the server",
    )
