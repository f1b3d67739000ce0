"""Optimal transport from all noise to a whole data set (Mousavi-Hosseini et al., arXiv:2509.25519).

Potentials, fitted once to a data set, split noise space into a cell of equal mass for each datum. Training draws noise
and takes the datum whose cell it falls in: the pairs of an assignment over the whole data set, whatever the batch size.
In a loop of one's own that is two lines in every step:

>>> data, generator = torch.randn(64, 3), torch.Generator().manual_seed(0)
>>> dual = fit_dual(data)
>>> noise = torch.randn(16, 3, generator=generator)
>>> x = data[assign_data(noise, data, dual)]  # and labels by the same index
"""

import json
import math
import time
import warnings
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from immiscible_diffusion.cache import alone_in_cache, cache_folder, keep_in_cache
from immiscible_diffusion.checks import check_finite, check_number, check_whole
from immiscible_diffusion.couplings._data_points import data_points, digest_of_rows
from immiscible_diffusion.couplings._potentials import (
    Potentials,
    ascend,
    assign_data,
    fit_dual,
    measured_at,
    noises_a_step,
    steps_left,
    unevenness,
)
from immiscible_diffusion.extras import needs
from immiscible_diffusion.files import digest_of
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.registry import register
from immiscible_diffusion.streams import stream
from immiscible_diffusion.tensors import batch_rows, normal
from immiscible_diffusion.types import Choice, Codec, Float, HasFlip, Prior, Source

__all__ = ["Cells", "Semidiscrete", "assign_data", "fit_dual", "unevenness"]

_KEEP_EVERY = 30.0
"""Seconds of fitting that a killed process may lose."""
_MOST = 30.0
"""Noises a datum, divided by the tolerance, after which it is given up, as where rows are equal."""


class NoiseFirst:
    """What a coupling that draws noise first shares: a refusal to be called with data, and the standard normal."""

    def __call__(
        self,
        x: Tensor,
        *,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        index: Tensor | None = None,
        step: int | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Refuse: the noise chooses the data.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "semidiscrete draws noise first and chooses the data for it: prepared(coupling, source, codec).choose(...)"
        )

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the standard normal."""
        return StandardNormal()


@register("coupling")
@dataclass(frozen=True)
class Semidiscrete(NoiseFirst):
    """Draw noise first and train on the datum whose cell of the optimal map it falls in (arXiv:2509.25519).

    The cells are those of the training rows in model space, unmirrored, and of a random posterior's mean, around which
    the datum that is trained on is drawn as ever. Where the source mirrors at random, half of the pairs are mirrored,
    noise and datum alike. Labels and captions come with the row. Rows come with replacement: an epoch's length of steps
    shows some twice and others not.

    The potentials are fitted once for a data set, a scale and a tolerance, with a progress bar; they are kept under
    ``$XDG_CACHE_HOME/immiscible-diffusion`` (``~/.cache`` where unset), and a fit that was cut goes on there. In a loop
    of one's own: ``prepared(Semidiscrete(), source, codec).choose(b, generator)``.

    Marginal: standard normal, exactly. What is off by the fit is how often each datum is shown, see ``unevenness``.
    Cost: O(b n d) for a batch, as long as the fit's; the fit draws about 1.3 / ``unevenness`` - 8 noises for each
        datum, and 32,768 for its start. CIFAR-10 at 8 x 8 pixels on one core: 0.21 were left after 9 seconds, 0.11
        after 117.
        Memory of all data in float32.

    Args:
        unevenness: the fit ends when the chi^2 distance of the cells' masses from equal ones is at most this; at 0.1
            the weights of the data are off by 16 % in total variation, at most.

    Raises:
        ValueError: ``unevenness`` is not positive.

    >>> from immiscible_diffusion import Digits, Pixels
    >>> from immiscible_diffusion.couplings import prepared
    >>> couple = prepared(Semidiscrete(unevenness=0.5), Digits(held_out_rows=1700), Pixels())
    >>> couple.choose(4, torch.Generator().manual_seed(0)).noise.shape
    torch.Size([4, 1, 8, 8])
    """

    unevenness: float = 0.1

    def __post_init__(self) -> None:
        check_number(unevenness=self.unevenness, above=0)

    def prepare(
        self, source: Source, codec: Codec, device: torch.device | None = None
    ) -> Generator[float, None, "Cells"]:
        """Fit the potentials, or go on with an unfinished fit; yield the finished share, and return the coupling.

        What may be refused is refused before the first yield. Two processes that fit the same do so one after the
        other. Closed or interrupted, the fit keeps what it has done.

        Args:
            source: its training rows have the cells; it must be able to give them one by one (``HasTrainingRows``).
            codec: takes them to model space.
            device: where data are kept and compared; the CPU if None.

        Raises:
            ValueError: a source that cannot give its rows, padded data, NaN or infinity.
        """
        data = data_points(source, codec, device or torch.device("cpu"))
        digest = digest_of(json.dumps(["potentials 2", digest_of_rows(data), self.unevenness]).encode())
        path = cache_folder() / "potentials" / f"{digest[:32]}.safetensors"
        state, ended = _read(path, digest)
        if not ended:
            yield 0.0
            with alone_in_cache(path):
                state, ended = _read(path, digest)
                if not ended:
                    state = yield from self._fitted(data, state, path, digest)
        if state is None:
            raise AssertionError("a finished fit has a state")
        return Cells(data, state.dual.to(data.device), isinstance(source, HasFlip) and source.flip)

    def _fitted(
        self, data: Tensor, start: Potentials | None, path: Path, digest: str
    ) -> Generator[float, None, Potentials]:
        """Ascend until the cells are even; yield the share that is done, and return the last state."""
        n, wanted = len(data), self.unevenness
        last = math.ceil(_MOST / wanted * n / noises_a_step(n))
        states, ended, total, kept = ascend(data, start), False, 1, time.monotonic()
        state = next(states)
        try:
            while True:
                if measured_at(n, state.steps):
                    left = self._measured(data, state)
                    ended = left <= wanted or state.steps >= last
                    if left > wanted and ended:
                        _warn(left, wanted)
                    total = max(1, state.steps + steps_left(n, state.steps, left=left, wanted=wanted))
                if not ended and time.monotonic() - kept > _KEEP_EVERY:
                    _keep(state, path, digest, ended=False)
                    kept = time.monotonic()
                yield 1.0 if ended else min(1.0, state.steps / total)
                if ended:
                    return state
                state = next(states)
        finally:
            _keep(state, path, digest, ended=ended)

    def _measured(self, data: Tensor, state: Potentials) -> float:
        """Return the unevenness with a standard error of a quarter of the tolerance."""
        draws = math.ceil(6 * math.sqrt(len(data)) / self.unevenness) + 2
        return unevenness(data, state.dual, draws=draws, generator=stream(1, state.steps, "noise", data.device))


@dataclass(frozen=True, eq=False)
class Cells(NoiseFirst):
    """A data set and, for each of its rows, the cell of noise that belongs to it; ``Semidiscrete().prepare`` makes it.

    Args:
        data: the training rows in model space, (n, *dims), on the device that is to do the work.
        dual: the potential of each row in optimal transport, which sets the size of its cell, (n,), on the same device.
        flip: mirror half of the pairs, noise and datum alike: mirrored noise is as likely as the noise itself.

    Raises:
        ValueError: potentials that do not fit the data, NaN or infinity.
    """

    data: Float[Tensor, "n *dims"]
    dual: Float[Tensor, " n"]
    flip: bool = False
    _memory: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_finite(data=batch_rows(self.data, "data"))
        if self.dual.shape != (len(self.data),) or self.dual.device != self.data.device:
            raise ValueError(
                f"{len(self.data)} rows of data on {self.data.device} need as many potentials there; "
                f"there came {tuple(self.dual.shape)} on {self.dual.device}"
            )

    def choose(self, b: int, generator: torch.Generator | None = None) -> Choice:
        """Return so many noises and the row of data that each falls on.

        Args:
            b: how many.
            generator: where noise comes from; the global one if None.

        Raises:
            ValueError: b is no whole number >= 1.
        """
        check_whole(b=b)
        data = self.data
        noise = normal((b, *data.shape[1:]), generator, data.device)
        k = assign_data(noise, data, self._memory.get("dual", self.dual))
        x, mirrored = data[k], torch.zeros(b, dtype=torch.bool, device=data.device)
        if self.flip:
            mirrored = normal((b,), generator, data.device) < 0
            side = mirrored.reshape(-1, *[1] * (x.ndim - 1))
            noise, x = (torch.where(side, rows.flip(-1), rows) for rows in (noise, x))
        return Choice(noise, k, mirrored, x)

    def memory(self) -> dict[str, Tensor]:
        """Return the potentials, (n,), so that a run goes on with its own, whatever the cache holds by then."""
        return {"dual": self._memory.get("dual", self.dual)}

    def remember(self, memory: dict[str, Tensor]) -> None:
        """Take potentials for those that the cells were made with; an empty dict goes back to these.

        Raises:
            ValueError: they belong to other data.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in memory.items()}
        if memory and shapes != {"dual": (len(self.dual),)}:
            raise ValueError(f"these cells remember {len(self.dual)} potentials, dual; there came {shapes}")
        self._memory.clear()
        self._memory.update({name: tensor.to(self.dual.device) for name, tensor in memory.items()})


def _warn(left: float, wanted: float) -> None:
    warnings.warn(
        f"the cells of semidiscrete stay uneven: {left:.3g}, not coupling.unevenness = {wanted:.3g}; rows that are "
        "equal share a cell that no potential divides. Training goes on with these",
        stacklevel=3,
    )


def _keep(state: Potentials, path: Path, digest: str, *, ended: bool) -> None:
    with needs("nets", "potentials need safetensors"):
        from safetensors.torch import save
    record = json.dumps({"steps": state.steps, "ended": ended, "digest": digest})
    dual = state.dual.cpu().contiguous()
    checked = digest_of(record.encode() + dual.numpy().tobytes())
    keep_in_cache(path, save({"dual": dual}, {"record": record, "checked": checked}))


def _read(path: Path, digest: str) -> tuple[Potentials | None, bool]:
    """Return the stored potentials and whether their fit had ended; None if there are none or the file is damaged."""
    with needs("nets", "potentials need safetensors"):
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            dual = file.get_tensor("dual").clone()
    except (OSError, SafetensorError):
        return None, False
    text = metadata.get("record", "")
    if metadata.get("checked") != digest_of(text.encode() + dual.numpy().tobytes()):
        return None, False
    record = json.loads(text)
    if record["digest"] != digest:
        return None, False
    return Potentials(dual, record["steps"]), record["ended"]
