"""Features of a small digits classifier that this library trains: a network for the demo without a download."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from immiscible_diffusion.extras import needs
from immiscible_diffusion.features._weights import digest_of_state
from immiscible_diffusion.files import cache_folder, keep_in_cache
from immiscible_diffusion.registry import register
from immiscible_diffusion.types import Float, UInt8

__all__ = ["DigitsClassifier", "classifier"]


@register("features")
@dataclass(frozen=True)
class DigitsClassifier:
    """The 64 penultimate features of a small classifier of 8 x 8 digits, trained by this library.

    It is trained once, from a fixed seed, on four fifths of scikit-learn's digits (a few seconds), and kept under
    ``$XDG_CACHE_HOME/immiscible-diffusion`` (``~/.cache`` where unset). Distances in it are not FID.
    """

    @torch.no_grad()
    def __call__(self, raw: UInt8[Tensor, "n 1 8 8"]) -> Float[Tensor, "n 64"]:
        """Return the features of digits, (n, 64).

        Raises:
            ValueError: the images are not (n, 1, 8, 8).
        """
        if raw.shape[1:] != (1, 8, 8):
            raise ValueError(f"the digits classifier takes images (n, 1, 8, 8); there came {tuple(raw.shape)}")
        net = classifier()
        return torch.cat([net[:-1](_scaled(part)) for part in torch.split(raw.cpu(), 500)])

    @property
    def fingerprint(self) -> str:
        """A text that is equal where the features are: the SHA-256 of the trained weights."""
        return f"digits_classifier/{digest_of_state(classifier().state_dict())}"


@cache
def classifier() -> nn.Sequential:
    """Return the trained classifier of digits, from the cache where it is there."""
    with needs("nets", "the digits classifier needs safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load, save

    path = cache_folder() / "digits-classifier-1.safetensors"
    net = _untrained()
    try:
        net.load_state_dict(load(path.read_bytes()))
    except (OSError, SafetensorError, RuntimeError):  # not there, or not whole: both are mended by training
        net = _train(net)
        keep_in_cache(path, save(net.state_dict()))
    return net.eval().requires_grad_(False)


def _scaled(raw: Tensor) -> Tensor:
    return raw.float() / 127.5 - 1


def _untrained() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip


@torch.enable_grad()
def _train(net: nn.Sequential) -> nn.Sequential:
    images, labels, order = _digits()
    rows, generator = order[:1437], torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(400):
        pick = rows[torch.randint(len(rows), (128,), generator=generator)]
        loss = nn.functional.cross_entropy(net(_scaled(images[pick])), labels[pick])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net


def _digits() -> tuple[Tensor, Tensor, Tensor]:
    with needs("data", "the digits classifier needs scikit-learn"):
        from sklearn.datasets import load_digits
    digits = load_digits()
    images = torch.from_numpy(digits.images * 255 / 16).round().to(torch.uint8).unsqueeze(1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images, torch.from_numpy(digits.target).long(), order
