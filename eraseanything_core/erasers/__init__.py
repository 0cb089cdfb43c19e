"""Erasers to compare with, one file each; EraseAnything itself is `training.trainer`."""
