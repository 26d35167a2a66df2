"""Calibration: read text, cut it into windows, and measure a model's activations on it.

`corpus` reads documents, `chat` and `windows` turn them into token ids, `start` chooses the first token of a window,
`capture` and `statistics` measure inputs of modules. Nothing here imports `compress`, and importing this
package alone imports nothing heavy.
"""
