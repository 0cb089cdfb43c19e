"""The fleet's command, and what it is measured by."""
