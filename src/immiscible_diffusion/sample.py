"""A trained model: the averaged net with its method, codec and starting distribution."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from immiscible_diffusion.checks import NotFiniteError
from immiscible_diffusion.nets.guided import guided
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.registry import describe, make
from immiscible_diffusion.streams import stream
from immiscible_diffusion.tensors import not_finite
from immiscible_diffusion.types import Codec, Float, HasClip, HasFreshNoise, HasRange, Method, Prior

__all__ = ["Start", "Trained", "clip_problem", "draw", "generate", "warn_if_fresh", "with_guidance", "with_sampler"]

Start = Literal["matched", "normal"]


@dataclass(frozen=True)
class Trained:
    """A trained model with all that sampling needs.

    ``prior`` is the coupling's start of sampling, ``shape`` the shape of one datum in model space, and ``coupling`` the
    name of the coupling in training.
    """

    net: nn.Module
    method: Method
    codec: Codec
    prior: Prior
    shape: tuple[int, ...]
    coupling: str = "independent"


def with_sampler(trained: Trained, sampler: str, **options: Any) -> Trained:
    """Return the same model with another sampler of its method, its own if empty, and options such as ``eta``.

    Options that belong to the sampler left, ``eta`` and ``clip`` of ``ddim``, do not pass to another: a warning names
    what is dropped.

    Raises:
        ValueError: the method has no such sampler or option, or the clip given is below the range of the codec's data.

    >>> from immiscible_diffusion import Denoising, Pixels
    >>> model = Trained(nn.Identity(), Denoising(), Pixels(), StandardNormal(), (1, 8, 8))
    >>> with_sampler(model, "heun").method.sampler
    'heun'
    """
    described = describe("method", trained.method)
    if "sampler" not in described:
        raise ValueError(f"the method {described['use']!r} has one way to sample; leave the sampler out")
    sampler = sampler or described["sampler"]
    if sampler != described["sampler"]:
        left = {key: described.pop(key) for key in ("eta", "clip") if key in described}
        if dropped := ", ".join(f"{key} = {value}" for key, value in left.items() if value and key not in options):
            warnings.warn(
                f"sampling by {sampler!r} drops what the model has for {described['sampler']!r}: {dropped}",
                stacklevel=2,
            )
    method = make("method", {**described, "sampler": sampler, **options})
    if "clip" in options and (problem := clip_problem(trained.codec, method)):
        raise ValueError(problem)
    return replace(trained, method=method)


def clip_problem(codec: Codec, method: Method) -> str:
    """Return why the method would clip away a part of the codec's data, or the empty text.

    Less than half a grey level is none. Of an autoencoder's latents no range is known.

    >>> from immiscible_diffusion import Betas, Denoising, Pixels
    >>> clip_problem(Pixels(), Denoising(Betas(), "v", clip=1.0))
    ''
    >>> clip_problem(Pixels(120.7, 64.2), Denoising(Betas(), "v", clip=1.0))[:62]
    'method.clip is 1; data in model space reach from -1.88 to 2.09'
    """
    if not (isinstance(codec, HasRange) and isinstance(method, HasClip) and method.clip):
        return ""
    low, high = codec.limits
    largest = max(abs(low), abs(high))
    if largest - method.clip <= (high - low) / 510:
        return ""
    return (
        f"method.clip is {method.clip:g}; data in model space reach from {low:.3g} to {high:.3g}, and each sampling "
        f"step would cut what lies beyond the clip: set method.clip to {largest:.4g}, or to 0 for none"
    )


def with_guidance(trained: Trained, scale: float) -> Trained:
    """Return the same model under classifier-free guidance of this scale; 1 is none.

    Raises:
        ValueError: a scale out of range, or a net that was not trained with a condition that is dropped.
    """
    return replace(trained, net=guided(trained.net, scale))


def generate(
    trained: Trained,
    n: int,
    *,
    steps: int,
    seed: int = 0,
    start: Start = "matched",
    cond: Tensor | None = None,
    batch: int = 250,
    first: int = 0,
) -> Iterator[Tensor]:
    """Yield n generated images in batches, each (<= batch, c, h, w), as stored.

    Image i starts from ``stream(seed, i, "sample")``, and what fresh noise a stochastic sampler adds is drawn from the
    same: neither n nor the batch size changes it, and two models are compared under the same noise. Stochastic
    sampling of a model that was trained with coupled noise warns: it is derived for independent noise.

    Args:
        trained: the model.
        n: how many images.
        steps: sampling steps.
        seed: names the images' random streams.
        start: ``matched`` draws from the coupling's prior, ``normal`` from N(0, I) whatever the coupling.
        cond: what the images shall show, for a conditional net: labels (n,), or hidden states of texts (n, l, f).
        batch: images a net evaluation.
        first: the number of the first image, which names its stream.

    Raises:
        ValueError: an unknown start, or labels that are not (n,).
        NotFiniteError: an image holds NaN or infinity.
    """
    if start not in ("matched", "normal"):
        raise ValueError(f"no start named {start!r}; there are ['matched', 'normal']")
    if cond is not None and (len(cond) != n or (cond.ndim > 1 and not cond.is_floating_point())):
        raise ValueError(f"labels have shape {tuple(cond.shape)}; there must be one for each of {n} images")
    prior = trained.prior if start == "matched" else StandardNormal()
    device = next(trained.net.parameters()).device
    warn_if_fresh(trained, steps)
    for begin in range(0, n, batch):
        streams = [stream(seed, first + i, "sample") for i in range(begin, min(begin + batch, n))]
        noise = torch.cat([prior.sample((1, *trained.shape), generator) for generator in streams]).to(device)
        labels = None if cond is None else cond[begin : begin + batch].to(device)
        yield trained.codec.decode(draw(trained, noise, labels, steps=steps, streams=streams)).cpu()


def draw(
    trained: Trained,
    noise: Float[Tensor, "n *dims"],
    cond: Tensor | None,
    *,
    steps: int,
    streams: Sequence[torch.Generator],
) -> Float[Tensor, "n *dims"]:
    """Return data in model space, (n, *dims), generated from the noise; fresh noise is drawn from one stream each.

    Raises:
        NotFiniteError: some of them hold NaN or infinity: the net diverged, or its precision is too low.
    """
    method = trained.method
    options: dict[str, Any] = (
        {"generator": streams} if isinstance(method, HasFreshNoise) and method.stochastic(steps) else {}
    )
    x: Tensor = method.sample(trained.net, noise, cond, steps=steps, **options)
    if bad := not_finite(x):
        raise NotFiniteError(
            f"{bad} of {len(x)} samples in {steps} sampling steps hold NaN or infinity, and can be neither shown nor "
            "measured. The net diverged, or its precision is too low; go back to an earlier state"
        )
    return x


def warn_if_fresh(trained: Trained, steps: int) -> None:
    """Warn where sampling adds fresh noise, and the model was trained with coupled noise."""
    method = trained.method
    if trained.coupling == "independent" or not (isinstance(method, HasFreshNoise) and method.stochastic(steps)):
        return
    warnings.warn(
        f"{type(method).__name__} in {steps} steps adds fresh noise, independent of the data, but this model was "
        f"trained on noise paired with it by {trained.coupling!r}: only deterministic sampling is derived for that",
        stacklevel=3,
    )
