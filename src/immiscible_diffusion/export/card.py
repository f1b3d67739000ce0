"""The model card of an export: the model, how to load it, where sampling starts. Its text is a template."""

import json
import math
from pathlib import Path
from typing import Any

from immiscible_diffusion.export.stock import Stock, sampling_of
from immiscible_diffusion.priors import Gaussian
from immiscible_diffusion.sample import Trained
from immiscible_diffusion.streams import stream_seed
from immiscible_diffusion.types import HasDenseCondition, NetDescription

__all__ = ["card"]


def card(
    trained: Trained,
    stock: Stock,
    *,
    net: NetDescription,
    classes: int | None,
    described: dict[str, Any],
    about: dict[str, Any],
    lora: bool,
) -> str:
    """Return the README of an export, Markdown with runnable Python in it.

    Args:
        trained: the model.
        stock: what the export holds for diffusers.
        net: the description of the net.
        classes: the number of classes that the net was built for.
        described: net, method and codec as plain values.
        about: what else to say of the model, as plain values.
        lora: whether the export holds ``lora/``.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("a model card needs jinja2: pip install 'immiscible-diffusion[nets]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # noqa: S701 - Markdown; values are JSON in code spans
        keep_trailing_newline=True,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["json"] = json.dumps
    sampling = sampling_of(trained.method)
    text = environment.get_template("card.md").render(
        facts={**described, **about},
        net=described["net"],
        matched=isinstance(trained.prior, Gaussian),
        shape=", ".join(map(str, trained.shape)),
        count=math.prod(trained.shape),
        cond=_condition_argument(trained, net, classes),
        labels=net.condition(classes) == "labels",
        stock=stock,
        sampling=sampling,
        step="".join(f", {name}={value!r}" for name, value in sampling.step.items()),
        seed=stream_seed(0, 0, "sample"),
        lora=lora,
    )
    return text.rstrip() + "\n"


def _condition_argument(trained: Trained, net: NetDescription, classes: int | None) -> str:
    """Return the condition of 16 images as Python's argument for ``generate``; empty where the net needs none."""
    kind = net.condition(classes)
    if kind == "dense" and isinstance(net, HasDenseCondition):
        return f", cond=torch.zeros{(16, *net.condition_shape(trained.shape))}"
    return f", cond=torch.arange(16) % {classes}" if kind == "labels" else ""
