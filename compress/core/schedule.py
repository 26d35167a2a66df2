"""The learning rate of every training loop: linear warm-up, then a cosine."""

import math

WARM_UP, FLOOR = 0.1, 0.1  # warm-up as a share of the steps; last learning rate as a share of the peak


def learning_rate(step: int, steps: int, peak: float) -> float:
    """The rate at `step`, from 1 to `steps`. It rises linearly to `peak` over the first tenth of the steps.

    Then it falls to a tenth of `peak`, along a cosine.
    """
    warm_up = max(1, round(WARM_UP * steps))
    if step <= warm_up:
        return peak * step / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return peak * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2)
