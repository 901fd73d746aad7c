"""The network's stack: a task that reads its own linear decisions through layers of its own."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from model.network import Network, Shape  # noqa: E402 - after the check that torch is there

pytestmark = pytest.mark.torch

HEADS = {"genre": 2, "pages": 3}


def network(*, stacked: frozenset[str]) -> Network:
    torch.manual_seed(0)
    return Network(Shape(16, 8, 8, 8, cover_channels=1, heads=HEADS, stacked=stacked), dropout=0.0).eval()


def logits(of: Network, text: torch.Tensor) -> torch.Tensor:
    found, _ = of(text, torch.zeros(len(text), 96), torch.zeros(len(text), 1))
    return found


def test_the_stack_begins_with_the_task_s_own_decisions() -> None:
    """Of mean 0 and spread 1 over the rows that have its label; training begins at the linear model all the same."""
    own = network(stacked=frozenset({"pages"}))
    text = torch.randn(50, 8)
    with_label = torch.arange(50) < 30
    own.begin_stack(text, {"genre": ~with_label, "pages": with_label})
    seen = own.text_projection(text)[:, -3:].detach()
    decisions = own.wide(text)[:, 2:].detach()[with_label]
    np.testing.assert_allclose(seen[with_label], (decisions - decisions.mean(0)) / decisions.std(0, correction=0), atol=1e-4)
    np.testing.assert_allclose(logits(own, text).detach(), own.wide(text).detach(), atol=1e-6)


def test_only_the_stacked_task_reads_the_stack() -> None:
    own = network(stacked=frozenset({"pages"}))
    text = torch.randn(5, 8)
    with torch.no_grad():
        for head in own.deep.heads:
            head.weight.fill_(0.1)
        before = logits(own, text)
        own.stack[0].bias.add_(1.0)
        changed = (logits(own, text) != before).any(dim=0)
    assert changed.tolist() == [False, False, True, True, True]


def test_without_labels_the_stack_stays_as_it_was_drawn() -> None:
    own = network(stacked=frozenset({"pages"}))
    before = own.text_projection.weight.clone()
    own.begin_stack(torch.randn(5, 8), {name: torch.zeros(5, dtype=torch.bool) for name in HEADS})
    assert torch.equal(own.text_projection.weight, before)


def test_no_stacked_task_no_stack() -> None:
    assert network(stacked=frozenset()).stack is None
