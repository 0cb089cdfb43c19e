"""The workflows that this repository ships, as code: `python -m scripts.workflows OBJECT_INFO` writes workflows/*."""
