"""What stock diffusers does with an export: the scheduler, and the pipeline where one draws the model's own images."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from immiscible_diffusion.codecs import Pixels
from immiscible_diffusion.files import read_json, write_json
from immiscible_diffusion.sample import Trained
from immiscible_diffusion.types import HasStockParts, HasStockSampling, NetDescription, StockSampling

__all__ = ["Stock", "sampling_of", "save_stock"]


class Pipeline(NamedTuple):
    """One of diffusers' pipelines, and the models that it samples as we do.

    Args:
        name: its class.
        net: the class of its denoising net.
        schedulers: the classes of schedulers that it drives as the method does.
        space: what the net sees: pixels in [-1, 1], or latents of an autoencoder.
        step: the keyword arguments that it passes on to the scheduler's step.
        classes: the most labels that it takes; 0 where it takes none.
        square: whether it draws squares alone.
        parts: further parts that it needs.
        absent: entries of ``model_index.json`` for parts that it does without.
    """

    name: str
    net: str
    schedulers: tuple[str, ...]
    space: Literal["pixels", "latents"]
    step: tuple[str, ...] = ()
    classes: float = float("inf")
    square: bool = False
    parts: tuple[str, ...] = ()
    absent: Mapping[str, Any] = MappingProxyType({})


_DDPM = "DDIMScheduler", "DPMSolverMultistepScheduler"
_ABSENT = {
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
}
PIPELINES = (
    Pipeline("DDIMPipeline", "UNet2DModel", _DDPM[:1], "pixels", step=("eta", "use_clipped_model_output"), classes=0),
    Pipeline("DDPMPipeline", "UNet2DModel", _DDPM[1:], "pixels", classes=0),
    Pipeline("ConsistencyModelPipeline", "UNet2DModel", ("CMStochasticIterativeScheduler",), "pixels", square=True),
    Pipeline(
        "StableDiffusionPipeline",
        "UNet2DConditionModel",
        _DDPM,
        "latents",
        step=("eta",),
        parts=("text_encoder", "tokenizer"),
        absent=_ABSENT,
    ),
    Pipeline("DiTPipeline", "DiTTransformer2DModel", _DDPM, "latents", classes=1000),
)


class Stock(NamedTuple):
    """The files of an export that stock diffusers loads.

    Attributes:
        net: the class of the denoising net in diffusers; empty where it is not diffusers' own.
        scheduler: the class of the scheduler in ``scheduler/``; empty where there is none.
        pipeline: the pipeline that loads the folder; empty where none draws the model's own images.
        why_not: why there is no pipeline; empty where there is one.
    """

    net: str = ""
    scheduler: str = ""
    pipeline: str = ""
    why_not: str = ""


def sampling_of(method: object) -> StockSampling:
    """Return how stock diffusers samples from what this method trained."""
    if isinstance(method, HasStockSampling):
        return method.stock_sampling()
    return StockSampling(why_none=f"diffusers knows no method {type(method).__name__}")


def save_stock(
    trained: Trained, net: NetDescription, folder: Path, *, classes: int | None, codec_obstacle: str
) -> Stock:
    """Write ``scheduler/`` and ``model_index.json`` beside a net's parts, if diffusers has an equivalent.

    Args:
        trained: the model.
        net: the description of its net, whose parts lie in the folder.
        folder: the export.
        classes: the number of classes of the net's labels.
        codec_obstacle: why diffusers' pipelines cannot use the codec's ``vae/``, or the empty text.
    """
    if not isinstance(net, HasStockParts):
        return Stock(why_not="the net is not diffusers' own")
    parts = {name: list(classname) for name, classname in net.stock_parts().items()}
    model = next(iter(parts.values()))[1]
    if net.condition(classes) == "dense":
        return Stock(model, why_not="the net takes a condition beside the image, which no pipeline of diffusers feeds")
    sampling = sampling_of(trained.method)
    if sampling.scheduler and sampling.time != net.time:
        needs = f"diffusers' loops for this method need {sampling.time!r}"
        return Stock(model, why_not=f"the net's time is {net.time!r}, and {needs}")
    if not sampling.scheduler:
        return Stock(model, why_not=sampling.why_none)
    _save_scheduler(sampling, model, folder)
    labels = classes or 0 if net.condition(classes) == "labels" else 0
    fitting = [
        candidate for candidate in PIPELINES if candidate.net == model and sampling.scheduler in candidate.schedulers
    ]
    if sampling.differs:
        ours = f"this model's sampler is another, {sampling.differs}"
        why_not = f"diffusers has {sampling.scheduler} for it, and {ours}"
    elif not fitting:
        why_not = f"diffusers has no pipeline over {model} that samples by {sampling.scheduler}"
    else:
        why_not = _obstacle(fitting[0], sampling, parts, labels) or _space_obstacle(fitting[0], trained, codec_obstacle)
    if why_not:
        return Stock(model, sampling.scheduler, why_not=why_not)
    pipeline = fitting[0]
    parts["scheduler"] = ["diffusers", sampling.scheduler]
    if pipeline.space == "latents":
        parts["vae"] = ["diffusers", read_json(folder / "vae" / "config.json")["_class_name"]]
    index = {"_class_name": pipeline.name, **pipeline.absent, **parts}
    write_json(folder / "model_index.json", dict(sorted(index.items())))  # in diffusers' order
    return Stock(model, sampling.scheduler, pipeline.name)


def _save_scheduler(sampling: StockSampling, model: str, folder: Path) -> None:
    import diffusers

    scheduler = getattr(diffusers, sampling.scheduler).from_config(sampling.options)  # keeps what related ones read
    latents = any(pipeline.net == model and pipeline.space == "latents" for pipeline in PIPELINES)
    if latents and "steps_offset" in scheduler.config:
        scheduler.register_to_config(steps_offset=1)  # without effect here, but the pipeline warns of another
    scheduler.save_pretrained(folder / "scheduler")


def _obstacle(pipeline: Pipeline, sampling: StockSampling, parts: dict[str, list[str]], labels: int) -> str:
    """Return why a pipeline over this net and scheduler would not draw the model's images, or the empty text."""
    if lost := [name for name in sampling.step if name not in pipeline.step]:
        return f"{pipeline.name} does not pass {lost[0]} on to the scheduler, and this model is sampled with it"
    if missing := [part for part in pipeline.parts if part not in parts]:
        return f"{pipeline.name} needs {missing[0]}, and this net has learned class tokens instead"
    if labels > pipeline.classes:
        takes = f"at most {pipeline.classes:g} classes" if pipeline.classes else "no labels"
        return f"{pipeline.name} takes {takes}, and this net has {labels} classes"
    return ""


def _space_obstacle(pipeline: Pipeline, trained: Trained, codec_obstacle: str) -> str:
    """Return why a pipeline would not decode the model's data, or the empty text."""
    name, shape = pipeline.name, trained.shape
    if pipeline.space == "latents":
        return codec_obstacle
    if trained.codec != Pixels():
        return f"{name} takes the data for pixels in [-1, 1], and this model's codec is another"
    if pipeline.square and shape[1] != shape[2]:
        return f"{name} draws squares alone, and this model's images have sides {shape[1]} and {shape[2]}"
    return ""
