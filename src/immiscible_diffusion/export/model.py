"""A trained model on disk, and the way back. Safetensors and JSON alone, never a pickle."""

from pathlib import Path
from typing import Any

from immiscible_diffusion.codecs import VAE, Pixels
from immiscible_diffusion.export.card import card, condition_argument
from immiscible_diffusion.export.pipelines import load_pipeline_codec, load_pipeline_net, save_pipeline, save_vae
from immiscible_diffusion.export.schedulers import Layout, diffusers_layout
from immiscible_diffusion.files import new_folder, read_json, read_tensors, write_bytes, write_json, write_tensors
from immiscible_diffusion.nets import Dit, UNetCondition
from immiscible_diffusion.priors import Gaussian, StandardNormal
from immiscible_diffusion.registry import describe, make
from immiscible_diffusion.sample import Trained
from immiscible_diffusion.types import Prior

__all__ = ["export", "load_export"]


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
            write_tensors(part / "net.safetensors", trained.net.state_dict())
        if isinstance(trained.codec, VAE) and not isinstance(net, UNetCondition | Dit):
            save_vae(trained.codec, part)
        if isinstance(trained.prior, Gaussian):
            write_tensors(part / "prior.safetensors", trained.prior.tensors())
        parts = {"net": net, "method": trained.method, "codec": trained.codec}
        described = {kind: describe(kind, each) for kind, each in parts.items()}
        rest = {"coupling": trained.coupling, "shape": trained.shape, "classes": classes, "about": about}
        write_json(part / "immiscible.json", described | rest)
        text = card(trained, layout, described | {"about": about}, condition_argument(trained, net, classes))
        write_bytes(part / "README.md", text.encode())


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
            (net if inner is None else inner).load_state_dict(read_tensors(weights))
        prior: Prior = StandardNormal()
        if (folder / "prior.safetensors").exists():
            prior = Gaussian(**read_tensors(folder / "prior.safetensors"))
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} holds no model that can be loaded: {error}") from error
    coupling = str(index.get("coupling", "independent"))
    return Trained(net.eval().requires_grad_(False), method, codec, prior, shape, coupling)


def _save_layout(layout: Layout, part: Path) -> None:
    """Write diffusers' scheduler, and a pipeline's index where diffusers has a pipeline."""
    if layout.scheduler is not None:
        layout.scheduler.save_pretrained(part / "scheduler")
    if layout.pipeline is not None:
        pipeline = {"_class_name": layout.pipeline, "scheduler": ["diffusers", type(layout.scheduler).__name__]}
        write_json(part / "model_index.json", pipeline | {"unet": ["diffusers", "UNet2DModel"]})
