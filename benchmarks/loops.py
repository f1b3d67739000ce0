"""Whole training loops: this library's, diffusers' example, denoising-diffusion-pytorch's and a plain DDP loop.

All train the same U-Net in float32 on the same images, which are in memory, so that reading files counts for none.
"""

import io
import os
import random
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.gpu.data import Resident
from benchmarks.measuring import now, quartiles
from immiscible_diffusion.codecs import Pixels
from immiscible_diffusion.nets import UNet
from immiscible_diffusion.processes import results
from immiscible_diffusion.registry import make
from immiscible_diffusion.share import Share
from immiscible_diffusion.streams import stream_seed
from immiscible_diffusion.train import Train, fit, new_state
from immiscible_diffusion.types import Method

__all__ = ["bench_loops", "bench_processes", "diffusers_loop", "eps_method", "loops_line", "trainer_version"]

Loop = Generator[object, None, None]


def bench_loops(images: Tensor, net: UNet, *, batch: int, steps: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield for every loop in one process the images a second, and the ratio to diffusers' example.

    The loops take turns, some steps each, in a new order every round. A ratio is the median over rounds of the ratio
    within a round: above 1 is faster than the first loop. That one is listed twice: how far its two rates differ is the
    error of the measurement. Ratios of computing time leave out what else the machine does, and all waiting.

    Args:
        images: (n, c, h, w), uint8, in memory.
        net: the description of the U-Net; all loops start from the same weights.
        batch: images a step.
        steps: of each loop in a round, after one that is not counted.
        rounds: turns of every loop.
    """

    def built() -> nn.Module:
        return _built(net, images)

    loops: dict[str, Loop] = {
        "diffusers' unconditional example": diffusers_loop(images, built(), batch=batch),
        "this library, independent": _ours(images, built(), "independent", batch),
        "this library, assignment": _ours(images, built(), "assignment", batch),
        "this library, assignment, prefetched": _ours(images, built(), "assignment", batch, prefetch=True),
    }
    if trainer_version():
        for immiscible in (False, True):
            name = "denoising-diffusion-pytorch's Trainer" + (", immiscible" if immiscible else "")
            loops[name] = _trainer(images, built(), batch, immiscible=immiscible)
    loops["diffusers' unconditional example, again"] = diffusers_loop(images, built(), batch=batch)
    yield from _rows(_in_turn(loops, steps, rounds), 1, batch, steps)


def bench_processes(
    images: Tensor, net: UNet, *, world: int, batch: int, steps: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Yield for every loop in several processes the images a second, and the ratio to plain DDP around the same net.

    Plain DDP draws independent noise; it clips, averages the weights and takes the same optimizer as this library.

    Args:
        images: as for ``bench_loops``.
        net: the same.
        world: processes on this machine, over gloo, with one thread each.
        batch: images a step of all processes together.
        steps: of each loop in a round, after one that is not counted.
        rounds: turns of every loop.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    tasks = [(rank, world, port, images, net, batch, steps, rounds) for rank in range(world)]
    (spent,) = [result for result in results(_process, tasks, world) if result is not None]
    yield from _rows(spent, world, batch, steps)


def _process(
    rank: int, world: int, port: int, images: Tensor, net: UNet, batch: int, steps: int, rounds: int
) -> dict[str, list[tuple[float, float]]] | None:
    """Be one of the processes; the first returns the seconds of a step of each loop in each round."""
    from accelerate import Accelerator

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_PORT": str(port)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    loops: dict[str, Loop] = {"plain DDP": _ddp(images, _built(net, images), batch, Share(rank, world))}
    for name, prefetch in (("independent", False), ("assignment", False), ("assignment", True)):
        label = f"this library, {name}" + (", prefetched" if prefetch else "")
        loops[label] = _ours(images, _built(net, images), name, batch, prefetch=prefetch, accelerator=accelerator)
    loops["plain DDP, again"] = _ddp(images, _built(net, images), batch, Share(rank, world))
    spent = _in_turn(loops, steps, rounds, dist.barrier)
    dist.destroy_process_group()
    return spent if rank == 0 else None


def _in_turn(
    loops: Mapping[str, Loop], steps: int, rounds: int, together: Callable[[], object] = lambda: None
) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of a step of each loop in each round, by the clock and of this process's computing.

    The order of the loops is another in every round, the same in all processes, for which ``together`` waits.
    """
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    order = random.Random(0)  # noqa: S311
    for loop in loops.values():
        next(loop)
    for _ in range(rounds):
        for name in order.sample([*loops], len(loops)):
            loop = loops[name]
            next(loop)
            together()
            begun, computing = now(), time.process_time()
            for _ in range(steps):
                next(loop)
            computed = time.process_time() - computing
            together()
            spent[name].append(((now() - begun) / steps, computed / steps))
    for loop in loops.values():
        loop.close()
    return spent


def _rows(
    spent: Mapping[str, list[tuple[float, float]]], world: int, batch: int, steps: int
) -> Iterator[dict[str, Any]]:
    first, base = next(iter(spent.items()))
    for name, pairs in spent.items():
        rates = [batch / seconds for seconds, _ in pairs]
        ratios, computing = ([b[i] / pair[i] for b, pair in zip(base, pairs, strict=True)] for i in (0, 1))
        yield {
            "loop": name,
            "processes": world,
            "threads": torch.get_num_threads(),
            "batch": batch,
            "steps": steps,
            "rounds": len(pairs),
            "images_per_second": median(rates),
            "quartiles": quartiles(rates),
            "cpu_ms": 1000 * median(computed for _, computed in pairs),
            "baseline": first,
            "ratio": median(ratios),
            "ratio_quartiles": quartiles(ratios),
            "cpu_ratio": median(computing),
            "cpu_ratio_quartiles": quartiles(computing),
        }


def _built(net: UNet, images: Tensor) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(0, 0, "net"))
        return net.build(tuple(images.shape[1:]), None)


def eps_method() -> Method:
    """Return DDPM's training: eps is predicted at one of 1,000 whole levels."""
    method: Method = make("method", {"use": "denoising", "schedule": {"use": "betas"}, "predict": "eps"})
    return method


def _ours(
    images: Tensor, net: nn.Module, coupling: str, batch: int, *, prefetch: bool = False, accelerator: Any = None
) -> Loop:
    config = Train(steps=10**9, batch=batch, lr=1e-4, ema=0.999, prefetch=prefetch)
    state = new_state(net, config, accelerator)
    source, pairing = Resident(images), make("coupling", coupling)
    yield from fit(state, source, Pixels(), pairing, eps_method(), config, accelerator=accelerator)


def diffusers_loop(
    images: Tensor, net: Any, *, batch: int, bf16: bool = False, compiled: bool = False
) -> Generator[float, None, None]:
    """Yield the loss after each step, by the arithmetic of diffusers' example of unconditional training.

    Noise is ``randn_like``, the time a whole level, ``add_noise`` the scheduler's, the target the noise; then the mean
    squared error, clipping at 1, AdamW and diffusers' own averaged weights. The script around it (accelerate, logging)
    is left out; the images are on the device, as they are for the other loops.
    """
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    device, model = images.device, net.model
    scheduler, ema = DDPMScheduler(1000), EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    if compiled:
        model.compile()
    for rows in Resident(images).batches(batch, 0):
        clean = Pixels().encode(rows.raw)
        noise = torch.randn_like(clean)
        steps = torch.randint(0, 1000, (len(clean),), device=device)
        noisy = scheduler.add_noise(clean, noise, steps)
        with torch.autocast(device.type, torch.bfloat16, bf16):
            predicted = model(noisy, steps).sample
        loss = nn.functional.mse_loss(predicted.float(), noise)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        yield float(loss.detach())  # the example logs it at every step


def trainer_version() -> str:
    """Return the version of denoising-diffusion-pytorch, or the empty text where it cannot be imported."""
    with suppress(ImportError, RuntimeError, PackageNotFoundError):  # RuntimeError: a torchvision for another torch
        import denoising_diffusion_pytorch  # noqa: F401

        return version("denoising-diffusion-pytorch")
    return ""


class _ForTrainer(nn.Module):
    """The net as ``GaussianDiffusion`` calls it."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net.model
        self.channels = self.out_dim = int(net.model.config.in_channels)
        self.self_condition = False

    def forward(self, x_t: Tensor, t: Tensor, cond: None = None) -> Tensor:
        """Return the prediction, (b, c, h, w)."""
        prediction: Tensor = self.net(x_t, t).sample
        return prediction


def _trainer(images: Tensor, net: nn.Module, batch: int, *, immiscible: bool) -> Loop:
    """Yield after each step of the package's own ``Trainer.train``, with its defaults but for the objective.

    It gets the batches of the other loops in place of those of its loader, which would decode files. Its Adam, its
    clipping and its averaging at every tenth step stay.
    """
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer

    os.environ["ACCELERATE_USE_CPU"] = "true"
    options: dict[str, Any] = {"objective": "pred_noise", "beta_schedule": "linear", "immiscible": immiscible}
    diffusion = GaussianDiffusion(_ForTrainer(net), image_size=int(images.shape[-1]), **options)
    with TemporaryDirectory() as folder, _quiet():
        for i in range(100):  # the least that it takes; none is read
            (Path(folder) / f"{i}.png").touch()
        trainer = Trainer(
            diffusion, folder, results_folder=f"{folder}/results", calculate_fid=False, save_and_sample_every=10**9
        )
    trainer.dl = (rows.raw.float() / 255 for rows in Resident(images).batches(batch, 0))
    while True:
        trainer.train_num_steps = trainer.step + 1
        with _quiet():
            trainer.train()
        yield trainer.step


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the Trainer's progress bar and its closing words off the terminal."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _ddp(images: Tensor, net: nn.Module, batch: int, share: Share) -> Loop:
    """Yield the loss after each step of a plain loop around ``DistributedDataParallel``, with averaged weights."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = nn.parallel.DistributedDataParallel(net)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999))  # type: ignore[no-untyped-call]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0)
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    torch.manual_seed(share.rank)
    for rows in Resident(images).batches(batch, 0):
        clean = Pixels().encode(share.of(rows.raw))
        noise, steps = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
        alpha = alphas[steps][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        loss = nn.functional.mse_loss(model(noisy, steps / 1000), noise)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(net)
        yield float(loss.detach())


def loops_line(row: Mapping[str, Any]) -> str:
    """Return one measured row for the terminal."""
    (low, high), (least, most) = row["quartiles"], row["ratio_quartiles"]
    return (
        f"{row['processes']} x {row['loop']:<42} {row['images_per_second']:7.1f} images/s ({low:.1f} to {high:.1f})  "
        f"{row['ratio']:.3f} of {row['baseline']} ({least:.3f} to {most:.3f}); by computing time {row['cpu_ratio']:.3f}"
    )
