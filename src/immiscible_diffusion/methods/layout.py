"""How diffusers samples from what a method trained: its scheduler, its pipeline where it has one, and a few lines."""

from dataclasses import dataclass
from typing import Any

from immiscible_diffusion.methods.consistency import SAMPLING_LEVELS, Consistency
from immiscible_diffusion.methods.denoising import Denoising
from immiscible_diffusion.methods.edm import Edm
from immiscible_diffusion.schedules import Betas, Straight
from immiscible_diffusion.streams import stream_seed

__all__ = ["FIRST_SEED", "Layout", "diffusers_layout"]

_LOOP = """\
from diffusers import {scheduler}, UNet2DModel

unet = UNet2DModel.from_pretrained("FOLDER/unet")
scheduler = {scheduler}.from_pretrained("FOLDER/scheduler")
{steps}
for t in scheduler.timesteps:
    x = scheduler.step(unet({x}, {t}{labels}).sample, t, x).prev_sample
"""

_PIPELINE = """\
import torch
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("FOLDER")
image = pipeline({labels}num_inference_steps={steps}, generator=torch.Generator().manual_seed({seed})).images[0]
"""


FIRST_SEED = stream_seed(0, 0, "sample")
"""What seeds a torch generator to draw the noise of our first image under seed 0."""


@dataclass(frozen=True)
class Layout:
    """What an export holds for diffusers.

    Args:
        scheduler: the scheduler to save, or None where diffusers has none that would be right.
        pipeline: the name of the pipeline that loads the folder, or None.
        examples: (what it is for, Python lines that use FOLDER and noise) each.
        why_not: what stands in the way of a pipeline, or nothing.
    """

    scheduler: Any = None
    pipeline: str | None = None
    examples: tuple[tuple[str, str], ...] = ()
    why_not: str = ""


def diffusers_layout(method: object, *, time: str, conditional: bool) -> Layout:
    """Return what diffusers needs to sample from a U-Net that this method trained.

    Args:
        method: the method.
        time: how the U-Net is told of time, ``levels`` or ``log_sigma``.
        conditional: whether the U-Net takes labels.
    """
    fitting = "log_sigma" if isinstance(method, Consistency | Edm) else "levels"
    if time != fitting:
        return Layout(why_not=f"the U-Net's time is {time!r}, and diffusers' loops for this method need {fitting!r}")
    if isinstance(method, Consistency):
        return _consistency(method, conditional)
    if isinstance(method, Edm):
        return _edm(method, conditional)
    if isinstance(method, Denoising):
        return _denoising(method, conditional)
    return Layout(why_not="diffusers knows no such method")


def _consistency(method: Consistency, conditional: bool) -> Layout:
    from diffusers import CMStochasticIterativeScheduler

    scheduler = CMStochasticIterativeScheduler(
        num_train_timesteps=SAMPLING_LEVELS,
        sigma_min=method.sigma_min,
        sigma_max=method.sigma_max,
        sigma_data=method.sigma_data,
        rho=method.rho,
        clip_denoised=False,
    )
    name = "ConsistencyModelPipeline"
    labels = "class_labels=[0], " if conditional else ""
    example = _PIPELINE.format(pipeline=name, labels=labels, steps=1, seed=FIRST_SEED)
    drawn = f"generator=torch.Generator().manual_seed({FIRST_SEED})"
    given = example.replace(drawn, "latents=noise, batch_size=len(noise)")
    given = given.replace("class_labels=[0]", "class_labels=labels").replace("image = ", "images = ")
    given = given.replace(".images[0]", ".images")
    return Layout(scheduler, name, (("from N(0, I)", example), ("from given noise; it takes RGB images alone", given)))


def _edm(method: Edm, conditional: bool) -> Layout:
    from diffusers import EDMEulerScheduler

    scheduler = EDMEulerScheduler(
        sigma_min=method.sigma_min, sigma_max=method.sigma_max, sigma_data=method.sigma_data, rho=method.rho
    )
    loop = _LOOP.format(
        scheduler="EDMEulerScheduler",
        steps="scheduler.set_timesteps(18)\nx = noise * scheduler.sigmas[0]",
        x="scheduler.scale_model_input(x, t)",
        t="1000 * t",
        labels=_labels(conditional),
    )
    return Layout(scheduler, None, (("from given noise", loop),), "diffusers has no pipeline of EDM over a plain U-Net")


def _denoising(method: Denoising, conditional: bool) -> Layout:
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    schedule, predictions = method.schedule, {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
    if isinstance(schedule, Straight) and method.predict == "velocity" and not method.clip:
        loop = _LOOP.format(
            scheduler="FlowMatchEulerDiscreteScheduler",
            steps="scheduler.set_timesteps(sigmas=[1 - i / 10 for i in range(10)])\nx = noise",
            x="x",
            t="t",
            labels=_labels(conditional),
        )
        why_not = "diffusers has no pipeline of flow matching over a plain U-Net"
        return Layout(FlowMatchEulerDiscreteScheduler(), None, (("from given noise", loop),), why_not)
    if isinstance(schedule, Straight) and method.clip:
        return Layout(why_not="diffusers' scheduler of flow matching does not clip")
    if not isinstance(schedule, Betas) or method.predict not in predictions:
        return Layout(why_not=f"diffusers has no scheduler that predicts {method.predict!r} on {schedule}")
    if schedule.levels != 1000:
        return Layout(why_not=f"the U-Net counts 1000 levels as diffusers does, and the schedule has {schedule.levels}")
    scheduler = DDIMScheduler(
        num_train_timesteps=schedule.levels,
        beta_start=schedule.first,
        beta_end=schedule.last,
        beta_schedule=schedule.kind,
        prediction_type=predictions[method.predict],
        timestep_spacing="trailing",
        clip_sample=method.clip > 0,
        clip_sample_range=method.clip or 1.0,
    )
    loop = _LOOP.format(
        scheduler="DDIMScheduler",
        steps="scheduler.set_timesteps(10)\nx = noise",
        x="x",
        t="t",
        labels=_labels(conditional),
    )
    given = "from given noise, which the pipeline does not take", loop
    if conditional:
        return Layout(scheduler, None, (("from given noise", loop),), "DDIMPipeline takes no labels")
    example = _PIPELINE.format(pipeline="DDIMPipeline", labels="", steps=10, seed=FIRST_SEED)
    return Layout(scheduler, "DDIMPipeline", (("from N(0, I)", example), given))


def _labels(conditional: bool) -> str:
    return ", class_labels=labels" if conditional else ""
