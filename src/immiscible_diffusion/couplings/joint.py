"""Pair the rows of all training processes by any coupling, in a training loop of one's own."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from immiscible_diffusion.checks import check_finite, check_integers
from immiscible_diffusion.couplings._cost import real_part
from immiscible_diffusion.couplings._drop_in import Rows
from immiscible_diffusion.couplings._misuse import warn_of, warn_once
from immiscible_diffusion.couplings._several import classes
from immiscible_diffusion.couplings._shared_noise import shared_on_purpose
from immiscible_diffusion.couplings._wrapper import Wrapper, noise_from
from immiscible_diffusion.couplings.assignment import Assignment
from immiscible_diffusion.registry import describe, register
from immiscible_diffusion.share import among_zeros, collected, handed_out
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Coupling, Float, HasRowByRow

__all__ = ["Joint"]


@register("coupling")
@dataclass(frozen=True)
class Joint(Wrapper):
    """Pair the rows of all training processes as one batch, by any coupling.

    Each process calls it with its own rows and gets the noise of its rows. All rows go to process 0, which pairs them
    and sends each process its noise: the pairs are, bit for bit, those of one process that holds the joined batch. A
    coupling that looks at one row at a time exchanges no rows. Messages go through a process group of their own, so
    that a background thread may pair the next batch while gradients are exchanged.

    The noise of a call has one seed. Where a step is given and no generator, the noise is drawn from
    ``stream(seed, step, "noise")``; else process 0 draws the seed from its generator, or from the global one. A
    coupling with a memory keeps it in process 0. The library's own training loop needs no ``Joint``.

    Marginal: the coupling's.
    Cost: in process 0 the coupling's for the n rows of all, n d numbers that arrive there and as many that leave.

    Args:
        coupling: pairs them. A coupling with a window wraps the ``Joint``; one that chooses the data for its noise
            needs none: give each process a generator of its own.
        seed: of the noise, where a step is given and no generator.

    Raises:
        ValueError: ``coupling`` is none that pairs the data of a batch.

    >>> Joint()(torch.randn(8, 3, 4, 4), step=7).shape
    torch.Size([8, 3, 4, 4])
    """

    coupling: Coupling = field(default_factory=Assignment)
    seed: int = 0
    _groups: WeakKeyDictionary[Any, Any] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the options alone: a copy makes its own group at its first call, on every process."""
        return type(self), (self.coupling, self.seed)

    @torch.no_grad()
    def draw(self, x: Tensor, rows: Rows, labels: Tensor | Sequence[Tensor] | None) -> Tensor:
        """Return noise for the rows of this process, (b, *dims), paired among the rows of all processes.

        Raises:
            ValueError: on every process, if one refuses its rows, or they differ in what must be the same everywhere.
        """
        drawn = rows.generator is not None or rows.step is None
        seed = self.seed
        if drawn:
            device = "cpu" if rows.generator is None else rows.generator.device
            seed = int(torch.randint(2**63 - 1, (1,), generator=rows.generator, device=device))
        given = {"x": x, "cond": rows.cond, "index": rows.index, "mask": rows.mask, **_by_name(labels)}
        refused, words = None, [0] * len(Header._fields)
        try:
            self._check(x, rows, labels)
            words = [1, len(x), _forms(given), _options(self.coupling, rows.step, drawn), _signed(seed)]
            words += [_signed(rows.step or 0), _some(x)]
        except ValueError as error:
            refused = error
        group = self._group()
        headers = _met(words, refused, drawn, group)
        if not drawn:
            self._watch_step(rows.step, words[-1])
        sizes = [header.rows for header in headers]
        step, x = rows.step, x.detach()
        seed = headers[0].seed if drawn else self.seed
        draws = torch.Generator(x.device).manual_seed(seed) if drawn else stream(seed, step or 0, "noise", x.device)
        tensors = {name: value.detach() for name, value in given.items() if value is not None}
        if self._row_by_row(tensors):
            rank = 0 if group is None else dist.get_rank(group)
            noise = self._paired({"x": among_zeros(x, sizes, rank)}, draws, step)
            return torch.split(noise, sizes)[rank].clone()
        if group is None:
            return self._paired(tensors, draws, step)
        return self._by_process_0(tensors, sizes, group, draws, step)

    def pair(self, x: Float[Tensor, "b *dims"], rows: Rows) -> Float[Tensor, "b *dims"]:
        """Return what ``draw`` returns."""
        return self.draw(x, rows, rows.labels)

    def _check(self, x: Tensor, rows: Rows, labels: Tensor | Sequence[Tensor] | None) -> None:
        """Raise ValueError where the coupling would refuse the rows of this process alone."""
        self.check(x, rows)
        for values in _by_name(labels).values():
            check_integers(x, labels=values)
        check_finite(x=real_part(x, rows.mask))

    def _row_by_row(self, given: dict[str, Tensor]) -> bool:
        """Return whether the noise of each row depends on that row alone."""
        alone = isinstance(self.coupling, HasRowByRow) and self.coupling.row_by_row
        return alone and not any(name == "mask" or name.startswith("labels") for name in given)

    def _paired(self, given: dict[str, Tensor], draws: torch.Generator, step: int | None) -> Tensor:
        """Return the coupling's noise for rows and what belongs to them."""
        labels = [value for name, value in given.items() if name.startswith("labels")]
        together = classes(given["x"], labels) if labels else None
        rows = Rows(given.get("cond"), draws, given.get("index"), step, given.get("mask"), together)
        with shared_on_purpose():
            return noise_from(self.coupling, given["x"], rows)

    def _by_process_0(
        self, given: dict[str, Tensor], sizes: list[int], group: Any, draws: torch.Generator, step: int | None
    ) -> Tensor:
        """Return the noise of this process's rows, which process 0 pairs among the rows of all.

        Raises:
            ValueError: the coupling failed in process 0, where the error is the coupling's own.
        """
        x = given["x"]
        backends = dist.get_backend_config(group)
        device = x.device if f"{x.device.type}:" in backends else torch.device("cuda" if x.is_cpu else "cpu")
        whole = {name: collected(value.to(device), sizes, group) for name, value in given.items()}
        noise, failed = None, None
        if dist.get_rank() == 0:
            try:
                tensors = {name: value.to(x.device) for name, value in whole.items() if value is not None}
                noise = self._paired(tensors, draws, step).to(device)
            except Exception as error:
                failed = error
        good = torch.tensor([failed is None], device=device).byte()
        dist.broadcast(good, 0, group=group)
        if failed is not None:
            raise failed
        if not good:
            raise ValueError("the coupling failed in process 0; its own error says why")
        return handed_out(noise, x.to(device), sizes, group).to(x.device)

    def _watch_step(self, step: int | None, data: int) -> None:
        """Warn where a step that stands still brings the noise of the call before to other data."""
        before, vars(self)["_before"] = vars(self).get("_before"), (step, data)
        if before is not None and before[0] == step and before[1] != data:
            warn_once(
                "step",
                f"joint was called at step {step} again, with other data: a seed and a step make one noise, so it came "
                f"again. A counter that stands still while gradients accumulate is no step: leave step= away, and "
                f"process 0 draws a seed for every call",
            )

    def _group(self) -> Any:
        """Return this coupling's separate group of all processes, made at the first call; None in one process."""
        if not (dist.is_available() and dist.is_initialized()):
            return None
        world = dist.group.WORLD
        if world not in self._groups:
            self._groups[world] = dist.new_group()
        return self._groups[world]


class Header(NamedTuple):
    """What a process says of its rows before any are exchanged; numbers of 64 bits."""

    good: int
    rows: int
    forms: int
    options: int
    seed: int
    step: int
    data: int


_SAME = {
    "forms": "shapes, types and arguments of the rows must be alike everywhere",
    "options": "the coupling, and whether a step is given, must be the same everywhere",
    "seed": "every process needs the same seed: it makes the noise of all",
    "step": "every process must call it once at every step; without step= process 0 draws the seed of every call",
}


def _met(words: list[int], refused: ValueError | None, drawn: bool, group: Any) -> list[Header]:
    """Return what every process says, after checking that all hold good rows of the same batch.

    A seed that was ``drawn`` need not be equal everywhere: the seed of process 0 is used.

    Raises:
        ValueError: they do not, on every process.
    """
    headers = [Header(*words)]
    if group is not None:
        device = "cpu" if "cpu:" in dist.get_backend_config(group) else "cuda"
        mine = torch.tensor(words, device=device)
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everyone, mine, group=group)
        headers = [Header(*values.tolist()) for values in everyone]
    if refused is not None:
        raise refused
    for rank, header in enumerate(headers):
        if not header.good:
            raise ValueError(f"process {rank} refused its rows; its own error says why")
    for name, why in _SAME.items():
        first = getattr(headers[0], name)
        for rank, header in enumerate(headers):
            if (value := getattr(header, name)) != first and not (drawn and name == "seed"):
                differ = (
                    f"{name} {value}, process 0 {first}" if name in ("seed", "step") else f"other {name} than process 0"
                )
                raise ValueError(f"process {rank} has {differ}; {why}")
    if len({header.data for header in headers}) < len(headers):
        warn_of("two processes hold the same data; each must read its own part of every batch")
    return headers


def _by_name(labels: Tensor | Sequence[Tensor] | None) -> dict[str, Any]:
    """Return every label of the rows by a name."""
    if labels is None:
        return {}
    return {f"labels {i}": each for i, each in enumerate([labels] if isinstance(labels, Tensor) else labels)}


def _forms(given: dict[str, Tensor | None]) -> int:
    forms = {name: (tuple(t.shape[1:]), str(t.dtype)) for name, t in given.items() if t is not None}
    return _digest(json.dumps(forms).encode())


def _options(coupling: Coupling, step: int | None, drawn: bool) -> int:
    try:
        described: Any = describe("coupling", coupling)
    except ValueError:  # a class of one's own
        described = type(coupling).__qualname__
    return _digest(json.dumps([described, step is None, drawn], default=str).encode())


def _some(x: Tensor) -> int:
    """Return a digest of the first and the last row."""
    return _digest(x.detach()[[0, -1]].contiguous().cpu().view(torch.uint8).numpy().tobytes())


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def _signed(number: int) -> int:
    """Return the int64 with the low 64 bits of a number."""
    return (number + 2**63) % 2**64 - 2**63
