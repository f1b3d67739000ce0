"""How large each part of a GPU run is: the measurement itself, and its miniature for a CPU."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.rows import Rows

__all__ = ["DRY", "PARTS", "REAL", "Scale", "Site"]

PARTS = ("effect", "tests", "couplings", "throughput")
"""In the order of their importance, which is that of running them."""


@dataclass(frozen=True)
class Scale:
    """The sizes of all parts.

    Args:
        limits: part -> the seconds it may take.
        tests: arguments of pytest.
        sizes: (b, d) of the pairings, the largest last.
        seconds: how long one pairing of one size is repeated.
        semidiscrete: images of the semidiscrete coupling.
        modes: how the training throughput is measured, each of ``MODES``.
        net: (channels, layers, attention) of the U-Net whose step is timed with pairing, and of the effect.
        large: the same of the net of the training throughput.
        batch: images a training step.
        rounds: how often each training loop has its turn.
        steps: training steps of a turn.
        first: the training step of the first evaluation; each later one comes after twice as many.
        last: the training step at which a study ends.
        warmup: training steps over which the learning rate rises.
        samples: images generated for a value of FID.
        sampling: numbers of sampling steps.
    """

    limits: dict[str, float]
    tests: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    seconds: float
    semidiscrete: int
    modes: tuple[str, ...]
    net: tuple[tuple[int, ...], int, tuple[int, ...]]
    large: tuple[tuple[int, ...], int, tuple[int, ...]]
    batch: int
    rounds: int
    steps: int
    first: int
    last: int
    warmup: int
    samples: int
    sampling: tuple[int, ...]


REAL = Scale(
    limits={"tests": 60, "couplings": 90, "throughput": 90, "effect": 300},
    tests=("-m", "gpu", "tests/couplings"),
    sizes=(
        *((b, 3072) for b in (256, 512, 1024, 2048, 4096)),
        *((256, 16384), (1024, 16384), (256, 65536), (1024, 65536)),
        *((4096, 16384), (4096, 65536), (8192, 3072), (8192, 65536)),
    ),
    seconds=0.3,
    semidiscrete=10_000,
    modes=(
        "eager, float32",
        "eager, bfloat16",
        "eager, bfloat16, channels last",
        "compiled, bfloat16, channels last",
    ),
    net=((80, 160, 160), 2, (1,)),
    large=((128, 256, 256, 256), 2, (1,)),
    batch=256,
    rounds=5,
    steps=6,
    first=500,
    last=16_000,
    warmup=200,
    samples=5000,
    sampling=(2, 5, 10, 20, 50),
)
"""U-Nets of 10.1 and 35.7 million parameters, on images of 32 x 32."""

DRY = Scale(
    limits=dict.fromkeys(PARTS, 600),
    tests=("tests/test_layers.py", "-k", "folder or wrong_import"),
    sizes=((16, 48), (16, 192)),
    seconds=0.0,
    semidiscrete=64,
    modes=("eager, float32", "eager, bfloat16, channels last"),
    net=((8, 16), 1, ()),
    large=((8, 16), 1, ()),
    batch=8,
    rounds=2,
    steps=1,
    first=1,
    last=2,
    warmup=2,
    samples=8,
    sampling=(1, 2),
)
"""Everything in miniature, within seconds on one CPU thread."""


@dataclass(frozen=True)
class Site:
    """A part's device, data and output file.

    Args:
        rows: records what is measured.
        scale: how large the part is.
        pack: what ``make gpu-pack`` built; None makes images up.
        state: the folder of training states in full, on this machine's disk.
        earlier: the results of an earlier run, with its checkpoints.
        device: ``cuda`` or ``cpu``.
        limit: seconds until the part must have ended.
    """

    rows: Rows
    scale: Scale
    pack: Path | None
    state: Path
    earlier: Path | None
    device: str
    limit: float
    _begun: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Return the seconds that are left for this part."""
        return self.limit - (time.monotonic() - self._begun)
