"""One line in your own loop: flow matching on digits in plain PyTorch, without and with it (`examples/own_loop.py`).

Prints how far apart data and noise are, and how far a sample in 2 steps ends from the same noise in 100 steps.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from immiscible_diffusion import couple

STEPS, BATCH = 300, 256
DATA = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1  # 1,797 images of 8 x 8 pixels in [-1, 1]


class Net(nn.Module):
    """Guess the clean image from x_t and t."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(65, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([x_t, t], 1))


def train(paired: bool) -> tuple[Net, float]:
    """Return a trained net and the mean distance between data and noise in training."""
    torch.manual_seed(0)  # both nets start alike and see the same batches
    net, distance = Net(), 0.0
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(STEPS):
        x = DATA[torch.randint(len(DATA), (BATCH,))]
        noise = couple(x) if paired else torch.randn_like(x)  # the one line
        t = torch.rand(BATCH, 1)
        x_t = (1 - t) * x + t * noise
        loss = (net(x_t, t) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        distance += float((x - noise).norm(dim=1).mean()) / STEPS
    return net, distance


@torch.no_grad()
def sample(net: Net, x: Tensor, steps: int) -> Tensor:
    """Return samples by Euler's method from noise at t = 1 to data at t = 0."""
    for i in range(steps):
        t = torch.full((len(x), 1), 1 - i / steps)
        x = x + (net(x, t) - x) / (steps - i)
    return x


if __name__ == "__main__":
    for paired in (False, True):
        net, distance = train(paired)
        start = torch.randn(500, 64, generator=torch.Generator().manual_seed(1))
        error = float((sample(net, start, 2) - sample(net, start, 100)).norm(dim=1).mean())
        print(f"{'couple' if paired else 'randn_like':>10}: distance {distance:.2f}, error at 2 steps {error:.2f}")
