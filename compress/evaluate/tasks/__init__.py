"""Scored tasks: five kinds, one file each, and the bundled suite in `data/`.

A kind is a row of `suite.KINDS`: a check of its items, an instruction for the model, and a pure function from answers
to a score.
"""
