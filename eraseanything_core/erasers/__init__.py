"""Erasers to compare with, one file each.

A method that differs from EraseAnything only in its settings has `configure(config, **changes)`. One with a loop of its
own has `train(model, text, config)` as well: its module is a `trained.ErasureMethod`, so every `train` in this package
means the same. EraseAnything itself is `training.trainer`, whose `train` takes a plan and can be resumed.
"""
