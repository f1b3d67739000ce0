"""The model card of an export: what the model is, how to load it, where sampling starts."""

import json
import math
from typing import Any

from immiscible_diffusion.export.schedulers import FIRST_SEED, Layout
from immiscible_diffusion.methods.consistency import Consistency
from immiscible_diffusion.priors import Gaussian
from immiscible_diffusion.sample import Trained

__all__ = ["card", "condition_argument"]


def card(trained: Trained, layout: Layout, described: dict[str, Any], cond: str) -> str:
    """Return the export's README: what it is, how to load it, where sampling starts."""
    shape = ", ".join(map(str, trained.shape))
    matched = isinstance(trained.prior, Gaussian)
    start = (
        "the Gaussian in `prior.safetensors`, which the coupling made of the noise; N(0, I) is another start"
        if matched
        else "N(0, I), as any diffusion model's"
    )
    lines = ["---", "tags: [immiscible-diffusion]", "---", "", "# Trained with immiscible-diffusion", ""]
    lines += [f"- {name}: `{json.dumps(value)}`" for name, value in {**described, **described["about"]}.items()]
    lines = [line for line in lines if not line.startswith("- about: ")]
    lines += [f"- sampling starts from: {start}", f"- one image in model space: ({shape})", "", "## Load", ""]
    steps = 1 if isinstance(trained.method, Consistency) else 10
    own = (
        "from pathlib import Path",
        *(["import torch"] if cond else []),
        "from immiscible_diffusion import generate",
        "from immiscible_diffusion.export.model import load_export",
        "",
        'model = load_export(Path("FOLDER"))',
        f"images = next(generate(model, 16, steps={steps}{cond}))  # as the codec decodes: uint8 for images",
    )
    lines += ["With immiscible-diffusion, from the start named above:", "", "```python", *own, "```", ""]
    first = "the first image of `immiscible sample --seed 0`; `samples.npz` holds every image's seed"
    lines += [f"The noise of that start, to hand over as `noise` below ({first}):"]
    lines += ["", "```python", *_noise_lines(trained), "```", ""]
    for what, code in layout.examples:
        lines += [f"With diffusers, {what}:", "", "```python", code.rstrip(), "```", ""]
    if layout.why_not:
        lines += [f"No `model_index.json`: {layout.why_not}.", ""]
    return "\n".join(lines)


def condition_argument(trained: Trained, net: Any, classes: int | None) -> str:
    """Return what 16 images are to show, as Python's argument for ``generate``: nothing where the net needs nothing."""
    if beside := getattr(net, "beside", 0):
        rest = trained.shape[1:] if hasattr(trained.net, "model") else ()
        return f", cond=torch.zeros{(16, beside, *rest)}"
    if getattr(net, "conditional", False) and classes is not None:
        return f", cond=torch.arange(16) % {classes}"
    return ""


def _noise_lines(trained: Trained) -> list[str]:
    """Return Python that draws the first image's noise with torch and safetensors alone."""
    shape, count = ", ".join(map(str, trained.shape)), math.prod(trained.shape)
    draw = "torch.randn(1, {}, generator=torch.Generator().manual_seed(" + f"{FIRST_SEED}))"
    if not isinstance(trained.prior, Gaussian):
        return ["import torch", "", f"noise = {draw.format(shape)}"]
    return [
        "import torch",
        "from safetensors.torch import load_file",
        "",
        'start = load_file("FOLDER/prior.safetensors")',
        'directions, across = start["directions"], start["scale"].item() ** 0.5',
        f"noise = {draw.format(count)}",
        'stretch = (noise @ directions.T) * (start["variances"].sqrt() - across)',
        f'noise = (across * noise + stretch @ directions + start["mean"]).reshape(1, {shape})',
    ]
