"""Masked diffusion: each token is hidden with probability 1 - alpha(t), and a network says what the hidden ones are.

The process is absorbing: a token, once hidden, stays so until the end, and at t_max all of them are. Given the tokens
that are seen, what the others are does not depend on the time (Ou et al. 2024, theorem 1), so the network is told no
time, and the samplers differ in nothing but the order in which they ask (`samplers.unmasking`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.diffusion.denoiser import NO_LABEL, Network
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.schedules import Schedule

SEEN = 1e-6
"""Chance above which a token would still be seen at t_max, where sampling starts from hidden ones alone."""

HIDDEN = -1
"""What stands for a hidden token."""


class Predictor:
    """log p(token | the tokens that are seen), a network in its frame."""

    def __init__(self, model: Network, schedule: Schedule, vocabulary: int) -> None:
        """Join the parts and refuse those that do not fit.

        Args:
            model: (x int64 [B, *size], condition [B], label int64 [B]) -> logits [B, *size, vocabulary]; to it a
                hidden token is one more, number `vocabulary`.
            schedule: alpha(t), the probability that a token is seen.
            vocabulary: Number of tokens.

        Raises:
            UsageError: Some tokens would be seen at t_max.
        """
        self.model, self.schedule, self.vocabulary = model, schedule, vocabulary
        alpha = float(schedule.alpha(torch.tensor(schedule.t_max, dtype=torch.float64, device="cpu")))
        require(
            alpha <= SEEN,
            f"objective=unmask needs a schedule that hides every token, and at t_max={schedule.t_max:g} this one shows "
            f"alpha={alpha:.3g} of them: choose schedule=rectified_flow, cosine or sigmoid with schedule.t_max=1",
        )

    def __call__(self, x: Tensor, label: Tensor) -> Tensor:
        """Log-probabilities, float32 [B, *size, vocabulary], of the tokens of x int64 [B, *size], `HIDDEN` or known.

        Those of a token that is known mean nothing; the vocabulary does not hold the hidden one, whose chance is 0.
        """
        x_in = torch.where(x == HIDDEN, self.vocabulary, x)
        return self.model(x_in, x.new_zeros(len(x), dtype=torch.float32), label).float().log_softmax(-1)


def unmasking_rate(schedule: Schedule, t: Tensor) -> Tensor:
    """w(t) = -alpha'(t) / (1 - alpha(t)), the weight of the continuous-time bound (Shi et al. 2024, eq. 5).

    Args:
        schedule: Any; the slope is automatic differentiation's.
        t: [B], above 0.

    Returns:
        Like t.
    """
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        alpha = schedule.alpha(t)
        (slope,) = torch.autograd.grad(alpha.sum(), t)
    return -slope / (1 - alpha.detach())


def check_guidance(guidance: Guidance) -> None:
    """Require guidance that tokens can have.

    Raises:
        UsageError: It is one that only pictures on a Gaussian path have.
    """
    require(
        guidance.interval is None and guidance.rescale == 0,
        "guidance_interval and guidance_rescale are for Gaussian noise, and this model unmasks tokens: leave them out",
    )


def guided_tokens(
    predictor: Predictor, label: Tensor, guidance: Guidance, *, doubles: bool = True
) -> Callable[[Tensor, Tensor], Tensor]:
    """The function (x int64 [B, *size], t []) -> log-probabilities that samplers see, with label and guidance in it.

    log p is log p_ref + w (log p - log p_ref) up to a constant, as for pictures (Ho & Salimans 2022; for discrete
    diffusion Schiff et al. 2024): guiding logits or log-probabilities is the same.

    Args:
        predictor: The network.
        label: int64 [B].
        guidance: How to guide; without labels and without a guide there is nothing to guide by.
        doubles: Whether the network may be given tokens with and without their labels in one batch.

    Raises:
        UsageError: See `check_guidance`.
    """
    check_guidance(guidance)
    unknown = torch.full_like(label, NO_LABEL)
    guides = guidance.scale != 1 and (guidance.guide is not None or bool((label != NO_LABEL).any()))

    def predict(x: Tensor, t: Tensor) -> Tensor:
        if not guides:
            return predictor(x, label)
        if guidance.guide is not None or not doubles:
            reference = predictor(x, unknown) if guidance.guide is None else guidance.guide(x, label)  # type: ignore[call-arg]
            main = predictor(x, label)
        else:
            main, reference = predictor(torch.cat([x, x]), torch.cat([label, unknown])).chunk(2)
        return (reference + guidance.scale * (main - reference)).log_softmax(-1)

    return predict
