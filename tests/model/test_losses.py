"""The fused loss against the plain one, and the plain one against torch's."""

import pytest
import torch
from torch.nn import functional as F

from dragoman_model.losses import fused_output_losses, token_losses


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_fused_losses_and_gradients_equal_the_plain_ones(label_smoothing: float) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(1300, 16, requires_grad=True)  # more than two chunks
    weight = torch.randn(50, 16, requires_grad=True)
    target = torch.randint(0, 50, (1300,))
    plain = token_losses(hidden @ weight.t(), target, label_smoothing)
    fused = fused_output_losses(hidden, weight, target, label_smoothing)
    torch.testing.assert_close(fused, (plain[0], plain[1].detach()))
    expected = torch.autograd.grad(3.0 * plain[0], (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad(3.0 * fused[0], (hidden, weight)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_losses_keep_their_range_in_16_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(600, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    with torch.no_grad():
        target = (hidden @ weight.t()).argmin(dim=1)  # words that the model thinks impossible
    plain = token_losses(hidden @ weight.t(), target, 0.1)
    with torch.autocast("cpu", dtype):
        fused = fused_output_losses(hidden, weight, target, 0.1)
    assert plain[1] > 16.0  # past what float16 holds as a probability
    torch.testing.assert_close(fused, (plain[0], plain[1].detach()), rtol=1e-2, atol=0.0)
    exact = torch.autograd.grad(plain[0], (hidden, weight))
    for rounded, gradient in zip(torch.autograd.grad(fused[0], (hidden, weight)), exact, strict=True):
        assert (rounded - gradient).norm() < 0.01 * gradient.norm()


def test_fused_losses_with_r_drop_are_the_paper_s() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(1400, 16, requires_grad=True)  # 700 tokens, twice
    weight = torch.randn(50, 16, requires_grad=True)
    target = torch.randint(0, 50, (700,))
    first, second = (half @ weight.t() for half in hidden.chunk(2))
    p, q = first.log_softmax(1), second.log_softmax(1)
    divergence = sum(F.kl_div(a, b, reduction="batchmean", log_target=True) for a, b in ((p, q), (q, p)))
    halves = [token_losses(logits, target, 0.1) for logits in (first, second)]
    # Equation 4 halved: the cross-entropies are averaged, not added.
    plain = 0.5 * (halves[0][0] + halves[1][0] + 5.0 * 0.5 * divergence)
    fused = fused_output_losses(hidden, weight, target, 0.1, r_drop=5.0)
    torch.testing.assert_close(fused[0], plain)
    torch.testing.assert_close(fused[1], 0.5 * (halves[0][1] + halves[1][1]).detach())
    expected = torch.autograd.grad(3.0 * plain, (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad(3.0 * fused[0], (hidden, weight)), expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_plain_loss_is_torchs_cross_entropy(label_smoothing: float) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(20, 30), torch.randint(0, 30, (20,))
    smoothed, likelihood = token_losses(logits, target, label_smoothing)
    torch.testing.assert_close(smoothed, F.cross_entropy(logits, target, label_smoothing=label_smoothing))
    torch.testing.assert_close(likelihood, F.cross_entropy(logits, target))
