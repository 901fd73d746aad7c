"""Numbers and layers as bytes count them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from model.steps import column_steps, in_steps, round_layer  # noqa: E402 - after the check that torch is there

pytestmark = pytest.mark.torch


def test_numbers_go_to_the_nearest_step_and_not_beyond_the_last() -> None:
    numbers = torch.tensor([0.0, 0.03, 0.04, -0.04, 7.93, 9.0, -9.0, 15.95, 20.0])
    assert in_steps(numbers, middle=128).tolist() == [0, 0, 0.0625, -0.0625, 7.9375, 7.9375, -8, 7.9375, 7.9375]
    assert in_steps(numbers, middle=0).tolist() == [0, 0, 0.0625, 0, 7.9375, 9, 0, 15.9375, 15.9375]
    assert torch.equal(in_steps(in_steps(numbers, middle=128), middle=128), in_steps(numbers, middle=128))


def test_a_column_s_step_is_the_least_power_of_two_that_holds_it() -> None:
    weights = torch.tensor([[63.0, -1.0], [-63.5, 0.0], [0.5, 0.1], [0.0, 0.0]])
    assert column_steps(weights)[:, 0].tolist() == [1, 2, 1 / 64, 1]


def test_sums_of_a_rounded_layer_are_exact() -> None:
    """Whatever adds them up, and in whatever order: no sum is rounded, so that none is near one step here and another there."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(512, 40)
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    round_layer(layer)
    steps = column_steps(before[0])
    for rounded, whole, step in zip((layer.weight, layer.bias), before, (steps, steps[:, 0] / 16), strict=True):
        assert ((rounded - whole).abs() <= step / 2).all()
    text = in_steps(3 * torch.randn(64, 512), middle=128)
    found = layer(text).detach().numpy()
    exactly = text.double().numpy() @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
    np.testing.assert_array_equal(found, exactly)
    order = torch.randperm(512)
    np.testing.assert_array_equal((text[:, order] @ layer.weight[:, order].T + layer.bias).detach().numpy(), exactly)


def test_rounding_again_changes_nothing() -> None:
    layer = torch.nn.Linear(32, 8)
    round_layer(layer)
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    round_layer(layer)
    assert torch.equal(layer.weight, before[0])
    assert torch.equal(layer.bias, before[1])
