"""Pairing over processes against one process that holds the joined batch, and over an accumulation window.

The tests start three processes once and look at what they wrote.
"""

import copy
import json
import pickle
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from immiscible_diffusion.couplings import (
    Assignment,
    Cached,
    Cells,
    Conditional,
    Flipped,
    Greedy,
    Independent,
    Joint,
    Mixed,
    Nearest,
    Oversampled,
    Rotated,
    Sinkhorn,
    Viewed,
    Warmup,
    Windowed,
    assign,
    assign_window,
)
from immiscible_diffusion.couplings._drop_in import DropIn, Rows
from immiscible_diffusion.registry import describe, make
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Coupling
from several import several

pytestmark = pytest.mark.medium

SIZES = [9, 1, 6]
"""Rows of the processes, in the order of ranks."""
ALL = sum(SIZES)


def cut(x: Tensor, sizes: list[int]) -> list[Tensor]:
    return list(torch.split(x, sizes))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = 2 * randn(ALL, 3, 4)
LABELS = torch.arange(ALL) % 2
MASK = (torch.arange(4) <= torch.arange(ALL)[:, None] % 4)[:, None]

COUPLINGS: dict[str, Callable[[], Coupling]] = {
    "assignment": Assignment,
    "cached": Cached,
    "conditional": Conditional,
    "flipped": Flipped,
    "greedy": Greedy,
    "independent": Independent,
    "mixed": lambda: Mixed(start=0.5, end=0.5),
    "nearest": lambda: Nearest(k=4),
    "oversampled": lambda: Oversampled(times=2),
    "rotated": lambda: Rotated(seed=3),
    "sinkhorn": Sinkhorn,
    "viewed": lambda: Viewed("standardised"),
    "warmup": lambda: Warmup(steps=0),
}
CALLS: dict[str, dict[str, Any]] = {
    "float64": {"x": X.double()},
    "bfloat16": {"x": X.bfloat16()},
    "labels": {"labels": LABELS},
    "labels twice": {"labels": (LABELS, torch.arange(ALL) % 3)},
    "mask": {"mask": MASK},
    "no step": {"step": None},
    "a generator": {"generator": 4},
    "several tensors": {"x": (X, X.flatten(1)[:, :5])},
}


def called(couple: Coupling, rank: int | None, *, x: Any = X, **options: Any) -> Any:
    """Call a coupling with the rows of a process, or with all of them."""

    def mine(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(mine, value))
        return cut(value, SIZES)[rank] if isinstance(value, Tensor) and rank is not None else value

    given = {"cond": LABELS, "index": torch.arange(ALL), "step": 7, **options}
    if "generator" in given:
        given["generator"] = stream(given["generator"], rank or 0, "noise")  # others than the first one's are not used
    return couple(mine(x), **{name: mine(value) for name, value in given.items()})


def message_of(call: Callable[[], object]) -> str:
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


class Counted:
    """Counts the bytes that this process hands to ``all_gather`` and ``gather``."""

    def __enter__(self) -> "Counted":
        self.bytes, self.patches = 0, ExitStack()
        for name, place in (("all_gather", 1), ("gather", 0)):
            self.patches.enter_context(patch.object(dist, name, self._counting(getattr(dist, name), place)))
        return self

    def _counting(self, send: Callable[..., object], place: int) -> Callable[..., object]:
        def counting(*args: Any, **options: Any) -> object:
            self.bytes += args[place].nbytes
            return send(*args, **options)

        return counting

    def __exit__(self, *error: object) -> None:
        self.patches.close()


@dataclass(frozen=True)
class Failing(DropIn):
    """A coupling that fails after its rows were found good."""

    def pair(self, x: Tensor, rows: Rows) -> Tensor:
        raise RuntimeError("no memory is left")


def process(rank: int, folder: str) -> None:
    """Carry out every case as one of three processes, and write what came."""
    dist.init_process_group("gloo")
    paired, said, moved = {}, {}, {}
    for name, plain in COUPLINGS.items():
        with Counted() as counted:
            paired[name] = called(Joint(plain(), seed=3), rank)
        moved[name] = counted.bytes
    for name, options in CALLS.items():
        torch.manual_seed(8 + rank)
        paired[name] = called(Joint(seed=3), rank, **options)
    remembering = Joint(Cached(), seed=3)
    paired["memory"] = torch.cat([called(remembering, rank, step=step) for step in (1, 2)])
    paired["kept"] = torch.tensor(len(remembering.memory()))
    torch.manual_seed(8 + rank)
    couple, mine = Joint(), cut(X, SIZES)[rank]
    paired["one call"], paired["another call"] = couple(mine), couple(mine)
    bad = mine.clone()
    bad[0, 0, 0] = torch.nan if rank == 2 else bad[0, 0, 0]
    said["nan"] = message_of(lambda: couple(bad, step=4))
    said["empty"] = message_of(lambda: couple(mine[: 0 if rank == 1 else None], step=4))
    said["mask"] = message_of(lambda: couple(mine, step=4, mask=mine > 0 if rank < 2 else mine))
    said["labels"] = message_of(lambda: couple(mine, step=4, labels=torch.zeros(len(mine) + (rank == 0)).long()))
    said["seed"] = message_of(lambda: Joint(seed=int(rank == 2))(mine, step=4))
    said["a step here alone"] = message_of(lambda: couple(mine, step=4 if rank == 2 else None))
    said["step"] = message_of(lambda: couple(mine, step=4 + (rank == 1)))
    said["length"] = message_of(lambda: couple(mine[..., : 4 - (rank == 2)], step=4))
    said["a condition here alone"] = message_of(lambda: couple(mine, cond=mine if rank else None, step=4))
    said["options"] = message_of(lambda: Joint(Assignment("dot") if rank == 1 else Assignment())(mine, step=4))
    said["failed"] = message_of(lambda: Joint(Failing())(mine, step=4))
    for step, (name, data) in enumerate((("same data", X[:5]), ("other data", mine)), 5):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            couple(data, step=step)
        said[name] = " ".join(str(warning.message) for warning in caught)
    torch.save(paired, Path(folder) / f"{rank}.pt")
    (Path(folder) / f"{rank}.json").write_text(json.dumps({"said": said, "moved": moved}), encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Start three processes; return for each what it was paired with and said."""
    folder = tmp_path_factory.mktemp("processes")
    several(process, 3, str(folder))
    return [
        {
            "paired": torch.load(folder / f"{rank}.pt", weights_only=True),
            **json.loads((folder / f"{rank}.json").read_text()),
        }
        for rank in range(3)
    ]


def joined(written: list[dict[str, Any]], name: str) -> Any:
    parts = [each["paired"][name] for each in written]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(several) for several in zip(*parts, strict=True))
    return torch.cat(parts)


@pytest.mark.filterwarnings("ignore::immiscible_diffusion.MisuseWarning")
@pytest.mark.parametrize("name", COUPLINGS)
def test_processes_get_what_one_process_gives_the_joined_batch(name: str, written: list[dict[str, Any]]) -> None:
    assert [len(each["paired"][name]) for each in written] == SIZES
    assert torch.equal(joined(written, name), called(Joint(COUPLINGS[name](), seed=3), None))
    assert not torch.equal(joined(written, name), called(Joint(COUPLINGS[name](), seed=4), None))  # control


@pytest.mark.parametrize("name", CALLS)
def test_arguments_and_types_come_along(name: str, written: list[dict[str, Any]]) -> None:
    torch.manual_seed(8)
    expected = called(Joint(seed=3), None, **CALLS[name])
    torch.testing.assert_close(joined(written, name), expected, rtol=0, atol=0)
    if name in ("labels", "labels twice", "mask"):
        assert not torch.equal(expected, called(Joint(seed=3), None))


def test_processes_on_their_own_or_at_another_step_differ(written: list[dict[str, Any]]) -> None:
    """Control of the equalities above."""
    alone = [Joint(seed=3)(part, step=7) for part in cut(X, SIZES)]
    assert not torch.equal(joined(written, "assignment"), torch.cat(alone))
    assert not torch.equal(joined(written, "assignment"), called(Joint(seed=3), None, step=8))


def test_memory_is_kept_by_process_0(written: list[dict[str, Any]]) -> None:
    couple = Joint(Cached(), seed=3)
    first, second = (called(couple, None, step=step) for step in (1, 2))
    halves = [result["paired"]["memory"].tensor_split(2) for result in written]
    assert torch.equal(torch.cat([half[0] for half in halves]), first)
    assert torch.equal(torch.cat([half[1] for half in halves]), second)
    assert [int(result["paired"]["kept"]) for result in written] == [len(couple.memory()), 0, 0] != [0, 0, 0]
    other = Joint(Cached(), seed=3)
    other.remember(couple.memory())
    assert torch.equal(called(other, None, step=3), called(couple, None, step=3))


def test_a_coupling_of_single_rows_exchanges_none(written: list[dict[str, Any]]) -> None:
    row_by_row = {"independent", "nearest"}
    for each in written:
        assert {name for name, count in each["moved"].items() if count == 56} == row_by_row
        assert each["moved"]["assignment"] == 56 + max(SIZES) * (12 * 4 + 8 + 8)  # data, condition and index


def test_process_0_draws_the_seed_of_a_call_without_a_step(written: list[dict[str, Any]]) -> None:
    torch.manual_seed(8)
    couple = Joint()
    assert torch.equal(joined(written, "one call"), couple(X))
    assert torch.equal(joined(written, "another call"), couple(X))
    assert not torch.equal(joined(written, "one call"), joined(written, "another call"))


SAID: dict[str, tuple[str, list[str]]] = {
    "nan": ("process 2 refused its rows", ["", "", "x holds NaN or infinity, first in row 0"]),
    "empty": ("process 1 refused its rows", ["", "x has shape (0, 3, 4); it must be", ""]),
    "mask": ("process 2 refused its rows", ["", "", "mask is a torch.float32 tensor (6, 3, 4)"]),
    "labels": ("process 0 refused its rows", ["labels ", "", ""]),
    "seed": ("process 2 has seed 1, process 0 0; every process needs the same seed", [""] * 3),
    "step": ("process 1 has step 5, process 0 4; every process must call it once at every step", [""] * 3),
    "a step here alone": ("whether a step is given, must be the same everywhere", [""] * 3),
    "length": ("process 2 has other forms than process 0; shapes, types and arguments", [""] * 3),
    "a condition here alone": ("process 1 has other forms than process 0", [""] * 3),
    "options": ("process 1 has other options than process 0; the coupling", [""] * 3),
    "failed": ("the coupling failed in process 0; its own error says why", ["no memory is left", "", ""]),
    "same data": ("two processes hold the same data", [""] * 3),
}


@pytest.mark.parametrize("what", SAID)
def test_every_process_says_what_is_wrong(what: str, written: list[dict[str, Any]]) -> None:
    common, own = SAID[what]
    for rank, each in enumerate(written):
        assert (own[rank] or common) in each["said"][what]


def test_good_data_raise_no_warning(written: list[dict[str, Any]]) -> None:
    assert [each["said"]["other data"] for each in written] == [""] * 3


# One process.


def test_the_noise_is_a_permutation_of_one_draw() -> None:
    noise = torch.randn(X.shape, generator=stream(3, 7, "noise"))
    assert torch.equal(Joint(seed=3)(X, step=7), assign(X, noise))


def test_the_seed_comes_from_generator_or_step() -> None:
    x, couple = randn(6, 4), Joint(seed=2)
    state = torch.get_rng_state()
    assert torch.equal(couple(x, step=1), couple(x, step=1))
    assert torch.equal(couple(x, generator=stream(0, 0, "noise")), couple(x, generator=stream(0, 0, "noise")))
    assert torch.equal(torch.get_rng_state(), state)
    drawn = [couple(x, step=1), couple(x, step=2), couple(x, generator=stream(0, 0, "noise")), Joint(seed=1)(x, step=1)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn += [couple(x), couple(x)]
        torch.manual_seed(0)
        assert torch.equal(couple(x), drawn[-2])
    assert len({tuple(noise.flatten().tolist()) for noise in drawn}) == len(drawn)


def test_a_step_that_stands_still_is_told_once() -> None:
    x, other = randn(2, 6, 4)

    def told(call: Callable[[Joint], object]) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(Joint())
        return [str(warning.message) for warning in caught]

    (message,) = told(lambda couple: [couple(data, step=7) for data in (x, other, x)])
    assert "joint was called at step 7 again, with other data" in message
    assert "leave step= away" in message
    assert told(lambda couple: [couple(data, step=7) for data in (x, x)]) == []
    assert told(lambda couple: [couple(data, step=step) for step, data in enumerate((x, other))]) == []
    assert told(lambda couple: [couple(data) for data in (x, other)]) == []
    assert told(lambda couple: [couple(data, generator=stream(0, 0, "noise"), step=7) for data in (x, other)]) == []


def test_the_coupling_is_its_own_configuration() -> None:
    couple = Joint(Nearest(k=3), seed=4)
    plain = describe("coupling", couple)
    assert plain == {"use": "joint", "coupling": {"use": "nearest", "k": 3, "cost": "l2"}, "seed": 4}
    assert make("coupling", plain) == couple
    assert isinstance(couple, Coupling)


def test_couplings_that_choose_data_or_windows_stand_outside() -> None:
    with pytest.raises(ValueError, match="which chooses the data for its noise; it cannot be wrapped"):
        Joint(Cells(randn(4, 2), torch.zeros(4)))
    with pytest.raises(ValueError, match="wrap it last"):
        Joint(Windowed(Assignment()))
    assert Windowed(Joint())(X, step=3).shape == X.shape


def test_a_copy_has_the_options_and_no_process_group() -> None:
    x = randn(5, 3)
    couple = Joint(Assignment("dot"), seed=4)
    world = Group()
    couple._groups[world] = world
    with pytest.raises(TypeError):
        copy.deepcopy(couple._groups)  # control: what a plain copy would meet
    for other in (copy.copy(couple), copy.deepcopy(couple), pickle.loads(pickle.dumps(couple))):  # noqa: S301
        assert other == couple
        assert other is not couple
        assert len(other._groups) == 0
        assert torch.equal(other(x, step=1), couple(x, step=1))
    wrapped = Flipped(couple)
    assert pickle.loads(pickle.dumps(wrapped)) == copy.deepcopy(wrapped) == wrapped  # noqa: S301


class Group:
    """Stand for a process group: it can be neither copied nor pickled."""

    def __reduce__(self) -> str:
        raise TypeError("a process group belongs to its process")


@pytest.mark.parametrize("sizes", [[5], [4, 4, 4], [1, 7, 2]])
def test_a_window_is_one_assignment(sizes: list[int]) -> None:
    xs = cut(randn(sum(sizes), 3, 4), sizes)
    noises = assign_window(xs, cost="dot", generator=stream(0, 0, "noise"))
    drawn = torch.randn(sum(sizes), 3, 4, generator=stream(0, 0, "noise"))
    assert [noise.shape for noise in noises] == [x.shape for x in xs]
    assert torch.equal(torch.cat(noises), assign(torch.cat(xs), drawn, cost="dot"))
    apart = torch.cat([assign(x, noise, cost="dot") for x, noise in zip(xs, cut(drawn, sizes), strict=True)])
    assert torch.equal(torch.cat(noises), apart) == (len(sizes) == 1)
    labels, mask = cut(torch.arange(sum(sizes)) % 2, sizes), cut(randn(sum(sizes), 3, 1) > 0, sizes)
    whole = assign(torch.cat(xs), drawn, labels=torch.cat(labels), mask=torch.cat(mask))
    assert torch.equal(torch.cat(assign_window(xs, generator=stream(0, 0, "noise"), labels=labels, mask=mask)), whole)


@pytest.mark.usefixtures("unchecked")
def test_misuse_is_named() -> None:
    x = randn(3, 2)
    for call, message in (
        (lambda: Joint()(x.long(), step=0), "x is a torch.int64 tensor"),
        (lambda: Joint()(x / 0, step=0), "x holds NaN or infinity, first in row 0"),
        (lambda: assign_window([]), "xs holds no micro-batch; a window needs at least one"),
        (lambda: assign_window([x, x.long()]), r"xs\[1\] is a torch.int64 tensor"),
        (lambda: assign_window([x, x.double()]), r"xs\[1\] has rows \(2, torch.float64.*; micro-batches may differ"),
        (lambda: assign_window([x, x[:, :1]]), r"xs\[1\] has rows \(1, torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.filterwarnings("ignore:warmup depends on the training step")
@pytest.mark.parametrize(
    "wrap", [Flipped, Rotated, lambda couple: Warmup(couple, 1)], ids=["flipped", "rotated", "warmup"]
)
def test_a_wrapped_joint_without_a_step_has_fresh_noise_at_every_call(wrap: Callable[[Coupling], Coupling]) -> None:
    couple, x = wrap(Joint()), randn(8, 4)
    first, second = (couple(x).sort(0).values for _ in range(2))  # of one x, so that no warning would tell either
    assert not torch.equal(first.abs(), second.abs())
    again = [couple(x, step=3) for _ in range(2)]
    assert isinstance(couple, Flipped) or torch.equal(*again)  # the control: a step that stands still
