"""Every example of docs/integrations.md runs as printed, where the library that it is for is installed."""

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from immiscible_diffusion import assign_index

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
HOSTS = "lightning", "torchcfm", "denoising_diffusion_pytorch", "jax"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)


def run(text: str) -> dict[str, Any]:
    """Return the names that an example defines; its host's own warnings are not ours."""
    names: dict[str, Any] = {"__name__": "example", "torch": torch}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(text, str(PAGE), "exec"), names)  # noqa: S102
    return names


def needed(text: str) -> str:
    """Return a package that an example imports and that is not installed, or the empty text."""
    packages = re.findall(r"^(?:import|from) (\w+)", text, re.M)
    return next((name for name in packages if importlib.util.find_spec(name) is None), "")


@pytest.mark.parametrize(
    "text",
    [pytest.param(text, marks=[pytest.mark.slow] * any(host in text for host in HOSTS)) for text in BLOCKS],
    ids=range(len(BLOCKS)),
)
def test_an_example_runs(text: str) -> None:
    if missing := needed(text):
        pytest.skip(f"needs {missing}: pip install 'immiscible-diffusion[hosts]'")
    names = run(text)
    if "paired_noise" in names:
        x, noise = (torch.from_numpy(np.array(names[name])) for name in ("x", "noise"))
        assert torch.equal(assign_index(x, noise), torch.arange(64))
    if "Flow" in names:
        assert float(names["Flow"]().training_step((torch.randn(8, 6),), 0).detach()) > 0
    if "diffusion" in names:
        assert float(names["diffusion"](torch.rand(2, 3, 8, 8)).detach()) > 0


def test_the_page_has_an_example_for_each_host() -> None:
    assert len(BLOCKS) == 7
    assert all(any(host in text for text in BLOCKS) for host in HOSTS)
