"""The Inception Score (Salimans et al., arXiv:1606.03498)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from immiscible_diffusion.metrics._rows import Estimate, comparable
from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Float

__all__ = ["InceptionScore", "inception_score"]


def inception_score(logits: Float[Tensor, "n f"], *, splits: int = 10) -> Estimate:
    """Return mean and standard deviation over splits of exp(E KL(p(class | image), p(class))), in float64.

    1 is the worst value. The best is the number of classes: every image is certain, and all classes are equally
    frequent. Splits are consecutive rows, as in the original code, so the order of the images changes the value.

    Args:
        logits: of the classes, up to a constant in each row; hence logarithms of probabilities serve as well.
        splits: parts that are scored separately; 10 in published figures, of 5,000 images each.

    Raises:
        ValueError: fewer rows than splits, or values that are not finite.

    >>> import torch
    >>> inception_score(100 * torch.eye(4), splits=1).mean
    4.0
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"{splits} splits of {len(logits)} rows: there must be one or more, of a row or more each")
    logits, _ = comparable(logits, logits, least=1)
    scores = []
    for i in range(splits):
        part = logits[i * len(logits) // splits : (i + 1) * len(logits) // splits].double()
        log_probs = part.log_softmax(1)
        together = log_probs.logsumexp(0) - torch.tensor(len(part), dtype=torch.float64).log()
        scores.append(float((log_probs.exp() * (log_probs - together)).sum(1).mean().exp()))
    values = torch.tensor(scores, dtype=torch.float64)
    return Estimate(float(values.mean()), float(values.std(correction=0)))


@register("metric")
@dataclass(frozen=True)
class InceptionScore:
    """The Inception Score, where the features are the logits of the 2015 Inception network.

    Args:
        splits: parts that are scored by themselves.

    Raises:
        ValueError: no splits.
    """

    splits: int = 10
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    def __post_init__(self) -> None:
        if self.splits < 1:
            raise ValueError(f"splits is {self.splits}; it must be 1 or more")

    @property
    def least(self) -> int:
        """The fewest rows a side that can be scored."""
        return self.splits

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """Return the mean score of the generated images' logits, (m, f); the real ones are not looked at."""
        return inception_score(generated, splits=self.splits).mean
