"""Other quantizers behind `qcompress quantize --backend`, each in an environment of its own.

Only files cross the border: a request and token windows go in, a checkpoint and a result come out.
"""
