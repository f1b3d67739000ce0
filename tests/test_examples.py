"""The examples run as their first lines say, and show what they claim."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny_pipeline
from pictures import content

EXAMPLES = Path(__file__).parents[1] / "examples"


def output(name: str, *arguments: str) -> str:
    """Run an example as a user does, on one thread, and return what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write twelve pictures of mixed size in a folder."""
    (tmp_path / "photos").mkdir()
    for i in range(12):
        picture = Image.new("RGB", (20 + i, 30 - i), (20 * i, 200 - 10 * i, 90))
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(content(picture, "JPEG"))
    return tmp_path / "photos"


def test_examples_are_short() -> None:
    sizes = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert set(sizes) == {"own_loop.py", "image_folder.py", "stable_diffusion.py"}
    assert max(sizes.values()) <= 60, sizes


@pytest.mark.medium
def test_one_line_in_a_loop() -> None:
    rows = re.findall(r"(\S+): distance ([\d.]+), error at 2 steps ([\d.]+)", output("own_loop.py"))
    (plain, far, bent), (paired, near, straight) = rows
    assert (plain, paired) == ("randn_like", "couple")
    assert 0.85 < float(near) / float(far) < 0.95
    assert float(straight) < 0.85 * float(bent)


@pytest.mark.slow
def test_a_folder_of_images(photos: Path, tmp_path: Path) -> None:
    options = ["--size", "8", "--steps", "2", "--batch", "8", "--out", str(tmp_path / "samples")]
    assert "Look at" in output("image_folder.py", str(photos), *options)
    grids = [Image.open(tmp_path / "samples" / f"{name}.png") for name in ("independent", "assignment")]
    assert {grid.size for grid in grids} == {(8 * 9 - 1, 4 * 9 - 1)}
    assert grids[0].tobytes() != grids[1].tobytes()


@pytest.mark.medium
def test_stable_diffusion(photos: Path, tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    from safetensors.torch import load_file

    weights = tiny_pipeline.pipeline(tmp_path / "weights", shared_data)
    options = ["--size", "64", "--steps", "2", "--batch", "2", "--prompt", "a cat", "--out", str(tmp_path / "tuned")]
    assert re.search(r"step 2 of 2: loss \d", output("stable_diffusion.py", str(weights), str(photos), *options))
    before, after = (load_file(next((root / "unet").glob("*.safetensors"))) for root in (weights, tmp_path / "tuned"))
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "tuned" / "model_index.json").exists()


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints: pairs are nearer in larger batches, and few steps do after assignment."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))
    scope: dict[str, object] = {"__name__": "tour"}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 4
    assert all(cell.get("outputs", []) == [] for cell in notebook["cells"])
    for cell in cells:
        exec(compile(cell, "tour.ipynb", "exec"), scope)  # noqa: S102
    printed = capsys.readouterr().out
    nearer = [float(percent) for percent in re.findall(r"([\d.]+) % nearer", printed)]
    assert nearer == sorted(nearer)
    errors = re.findall(r"(\d+) steps: independent (\d+), assignment (\d+)", printed)
    assert [int(steps) for steps, _, _ in errors] == [1, 2, 5, 10]
    assert all(float(paired) < float(plain) for _, plain, paired in errors)
