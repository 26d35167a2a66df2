"""The distillation loss α · T² · D(p_teacher, p_student) + (1 − α) · CE, computed without whole logits in memory.

`targets` holds the teacher's distributions, dense or sparse. `divergence` is the table of D. `softmax` computes softmax
and cross-entropy. `chunked` computes the loss and its gradient in the forward pass, for a few rows of logits at a time.
"""

from compress.losses.chunked import CHUNK_LOGITS as CHUNK_LOGITS
from compress.losses.chunked import LOSS_BUFFERS as LOSS_BUFFERS
from compress.losses.chunked import Loss as Loss
from compress.losses.chunked import cross_entropy as cross_entropy
from compress.losses.chunked import distill_loss as distill_loss
from compress.losses.chunked import next_tokens as next_tokens
from compress.losses.chunked import token_mean as token_mean
from compress.losses.divergence import DIVERGENCES as DIVERGENCES
from compress.losses.targets import Head as Head
from compress.losses.targets import LogitSource as LogitSource
from compress.losses.targets import Sparse as Sparse
from compress.losses.targets import Targets as Targets
from compress.losses.targets import find_head as find_head
