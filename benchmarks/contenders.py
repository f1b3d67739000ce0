"""The ways to pair data with noise that the benchmark compares: this library's and the public ones."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from immiscible_diffusion.couplings import assign, greedy_index, nearest, oversample, sinkhorn_index
from immiscible_diffusion.couplings._cost import pairwise
from immiscible_diffusion.couplings.solvers.auction import auction
from immiscible_diffusion.couplings.solvers.solve import solve

__all__ = ["Contender", "Pair", "contenders"]

Pair = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """One way to pair (b, d) data with noise: ``pair(x, noise) -> paired noise``; those that draw ignore the noise.

    Args:
        task: what it does; contenders of one task are compared.
        name: who it is.
        ours: whether it is this library's.
        pair: the call that is timed.
        largest: the most elements, b^2 d or b k d, that it can hold or finish on a CPU; larger sizes are left out.
        size: how many elements it holds at (b, d).
    """

    task: str
    name: str
    ours: bool
    pair: Pair
    largest: float = math.inf
    size: Callable[[int, int], float] = lambda b, d: 0.0


def contenders(k: int, times: int, *, solvers: bool = False) -> list[Contender]:
    """Return every contender that this environment can run. Each pairs on the device of its data.

    With ``solvers``, the two solvers that ``assign`` chooses from on a GPU are contenders too.

    ``official`` is the papers' code as its description has it: broadcast fp16 differences, then scipy. Packages that
    are not installed (POT, torchcfm, ott-jax) are left out.
    """

    def gathered(index: Callable[[Tensor, Tensor], Any]) -> Pair:
        return lambda x, noise: noise[torch.as_tensor(np.asarray(index(x, noise))).to(noise.device)]

    def explicit(x: Tensor, k: int) -> Tensor:
        noise = torch.randn(len(x), k, x.shape[1], device=x.device)
        best = (x.unsqueeze(1) - noise).norm(dim=2).argmin(1)
        return noise[torch.arange(len(x), device=x.device), best]

    def official(x: Tensor, noise: Tensor) -> Any:
        difference = x.half().unsqueeze(1) * 0.1 - noise.half().unsqueeze(0) * 0.1
        return linear_sum_assignment(torch.linalg.vector_norm(difference, dim=2).float().cpu().numpy())[1]

    def lapjv(x: Tensor, noise: Tensor) -> Any:
        import lap

        return lap.lapjv(torch.cdist(x, noise).double().cpu().numpy(), return_cost=False)[0]

    def candidates(x: Tensor, noise: Tensor) -> Tensor:
        drawn = torch.randn(times * len(x), x.shape[1], device=x.device)
        columns = linear_sum_assignment(torch.cdist(x, drawn).cpu().numpy())[1]
        return drawn[torch.from_numpy(columns).to(x.device)]

    def by_host(x: Tensor, noise: Tensor) -> Tensor:
        return noise[solve(pairwise(x, noise, "l2", "fp32"), gap=0)]

    def by_device(x: Tensor, noise: Tensor) -> Tensor:
        return noise[auction(pairwise(x, noise, "l2", "fp32").float())[0]]

    cubed, draws = (lambda b, d: float(b) ** 3), (lambda b, d: float(b) * k * d)
    listed = [
        Contender("assignment", "this library, fp32", True, lambda x, n: assign(x, n)),
        Contender("assignment", "this library, bf16", True, lambda x, n: assign(x, n, precision="bf16")),
        Contender(
            "assignment", "this library, dot, bf16", True, lambda x, n: assign(x, n, cost="dot", precision="bf16")
        ),
        Contender(
            "assignment",
            "torch.cdist + scipy (denoising-diffusion-pytorch)",
            False,
            gathered(lambda x, n: linear_sum_assignment(torch.cdist(x, n).cpu().numpy())[1]),
            4097.0**3,
            cubed,
        ),
        Contender("assignment", "torch.cdist + lapx lapjv", False, gathered(lapjv), 4097.0**3, cubed),
        Contender("assignment", "official", False, gathered(official), 3e8, lambda b, d: float(b) * b * d),
        Contender("approximate", "this library, greedy", True, lambda x, n: n[greedy_index(x, n)]),
        Contender(
            "approximate", "this library, sinkhorn", True, lambda x, n: n[sinkhorn_index(x, n)[0]], 2049.0**3, cubed
        ),
        Contender(f"nearest of {k}", "this library, l2", True, lambda x, n: nearest(x, k)),
        Contender(f"nearest of {k}", "this library, dot", True, lambda x, n: nearest(x, k, cost="dot")),
        Contender(f"nearest of {k}", "reference", False, lambda x, n: explicit(x, k), 1e9, draws),
        Contender(
            f"assignment among {times} b",
            "this library",
            True,
            lambda x, n: oversample(x, times * len(x)),
            1e8,
            lambda b, d: float(b) * times * b,
        ),
        Contender(
            f"assignment among {times} b",
            "explicit candidates + scipy",
            False,
            candidates,
            1.07e9,
            lambda b, d: float(b) * times * max(d, b),
        ),
    ]
    if solvers:
        listed.append(Contender("assignment", "this library, the host solves", True, by_host))
        listed.append(Contender("assignment", "this library, the device solves", True, by_device))
    with suppress(ImportError):
        import ot

        def emd(x: Tensor, noise: Tensor) -> Any:
            # Its default of 100,000 iterations ends short of the optimum from about 4,096 rows on.
            cost, even = ot.dist(x.cpu().numpy(), noise.cpu().numpy()), ot.unif(len(x))
            plan = ot.emd(even, even, cost, numItermax=100_000_000)
            return plan.argmax(1)

        def ot_sinkhorn(x: Tensor, noise: Tensor) -> Any:
            cost = ot.dist(x.cpu().numpy(), noise.cpu().numpy())
            plan = ot.sinkhorn(ot.unif(len(x)), ot.unif(len(x)), cost, 0.05 * cost.std(), method="sinkhorn_log")
            return plan.argmax(1)

        listed.append(Contender("assignment", "POT emd", False, gathered(emd), 4097.0**3, cubed))
        listed.append(
            Contender(
                "approximate",
                "POT sinkhorn_log (largest entry, no permutation)",
                False,
                gathered(ot_sinkhorn),
                1025.0**3,
                cubed,
            )
        )
    with suppress(ImportError):
        from torchcfm.optimal_transport import OTPlanSampler

        sampler = OTPlanSampler(method="exact")
        listed.append(
            Contender(
                "assignment",
                "torchcfm exact",
                False,
                gathered(lambda x, n: sampler.get_map(x, n).argmax(1)),
                4097.0**3,
                cubed,
            )
        )
    with suppress(ImportError):
        import jax
        import ott.geometry.pointcloud
        import ott.solvers.linear

        def ott_sinkhorn(x: Tensor, noise: Tensor) -> Any:
            points = ott.geometry.pointcloud.PointCloud(
                x.cpu().numpy(), noise.cpu().numpy(), epsilon=0.05, relative_epsilon="std"
            )
            out = jax.jit(ott.solvers.linear.solve)(points)
            return np.asarray(out.matrix.argmax(1))

        listed.append(
            Contender(
                "approximate",
                "ott-jax sinkhorn (largest entry, no permutation)",
                False,
                gathered(ott_sinkhorn),
                1025.0**3,
                cubed,
            )
        )
    return listed
