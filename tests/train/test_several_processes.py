"""One run over several processes: what each trains on is its share of what one process trains on, bit for bit."""

import os
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from immiscible_diffusion import MLP, Assignment, Denoising, Digits, Nearest, Pixels, Train, fit, new_state
from immiscible_diffusion.couplings import Cached, Cells, Conditional, Flipped, Joint, Oversampled, data_points
from immiscible_diffusion.processes import results
from immiscible_diffusion.types import Batch, Coupling

pytestmark = pytest.mark.medium

COUPLINGS: dict[str, Callable[[], Coupling]] = {
    "assignment": Assignment,
    "nearest": lambda: Nearest(k=4),
    "cached": Cached,
    "conditional": Conditional,
    "oversampled": lambda: Oversampled(2),
    "semidiscrete": lambda: cells(),
}


def cells() -> Cells:
    """Return semidiscrete pairing whose potentials nobody has fitted: each noise goes to its nearest row."""
    data = data_points(Digits(), Pixels(), torch.device("cpu"))
    return Cells(data, torch.zeros(len(data)))


STEPS, BATCH = 3, 37
NET = MLP(width=16, depth=1, conditional=True)


class Recording(Denoising):
    """Flow matching that keeps what it trains on: each row with its noise."""

    def loss(self, net: Any, x: Tensor, noise: Tensor, *args: Any, **options: Any) -> Tensor:
        vars(self).setdefault("rows", []).append(torch.cat([x.flatten(1), noise.flatten(1)], 1))
        return super().loss(net, x, noise, *args, **options)


class Whole:
    """Digits without the ability to read a share alone."""

    shape, rows, classes = Digits().shape, Digits().rows, 10

    def batches(self, size: int, seed: int, start: int = 0) -> Any:
        return Digits().batches(size, seed, start)

    def held_out(self) -> Batch:
        return Digits().held_out()


def trained(
    coupling: Coupling, accelerator: Any = None, accumulate: int = 1, seed: int = 0, source: Any = None, **options: Any
) -> dict[str, Any]:
    """Train a few steps and return what was seen, and what came of it."""
    config = Train(steps=STEPS, batch=BATCH, accumulate=accumulate, warmup=0, prefetch=True, seed=seed)
    torch.manual_seed(0)
    state, method = new_state(NET.build((1, 8, 8), 10), config, accelerator), Recording()
    steps = fit(state, source or Digits(), Pixels(), coupling, method, config, accelerator=accelerator, **options)
    measured = [(step.loss, step.grad_norm) for step in steps]
    return {
        "rows": vars(method)["rows"],
        "measured": torch.tensor(measured),
        "weights": [parameter.detach() for parameter in (*state.net.parameters(), *state.ema.parameters())],
        "memory": state.memory,
    }


@dataclass(frozen=True)
class Alone(Assignment):
    """An assignment that says wrongly that it looks at one row at a time."""

    row_by_row: ClassVar[bool] = True


class Misled:
    """An accelerator that gives every process the first share, as a script without ranks would."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator, self.process_index = accelerator, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


def process(rank: int, world: int, port: int, folder: str) -> None:
    """Be one of the processes: train with every coupling."""
    from accelerate import Accelerator

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_PORT": str(port)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
    warnings.simplefilter("error", UserWarning)  # nor does a coupling say that processes share their noise
    accelerator = Accelerator(cpu=True)
    made: dict[str, Any] = {name: trained(make(), accelerator) for name, make in COUPLINGS.items()}
    made["two parts"] = trained(Assignment(), accelerator, accumulate=2)
    made["whole batches"] = trained(Assignment(), accelerator, source=Whole())
    made["own rows alone"] = trained(Alone(), accelerator)
    made["stopped"] = trained(Assignment(), accelerator, stop=lambda: rank == world - 1)
    for name, coupling, ranks in (
        ("same share", Assignment(), Misled(accelerator)),
        ("joint", Flipped(Joint()), accelerator),
    ):
        try:
            trained(coupling, ranks)
        except ValueError as error:
            made[name] = str(error)
    torch.save(made, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each of several processes saw."""
    folder, world, port = tmp_path_factory.mktemp("processes"), request.param, free_port()
    list(results(process, [(rank, world, port, str(folder)) for rank in range(world)], world))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize("name", COUPLINGS)
def test_pairs_are_those_of_one_process_and_losses_too(name: str, several: list[dict[str, Any]]) -> None:
    alone = trained(COUPLINGS[name]())
    for step in range(STEPS):
        assert torch.equal(torch.cat([outcome[name]["rows"][step] for outcome in several]), alone["rows"][step])
    for outcome in several:
        torch.testing.assert_close(outcome[name]["measured"], alone["measured"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(outcome[name]["weights"], alone["weights"], rtol=1e-3, atol=1e-4)
        assert outcome[name]["memory"].keys() == alone["memory"].keys()
        assert all(torch.equal(value, alone["memory"][key]) for key, value in outcome[name]["memory"].items())


def test_processes_that_pair_their_own_rows_alone_would_be_seen(several: list[dict[str, Any]]) -> None:
    """Control of the equality above."""
    alone = trained(Assignment())["rows"][0]
    assert not torch.equal(torch.cat([each["own rows alone"]["rows"][0] for each in several]), alone)
    x, _ = alone.tensor_split(2, dim=1)
    assert torch.equal(torch.cat([each["own rows alone"]["rows"][0][:, :64] for each in several]), x)


def test_times_and_rows_do_not_depend_on_parts_or_on_how_rows_are_read(several: list[dict[str, Any]]) -> None:
    alone = trained(Assignment())
    for made in (trained(Assignment(), accumulate=2), *(each[n] for each in several for n in ("two parts",))):
        torch.testing.assert_close(made["measured"], alone["measured"], rtol=1e-4, atol=1e-6)
    for each in several:
        assert torch.equal(each["whole batches"]["rows"][0], each["assignment"]["rows"][0])


def test_all_stop_after_the_step_where_one_wants_to(several: list[dict[str, Any]]) -> None:
    assert [len(each["stopped"]["measured"]) for each in several] == [1] * len(several)


def test_the_same_rows_everywhere_and_a_joint_coupling_are_refused(several: list[dict[str, Any]]) -> None:
    for each in several:
        assert "processes 0 and 1 train on the same noise" in each["same share"]
        assert "hand over the coupling that it should apply" in each["joint"]
