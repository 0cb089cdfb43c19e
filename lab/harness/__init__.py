"""The plug-in for the evaluation harness eval-unlearn."""
