"""What some tasks read beside their mixture: the stack, the broad layer, words in order."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from model.network import Network, Shape  # noqa: E402 - after the check that torch is there
from model.steps import column_steps  # noqa: E402
from model.word_order import WordOrder  # noqa: E402

pytestmark = pytest.mark.torch

HEADS = {"genre": 2, "pages": 3}


def network(*, stacked: frozenset[str] = frozenset(), **more: Any) -> Network:
    torch.manual_seed(0)
    return Network(Shape(16, 8, 8, 8, cover_channels=1, heads=HEADS, stacked=stacked, **more), dropout=0.0).eval()


def logits(of: Network, text: torch.Tensor) -> torch.Tensor:
    found, _ = of(text, torch.zeros(1, 96), torch.zeros(len(text), dtype=torch.int64), torch.zeros(len(text), 1))
    return found


def fill_heads(of: Network) -> None:
    for place in range(len(HEADS)):
        for weights in of.deep.of_task(place):
            weights.fill_(0.1)


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
        fill_heads(own)
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


def test_only_the_broad_task_reads_the_broad_layer() -> None:
    """Beside the stack; training begins at the linear model all the same."""
    own = network(stacked=frozenset({"pages"}), broad=frozenset({"genre"}), broad_width=6)
    text = torch.randn(5, 8)
    np.testing.assert_allclose(logits(own, text).detach(), own.wide(text).detach(), atol=1e-6)
    assert [[each.shape for each in own.deep.of_task(place)] for place in (0, 1)] == [[(2, 32), (2, 6)], [(3, 32), (3, 128)]]
    with torch.no_grad():
        fill_heads(own)
        before = logits(own, text)
        own.broad.bias += 1.0
        assert (logits(own, text)[:, :2] > before[:, :2]).all()
        changed = (logits(own, text) != before).any(dim=0)
    assert changed.tolist() == [True, True, False, False, False]


def test_a_broad_layer_of_no_width_is_none() -> None:
    """Nor is one that no task reads."""
    for own in (network(broad=frozenset({"genre"}), broad_width=0), network(broad_width=6)):
        assert not own.deep.beside
        assert own.broad is None


def test_a_cover_is_read_by_the_rows_that_have_it_and_no_other() -> None:
    own = network()
    text, covers = torch.randn(4, 8), torch.randn(2, 96)
    cover_of, present = torch.tensor([1, 0, 1, 0]), torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    with torch.no_grad():
        own.get_buffer("cover_shares").fill_(1.0)
        fill_heads(own)
        together, apart = own(text, covers, cover_of, present), own(text, covers[cover_of], torch.arange(4), present)
        without = logits(own, text)
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(together[0][3], without[3], atol=1e-6)
    assert (together[0][:3] - without[:3]).abs().amax(dim=1).min() > 1e-3


def test_words_in_order_are_read_by_the_tasks_that_were_taught_and_the_branch_stays() -> None:
    """They begin with what they were taught, other tasks do not see it; training moves the heads and not the branch."""
    own = network(ordered=frozenset({"genre"}), ordered_words=5)
    branch = WordOrder(5)
    own.begin_order(branch.state_dict(), {"genre": torch.tensor([[0.0], [1.0]]).expand(2, 96)})
    batch = torch.randn(4, 8), torch.zeros(1, 96), torch.zeros(4, dtype=torch.int64), torch.zeros(4, 1)
    order = torch.rand(4, 96)
    with torch.no_grad():
        changed = (own(*batch, order)[0] - own(*batch, torch.zeros(4, 96))[0]).numpy()
    np.testing.assert_allclose(changed[:, 1], order.sum(dim=1), rtol=1e-4)
    assert not changed[:, [0, 2, 3, 4]].any()
    own.train()(*batch, order)[0].sum().backward()
    assert own.deep.beside["order"].weight.shape == (2, 96)
    assert own.deep.beside["order"].weight.grad.abs().sum() > 0
    assert own.word_order is not None
    for name, parameter in own.word_order.named_parameters():
        assert not parameter.requires_grad
        assert torch.equal(parameter, branch.get_parameter(name))


def test_the_broad_layer_is_rounded_as_it_is_served_and_not_as_it_learns() -> None:
    """Else no gradient would reach it."""
    own = network(broad=frozenset({"genre"}), broad_width=6)
    with torch.no_grad():
        own.broad.weight.zero_()
        own.broad.bias[:] = torch.tensor([0.04, 0.09, -1.0, 2.0, 15.9, 100.0])
        own.deep.beside["broad"].weight.copy_(torch.eye(6)[[1, 5]])
        own.wide.weight.zero_()
        own.wide.bias.zero_()
    text = torch.zeros(1, 8)
    assert logits(own, text)[0, :2].tolist() == [0.0625, 15.9375]
    learning = logits(own.train(), text)[0, :2]
    np.testing.assert_allclose(learning.detach(), [0.09, 100.0], rtol=1e-6)
    learning[0].backward()
    assert own.broad.bias.grad[1] == 1.0


def test_served_layers_of_steps_are_in_steps_and_others_in_half_precision() -> None:
    own = network(stacked=frozenset({"pages"}), broad=frozenset({"genre"}), broad_width=600)
    with torch.no_grad():
        own.deep.beside["broad"].weight.normal_()
    large, of_cover = own.stack[2].weight, own.cover_branch.connected.weight
    before = large.clone()
    own.round_as_served(branches_only=True)
    assert torch.equal(large, before)
    assert torch.equal(of_cover.half().float(), of_cover)
    assert not torch.equal(large.half().float(), large)
    own.round_as_served()
    for layer in (own.wide, own.text_projection, own.broad, own.deep.beside["broad"]):
        steps = column_steps(layer.weight)
        assert torch.equal((layer.weight / steps).round() * steps, layer.weight)
    assert torch.equal(large.half().float(), large)
