"""Checks of the pack on a card: `python scripts/dev.py gpu`. Each runs on a CPU as well where that makes sense."""
