"""Calibration: text, and what it does inside a model.

`corpus` finds documents, `chat` and `windows` make them token ids, `start` measures how a window must begin,
`capture` and `statistics` watch what the windows do. Nothing here imports `compress`, and importing this
package alone imports nothing heavy.
"""
