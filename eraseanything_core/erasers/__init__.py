"""Erasers to compare with, one file each.

A method's settings are a constant that goes over a configuration: `dataclasses.replace(config, **ESD_SETTINGS)`. One
with losses of its own is a `trained.ErasureMethod`, and `trained.train_slices` trains it. The others, such as ESD, are
trained by `training.trainer`, EraseAnything's own loop.
"""
