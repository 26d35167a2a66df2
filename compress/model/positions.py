"""Spare the host a wait for the GPU in every forward pass.

transformers compares the positions of all tokens, on the device, to find packed documents. Here documents are packed
with an explicit mask only, and without a mask positions simply count up. So the comparison always finds one document.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import masking_utils

SEARCH = "find_packed_sequence_indices"


@contextmanager
def counting_positions(device: torch.device) -> Iterator[None]:
    """Context for forward passes on a GPU in which positions count up from 0 or a mask is given."""
    search: Any = getattr(masking_utils, SEARCH, None)
    if device.type == "cpu" or search is None:
        yield
        return
    setattr(masking_utils, SEARCH, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masking_utils, SEARCH, search)
