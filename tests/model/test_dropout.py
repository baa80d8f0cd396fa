"""Dropout: its rate, its scale, its reproducibility."""

import pytest
import torch

from dragoman_model.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_rate_and_expectation(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1001, 503)
    y = Dropout(p).train()(x)
    assert (y == 0).float().mean().item() == pytest.approx(round(p * 256) / 256, abs=0.003)
    assert y.mean().item() == pytest.approx(1.0, abs=0.005)
    assert y.unique().numel() == 2


def test_the_generators_state_decides_the_mask() -> None:
    x, dropout = torch.ones(100, 7), Dropout(0.3).train()
    torch.manual_seed(5)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(5)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


def test_evaluation_changes_nothing() -> None:
    x = torch.randn(5, 5)
    assert Dropout(0.5).eval()(x) is x


def test_gradient_flows_through_what_was_kept() -> None:
    x = torch.ones(64, 64, requires_grad=True)
    y = Dropout(0.25).train()(x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.detach())
