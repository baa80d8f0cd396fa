"""Label-smoothed cross-entropy, plainly and fused with the output projection; R-Drop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

__all__ = ["fused_output_losses", "token_losses"]

_CHUNK = 256  # tokens whose logits exist at once; small enough to stay in the cache


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
    with torch.autocast(device, enabled=False):  # it would compute the softmax in 32 bits
        loss, likelihood = _FusedOutputLosses.apply(  # type: ignore[no-untyped-call]
            passes, weight, target, label_smoothing, r_drop, dtype
        )
    return loss, likelihood.detach()


class _FusedOutputLosses(Function):
    """Computes the gradients along with the losses: they only need scaling once the loss's own is known.

    The loss's gradient by the logits is their softmax minus the smoothed target distribution. Only the
    softmax is as large as the logits; the target's part of the products with it is added once at the end.
    """

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
        passes, tokens, d_model = hidden.shape
        # float16 ends at 6e-8: a less probable word would be lost; bfloat16 reaches as far as float32.
        wide = torch.float32 if dtype == torch.float16 else dtype
        rows, columns = hidden.detach().to(dtype), weight.detach().to(dtype)
        hidden_gradient = torch.empty_like(rows, dtype=hidden.dtype)
        weight_gradient = torch.zeros_like(weight)
        wanted_logits, wanted_probabilities = hidden.new_empty(2, passes, tokens)
        divergence = hidden.new_zeros(())
        for start in range(0, tokens, _CHUNK // passes):
            part = slice(start, start + _CHUNK // passes)
            states = rows[:, part].flatten(0, 1)  # [passes * chunk, d_model]
            logits = states @ columns.t()  # [passes * chunk, vocabulary]
            probabilities = logits.softmax(dim=1, dtype=wide)
            wanted = target[part].repeat(passes).unsqueeze(1)  # [passes * chunk, 1]
            wanted_logits[:, part] = logits.gather(1, wanted).view(passes, -1)
            wanted_probabilities[:, part] = probabilities.gather(1, wanted).view(passes, -1)
            if r_drop:
                apart, pull = _disagreement(logits.float().view(passes, -1, len(weight)))
                divergence += apart
                probabilities.add_(pull.flatten(0, 1), alpha=0.5 * r_drop)
            probabilities = probabilities.to(dtype)
            hidden_gradient[:, part] = (probabilities @ columns).view(passes, -1, d_model)
            weight_gradient += probabilities.t() @ states

        states, mean_column = rows.to(hidden.dtype), columns.to(weight.dtype).mean(dim=0)
        sure = 1.0 - label_smoothing
        hidden_gradient -= label_smoothing * mean_column + sure * weight[target]
        weight_gradient -= label_smoothing / len(weight) * states.sum(dim=(0, 1))
        weight_gradient.index_add_(0, target, states.sum(dim=0), alpha=-sure)

        # A probability of 0 would be a loss without bounds: 87 nats at most, in 32 bits.
        likelihood = -wanted_probabilities.clamp_min(torch.finfo(hidden.dtype).tiny).log()
        uniform = likelihood + wanted_logits - states @ mean_column  # log of the normaliser - mean logit
        loss = (sure * likelihood + label_smoothing * uniform).sum() + 0.5 * r_drop * divergence
        predictions = passes * tokens
        ctx.save_for_backward(hidden_gradient.div_(predictions), weight_gradient.div_(predictions))
        mean_likelihood = likelihood.mean()
        ctx.mark_non_differentiable(mean_likelihood)
        return loss / predictions, mean_likelihood

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * gradients[0], weight_gradient * gradients[0], None, None, None, None


def _disagreement(logits: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p, q) + KL(q, p), summed over tokens, and its gradient by the logits `[2, tokens, vocabulary]`."""
    log_probabilities = logits.log_softmax(dim=2)
    probabilities = log_probabilities.exp()
    p, q = probabilities
    log_ratio = log_probabilities[0] - log_probabilities[1]  # [tokens, vocabulary]
    weighted = torch.stack((p * log_ratio, q * -log_ratio))  # [2, tokens, vocabulary]
    divergences = weighted.sum(dim=2, keepdim=True)  # KL(p, q) and KL(q, p), each [tokens, 1]
    gradient = weighted.sub_(probabilities * divergences)
    difference = p - q
    gradient[0].add_(difference)
    gradient[1].sub_(difference)
    return divergences.sum(), gradient
