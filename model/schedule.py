"""How the learning rate goes over a training."""

import math
from collections.abc import Callable


def cosine(steps: int, *, warm_up: int = 0, end: float = 0.0) -> Callable[[int], float]:
    """A factor for each step: a rise over the first `warm_up` steps, and a cosine from 1 to `end` over all."""
    return lambda step: min(1.0, (step + 1) / max(warm_up, 1)) * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * step / steps)))
