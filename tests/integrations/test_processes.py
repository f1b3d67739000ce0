"""Joint()(x), without a step, under torchrun's environment, accelerate and Lightning: right whatever the seeds.

Run as a program, this file is one of two processes; the test starts them and looks at their pairs.
"""

import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from immiscible_diffusion.couplings import Joint, assign_index, couple

WHY = "needs Lightning: pip install 'immiscible-diffusion[hosts]'"
STEPS = 3


def draw(folder: Path, host: str) -> None:
    """Pair a few batches of this process, and write what came and what was told."""
    rank, joint = dist.get_rank(), Joint()
    generator = torch.Generator().manual_seed(100 + rank)
    batches = [torch.randn(8, 6, generator=generator) for _ in range(STEPS)]
    noises = [joint(x) for x in batches]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for turn in range(2):  # one after the other, so that it is known who comes second
            if turn == rank:
                alone = couple(batches[0])
            dist.barrier()
    messages = " ".join(str(warning.message) for warning in caught)
    written = {"x": torch.stack(batches), "noise": torch.stack(noises), "alone": alone, "told": messages}
    torch.save(written, folder / f"{host}-{rank}.pt")


def torchrun(folder: Path, seed: int) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(seed + dist.get_rank())
    draw(folder, "torchrun")
    dist.destroy_process_group()


def accelerate(folder: Path, seed: int) -> None:
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    accelerator = Accelerator(cpu=True)
    set_seed(seed)  # as diffusers' scripts do with --seed: alike everywhere
    assert accelerator.num_processes == 2
    draw(folder, "accelerate")
    dist.destroy_process_group()


def lightning(folder: Path, seed: int) -> None:
    import lightning

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(6, 6)

        def training_step(self, batch: Any, step: int) -> Any:
            if step == 0:
                draw(folder, "lightning")
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    lightning.seed_everything(seed)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 6)), batch_size=2)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_steps": 1}
    lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp", **options).fit(Module(), loader)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"torchrun": torchrun, "accelerate": accelerate, "lightning": lightning}[sys.argv[2]](Path(sys.argv[1]), 42)
    raise SystemExit


def started(folder: Path, host: str) -> list[dict[str, Any]]:
    """Start two processes as torchrun does, and return what each wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "0"}
    programs = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), host],
            stderr=subprocess.PIPE,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"},
        )
        for rank in range(2)
    ]
    try:
        for program in programs:
            _, error = program.communicate(timeout=300)
            assert program.returncode == 0, error.decode()
    finally:
        for program in programs:
            program.kill()
    return [torch.load(folder / f"{host}-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("torchrun", marks=pytest.mark.slow),
        pytest.param("accelerate", marks=pytest.mark.slow),
        pytest.param("lightning", marks=pytest.mark.slow),
    ],
)
def test_the_joined_batch_is_paired_and_its_noise_fresh(host: str, tmp_path: Path) -> None:
    if host != "torchrun":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(host, reason=WHY)
    first, second = started(tmp_path, host)
    for step in range(STEPS):
        x, noise = (torch.cat([process[name][step] for process in (first, second)]) for name in ("x", "noise"))
        assert torch.equal(assign_index(x, noise), torch.arange(16))
    rows = torch.cat([first["noise"], second["noise"]]).reshape(-1, 6)
    assert len(torch.unique(rows, dim=0)) == len(rows) == 16 * STEPS
    alone = torch.cat([first["alone"], second["alone"]])  # control: each process for itself
    assert not torch.equal(assign_index(torch.cat([first["x"][0], second["x"][0]]), alone), torch.arange(16))
    shared = host != "torchrun"  # whose seeds are alike, so that the coupling of one process draws the same noise
    assert ("processes 0 and 1 draw the same noise" in second["told"]) == shared
    assert len(torch.unique(alone, dim=0)) == (8 if shared else 16)
