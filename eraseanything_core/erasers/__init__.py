"""Every eraser, one file each.

Those that are trained step by step are a `training.method.Method`, which says what a pair does; `registry` has the
table that a user chooses from. The closed forms have no steps and are functions.
"""
