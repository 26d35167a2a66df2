"""The sizes of the buffers that losses and forward passes use, and that estimates of memory count."""

CHUNK_LOGITS = 2**24  # values in one buffer of logits, 64 MiB
GPU_CHUNK_LOGITS = 2**27  # the same on a GPU, 512 MiB, if a quarter of its free memory holds all buffers
LOSS_BUFFERS = 4  # number of buffers with CHUNK_LOGITS values each
MICRO_TOKENS = {"cpu": 1024, "cuda": 8192}  # tokens per forward pass: fast matrix products in little memory
