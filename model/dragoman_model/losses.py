"""Label-smoothed cross-entropy, plainly and fused with the output projection; R-Drop."""

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
    hidden: Tensor, weight: Tensor, target: Tensor, label_smoothing: float, r_drop: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`token_losses(hidden @ weight.T, target, label_smoothing)` without ever holding all logits.

    Logits of a large vocabulary are the largest tensor of a training step, and passes over them half of its
    time on CPU. Here each chunk of tokens yields its loss and its gradients while it is in the cache.

    With `r_drop`, `hidden` holds two passes over the same tokens under different dropout masks, and the
    loss holds their disagreement as well, the symmetric Kullback-Leibler divergence between what they
    predict: half of R-Drop's loss (Liang et al. 2021, arXiv:2106.14448, equation 4), so that the
    cross-entropy in it is a mean as without.

    Args:
        hidden: `[tokens, d_model]`, or `[2 * tokens, d_model]` with `r_drop`, one pass after the other.
        weight: `[vocabulary, d_model]`, the output projection.
        target: `[tokens]`.
        label_smoothing: As in `token_losses`.
        r_drop: The weight alpha of the disagreement; 0 for a single pass.

    Returns:
        The loss, and the mean negative log-likelihood, which carries no gradient.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    passes = hidden.view(2 if r_drop else 1, len(target), -1)  # [passes, tokens, d_model]
    loss, likelihood = _FusedOutputLosses.apply(  # type: ignore[no-untyped-call]
        passes, weight, target, label_smoothing, r_drop, dtype
    )
    return loss, likelihood.detach()


class _FusedOutputLosses(Function):
    """Computes the gradients along with the losses: they only need scaling once the loss's own is known."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        label_smoothing: float,
        r_drop: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        predictions = hidden.size(0) * hidden.size(1)
        rows, columns = hidden.detach().to(dtype), weight.detach().to(dtype)
        hidden_gradient = torch.empty_like(rows, dtype=hidden.dtype)
        weight_gradient = torch.zeros_like(weight)
        loss = likelihood = torch.zeros((), device=hidden.device)
        chunk = _CHUNK // hidden.size(0)
        for start in range(0, hidden.size(1), chunk):
            part, wanted = rows[:, start : start + chunk], target[start : start + chunk]
            logits = (part @ columns.t()).float()  # [passes, chunk, vocabulary]
            nll, smoothed, gradient = _summed_losses(logits, wanted, label_smoothing, r_drop)
            likelihood, loss = likelihood + nll, loss + smoothed
            scaled = gradient.mul_(1.0 / predictions).to(dtype)
            hidden_gradient[:, start : start + chunk] = scaled @ columns
            weight_gradient += scaled.flatten(0, 1).t() @ part.flatten(0, 1)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(likelihood)
        return loss / predictions, likelihood / predictions

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * gradients[0], weight_gradient * gradients[0], None, None, None, None


def _summed_losses(
    logits: Tensor, target: Tensor, label_smoothing: float, r_drop: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Likelihood loss, whole loss, and the latter's gradient by `logits` `[passes, chunk, vocabulary]`.

    Overwrites `logits`: they are the largest tensor there is.
    """
    passes, chunk, vocabulary = logits.shape
    wanted = target.expand(passes, chunk).unsqueeze(2)  # [passes, chunk, 1]
    shifted = logits.sub_(logits.amax(dim=2, keepdim=True))
    wanted_logits, mean_logits = shifted.gather(2, wanted).squeeze(2), shifted.mean(dim=2)
    apart = shifted[0] - shifted[1] if r_drop else None
    exponentials = shifted.exp_()
    total = exponentials.sum(dim=2, keepdim=True)  # [passes, chunk, 1]
    normaliser = total.log().squeeze(2)
    nll, uniform = (normaliser - wanted_logits).sum(), (normaliser - mean_logits).sum()
    loss = (1.0 - label_smoothing) * nll + label_smoothing * uniform
    probabilities = exponentials.div_(total)
    pull = None
    if apart is not None:
        log_ratio = apart.sub_((normaliser[0] - normaliser[1]).unsqueeze(1))  # [chunk, vocabulary]
        divergence, pull = _disagreement(probabilities, log_ratio)
        loss = loss + 0.5 * r_drop * divergence
    # d cross-entropy / d logits = softmax - smoothed target distribution
    gradient = probabilities.sub_(label_smoothing / vocabulary)
    gradient.scatter_add_(2, wanted, gradient.new_full(wanted.shape, label_smoothing - 1.0))
    return nll, loss, gradient if pull is None else gradient.add_(pull, alpha=0.5 * r_drop)


def _disagreement(probabilities: Tensor, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p, q) + KL(q, p), summed over tokens, and its gradient by the logits of p and of q.

    Args:
        probabilities: `[2, tokens, vocabulary]`, p and q.
        log_ratio: `[tokens, vocabulary]`, log p - log q.
    """
    p, q = probabilities
    weighted = torch.stack((p * log_ratio, q * -log_ratio))  # [2, tokens, vocabulary]
    divergences = weighted.sum(dim=2, keepdim=True)  # KL(p, q) and KL(q, p), each [tokens, 1]
    gradient = weighted.sub_(probabilities * divergences)
    difference = p - q
    gradient[0].add_(difference)
    gradient[1].sub_(difference)
    return divergences.sum(), gradient
