"""The learning rate of every training loop here: linear warm-up, then a cosine."""

import math

WARM_UP, FLOOR = 0.1, 0.1  # share of the steps; share of the peak learning rate that is left at the end


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Step 1 … steps: linear to the peak over the first tenth, then half a cosine down to a tenth of it."""
    rising = max(1, round(WARM_UP * steps))
    if step <= rising:
        return peak * step / rising
    done = (step - rising) / max(1, steps - rising)
    return peak * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2)
