"""Minimising a smooth function of few parameters over all rows at once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def minimise(parameters: Sequence[Tensor], value: Callable[[], Tensor], *, iterations_max: int, history: int = 100) -> None:
    """Moves the parameters, in place, to where `value` is least nearby, by L-BFGS with a line search; needs no learning rate.

    Source: Nocedal & Wright, Numerical Optimization, 2nd ed., algorithms 7.5 and 3.5.
    """
    optimiser = torch.optim.LBFGS(list(parameters), max_iter=iterations_max, history_size=history, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        found = value()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimiser.step(closure)  # type: ignore[no-untyped-call]
