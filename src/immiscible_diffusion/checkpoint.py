"""What is written to disk: states to resume from, and models to load. Safetensors and JSON alone, never a pickle."""

import json
import math
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from immiscible_diffusion.codecs import VAE, Pixels
from immiscible_diffusion.files import new_folder, read_json, write_bytes, write_json
from immiscible_diffusion.methods.consistency import Consistency
from immiscible_diffusion.methods.layout import FIRST_SEED, Layout, diffusers_layout
from immiscible_diffusion.nets import Dit, UNetCondition
from immiscible_diffusion.pipelines import load_pipeline_codec, load_pipeline_net, save_pipeline, save_vae
from immiscible_diffusion.priors import Gaussian, StandardNormal
from immiscible_diffusion.registry import describe, make
from immiscible_diffusion.sample import Trained
from immiscible_diffusion.train import State, teacher_of
from immiscible_diffusion.types import Prior

__all__ = ["export", "load_export", "load_newest", "save"]


def save(state: State, folder: Path, *, keep: int = 2) -> Path:
    """Write the state as ``folder/step-<number>/`` and return that path.

    A crash in mid-write leaves the earlier ones; the newest ``keep`` stay.
    """
    target = folder / f"step-{state.step:09d}"
    with new_folder(target) as part:
        _save_tensors(part / "net.safetensors", state.net.state_dict())
        _save_tensors(part / "ema.safetensors", state.ema.state_dict())
        moments = state.optimizer.state_dict()["state"]
        _save_tensors(
            part / "optimizer.safetensors",
            {f"{i}.{name}": value for i, values in moments.items() for name, value in values.items()},
        )
        _save_tensors(part / "coupling.safetensors", state.memory)
        if state.teacher is not None:
            _save_tensors(part / "teacher.safetensors", state.teacher.state_dict())
        write_json(part / "state.json", {"step": state.step, "seconds": state.seconds})
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def load_newest(state: State, folder: Path) -> bool:
    """Load the newest whole checkpoint of the folder into the state; return whether there was one.

    A checkpoint that cannot be read is passed over with a warning, and the one before it is taken.
    """
    for path in reversed(_steps(folder)):
        try:
            _load_state(state, path)
        except (ValueError, RuntimeError, KeyError) as error:
            warnings.warn(f"the checkpoint {path} cannot be used and is passed over: {error}", stacklevel=2)
        else:
            return True
    return False


def export(trained: Trained, folder: Path, *, net: Any, classes: int | None, about: dict[str, Any]) -> None:
    """Write a model for others to load.

    A diffusers net is saved in diffusers' own layout: ``unet/``, ``scheduler/`` and, where a pipeline of diffusers
    (``DDIMPipeline``, ``ConsistencyModelPipeline``) draws the model's own images, the ``model_index.json`` that its
    ``from_pretrained`` reads. ``unet_condition`` and ``dit`` become whole pipelines (``StableDiffusionPipeline``,
    ``DiTPipeline``) with text encoder; any other net is ``net.safetensors``. The codec's autoencoder goes to ``vae/``.
    The start of sampling lies in ``prior.safetensors`` unless it is the standard normal. ``README.md`` says what the
    model is and how to sample.

    Args:
        trained: the model.
        folder: takes the place of what was there, once it is whole.
        net: the description that the net was built from.
        classes: the number of classes it was built for.
        about: what else to keep and to say in the README: data, coupling, steps, metrics, commit.
    """
    layout = Layout(why_not="the net is not diffusers' own")
    with new_folder(folder) as part:
        model = getattr(trained.net, "model", None)
        if isinstance(net, UNetCondition | Dit):
            layout = save_pipeline(trained, net, part)
        elif model is not None:
            model.save_pretrained(part / "unet")
            if getattr(net, "beside", 0):
                layout = Layout(
                    why_not="the net takes a condition beside the image, which no pipeline of diffusers feeds"
                )
            else:
                time, conditional = getattr(net, "time", "levels"), getattr(net, "conditional", False)
                layout = diffusers_layout(
                    trained.method,
                    time=time,
                    conditional=conditional,
                    shape=trained.shape,
                    pixels=trained.codec == Pixels(),
                )
            _save_layout(layout, part)
        else:
            _save_tensors(part / "net.safetensors", trained.net.state_dict())
        if isinstance(trained.codec, VAE) and not isinstance(net, UNetCondition | Dit):
            save_vae(trained.codec, part)
        if isinstance(trained.prior, Gaussian):
            _save_tensors(part / "prior.safetensors", trained.prior.tensors())
        parts = {"net": net, "method": trained.method, "codec": trained.codec}
        described = {kind: describe(kind, each) for kind, each in parts.items()}
        rest = {"coupling": trained.coupling, "shape": trained.shape, "classes": classes, "about": about}
        write_json(part / "immiscible.json", described | rest)
        card = _card(trained, layout, described | {"about": about}, _cond(trained, net, classes))
        write_bytes(part / "README.md", card.encode())


def load_export(folder: Path) -> Trained:
    """Return the model that ``export`` wrote.

    Raises:
        ValueError: a file is missing, damaged or does not fit the others.
    """
    index = read_json(folder / "immiscible.json")
    try:
        described, method, codec = (make(kind, index[kind], imports=False) for kind in ("net", "method", "codec"))
        shape, codec = tuple(index["shape"]), load_pipeline_codec(codec, folder)
        if isinstance(described, UNetCondition | Dit):
            net = load_pipeline_net(described, folder, shape, index["classes"])
        else:
            net = described.build(shape, index["classes"])
            inner = getattr(net, "model", None)
            weights = folder / ("net.safetensors" if inner is None else "unet/diffusion_pytorch_model.safetensors")
            (net if inner is None else inner).load_state_dict(_load_tensors(weights))
        prior: Prior = StandardNormal()
        if (folder / "prior.safetensors").exists():
            prior = Gaussian(**_load_tensors(folder / "prior.safetensors"))
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} holds no model that can be loaded: {error}") from error
    coupling = str(index.get("coupling", "independent"))
    return Trained(net.eval().requires_grad_(False), method, codec, prior, shape, coupling)


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{9}", path.name))


def _load_state(state: State, path: Path) -> None:
    index = read_json(path / "state.json")
    net, ema = _load_tensors(path / "net.safetensors"), _load_tensors(path / "ema.safetensors")
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _load_tensors(path / "optimizer.safetensors").items():
        i, _, moment = name.partition(".")
        moments.setdefault(int(i), {})[moment] = value
    memory = _load_tensors(path / "coupling.safetensors")
    teacher = None
    if (path / "teacher.safetensors").exists():
        teacher = teacher_of(state.net)
        teacher.load_state_dict(_load_tensors(path / "teacher.safetensors"))
    state.net.load_state_dict(net)
    state.ema.load_state_dict(ema)
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.memory, state.teacher = memory, teacher
    state.step, state.seconds = int(index["step"]), dict(index["seconds"])


def _save_layout(layout: Layout, part: Path) -> None:
    """Write diffusers' scheduler, and a pipeline's index where diffusers has a pipeline."""
    if layout.scheduler is not None:
        layout.scheduler.save_pretrained(part / "scheduler")
    if layout.pipeline is not None:
        pipeline = {"_class_name": layout.pipeline, "scheduler": ["diffusers", type(layout.scheduler).__name__]}
        write_json(part / "model_index.json", pipeline | {"unet": ["diffusers", "UNet2DModel"]})


def _card(trained: Trained, layout: Layout, described: dict[str, Any], cond: str) -> str:
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
        "from immiscible_diffusion.checkpoint import load_export",
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


def _cond(trained: Trained, net: Any, classes: int | None) -> str:
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


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: value.detach().contiguous().cpu() for name, value in tensors.items()}, path)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
