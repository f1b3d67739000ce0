"""`immiscible encode`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from immiscible_diffusion import Latents
from immiscible_diffusion.cli import run

pytestmark = pytest.mark.medium


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def test_encode_stores_latents_goes_on_and_verifies(
    pictures: Path, tmp_path: Path, shared_data: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "latents"
    command = [
        *("encode", "--source", f'{{use="images", path="{pictures}", size=32, held_out_rows=4}}'),
        *("--codec", f'{{use="vae", path="{shared_data("taesd")}"}}', "--out", str(out), "--shard-rows", "3"),
    ]
    assert run([*command, "--verify"]) == 0
    assert "files hold what their checksums say" in capsys.readouterr().out
    stored = Latents(str(out))
    assert (stored.rows, stored.shape) == (8, (4, 4, 4))
    shard = next(path for path in sorted(out.glob("*.safetensors")) if "held" not in path.name)
    whole = shard.read_bytes()
    assert run(command) == 0
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert run([*command, "--verify"]) == 2
    assert shard.name in capsys.readouterr().err
    assert run([*command, "--precision", "fp8"]) == 2
    assert "there are ['fp16', 'fp32']" in capsys.readouterr().err
