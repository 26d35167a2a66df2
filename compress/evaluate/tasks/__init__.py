"""Scored tasks of five kinds. Each kind has a module, and a file of items in `data/`, the bundled suite.

A kind is a row of `suite.KINDS`. It has a check for items, an instruction for the model, and a pure function that
scores answers.
"""
