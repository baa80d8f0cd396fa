"""Label-smoothed cross-entropy, plainly and fused with the output projection."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

__all__ = ["fused_output_losses", "token_losses"]

_CHUNK = 512  # tokens whose logits exist at once; small enough to stay in the cache


def token_losses(logits: Tensor, target: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Label-smoothed cross-entropy (Szegedy et al. 2016, section 7), and the plain one for reporting.

    Args:
        logits: `[tokens, vocabulary]`.
        target: `[tokens]`, the right next token of each.
        label_smoothing: The share of probability spread evenly over the vocabulary.

    Returns:
        The mean smoothed loss and the mean negative log-likelihood, in nats.
    """
    log_probs = F.log_softmax(logits, dim=-1, dtype=torch.float32)  # [tokens, vocabulary]
    likelihood = -log_probs.gather(1, target.unsqueeze(1)).mean()
    return (1.0 - label_smoothing) * likelihood - label_smoothing * log_probs.mean(), likelihood


def fused_output_losses(
    hidden: Tensor, weight: Tensor, target: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """`token_losses(hidden @ weight.T, target, label_smoothing)` without ever holding all logits.

    Logits of a large vocabulary are the largest tensor of a training step, and passes over them half of its
    time on CPU. Here each chunk of tokens yields its loss and its gradients while it is in the cache.

    Args:
        hidden: `[tokens, d_model]`.
        weight: `[vocabulary, d_model]`, the output projection.
        target: `[tokens]`.
        label_smoothing: As in `token_losses`.

    Returns:
        The mean smoothed loss, and the mean negative log-likelihood, which carries no gradient.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    smoothed, likelihood = _FusedOutputLosses.apply(  # type: ignore[no-untyped-call]
        hidden, weight, target, label_smoothing, dtype
    )
    return smoothed, likelihood.detach()


class _FusedOutputLosses(Function):
    """Computes the gradients along with the losses: they only need scaling once the loss's own is known."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, label_smoothing: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        tokens, vocabulary = hidden.size(0), weight.size(0)
        rows, columns = hidden.detach().to(dtype), weight.detach().to(dtype)
        hidden_gradient = torch.empty_like(rows, dtype=hidden.dtype)
        weight_gradient = torch.zeros_like(weight)
        smoothed = likelihood = torch.zeros((), device=hidden.device)
        for start in range(0, tokens, _CHUNK):
            part, wanted = rows[start : start + _CHUNK], target[start : start + _CHUNK].unsqueeze(1)
            logits = (part @ columns.t()).float()  # [chunk, vocabulary]
            shifted = logits.sub_(logits.amax(dim=1, keepdim=True))
            wanted_logits, mean_logits = shifted.gather(1, wanted).squeeze(1), shifted.mean(dim=1)
            exponentials = shifted.exp_()
            total = exponentials.sum(dim=1, keepdim=True)  # [chunk, 1]
            normaliser = total.log().squeeze(1)
            nll, uniform = (normaliser - wanted_logits).sum(), (normaliser - mean_logits).sum()
            likelihood = likelihood + nll
            smoothed = smoothed + (1.0 - label_smoothing) * nll + label_smoothing * uniform
            # d loss / d logits = softmax - smoothed target distribution
            gradient = exponentials.div_(total).sub_(label_smoothing / vocabulary)
            gradient.scatter_add_(1, wanted, gradient.new_full((len(part), 1), label_smoothing - 1.0))
            scaled = gradient.mul_(1.0 / tokens).to(dtype)
            hidden_gradient[start : start + _CHUNK] = scaled @ columns
            weight_gradient += scaled.t() @ part
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(likelihood)
        return smoothed / tokens, likelihood / tokens

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * gradients[0], weight_gradient * gradients[0], None, None, None
