"""Scored tasks: five kinds, one file each, and the bundled suite in `data/`.

A kind is a row of `suite.KINDS`: what its items must hold, how a model is asked, and a pure function from its answers
to a score. Nothing here knows a model.
"""
