"""How diffusers samples from what a method trained: its scheduler, its pipeline where it has one, and a few lines."""

from dataclasses import dataclass
from typing import Any

from immiscible_diffusion.methods.consistency import SAMPLING_LEVELS, Consistency
from immiscible_diffusion.methods.denoising import Denoising
from immiscible_diffusion.methods.edm import Edm
from immiscible_diffusion.schedules import Betas, Straight
from immiscible_diffusion.streams import stream_seed

__all__ = ["FIRST_SEED", "Layout", "diffusers_layout", "scheduler_of", "scheduler_options"]

_LOOP = """\
{first}from diffusers import {scheduler}, UNet2DModel

unet = UNet2DModel.from_pretrained("FOLDER/unet")
scheduler = {scheduler}.from_pretrained("FOLDER/scheduler")
{steps}
for t in scheduler.timesteps:
    x = scheduler.step(unet({x}, {t}{labels}).sample, t, x{options}).prev_sample
"""

_PIPELINE = """\
import torch
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("FOLDER")
generator = torch.Generator().manual_seed({seed})
image = pipeline({labels}num_inference_steps={steps}, generator=generator{options}).images[0]
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


def diffusers_layout(method: object, *, time: str, conditional: bool, shape: tuple[int, ...], pixels: bool) -> Layout:
    """Return what diffusers needs to sample from a U-Net that this method trained.

    Args:
        method: the method.
        time: how the U-Net is told of time, ``levels`` or ``log_sigma``.
        conditional: whether the U-Net takes labels.
        shape: that of one datum in model space, (c, h, w).
        pixels: whether model space is pixels in [-1, 1], for which diffusers' pipelines over a U-Net take it.
    """
    scheduler, other = scheduler_of(method, time=time)
    if scheduler is None:
        return Layout(why_not=other)
    loop = _loop(method, scheduler, conditional=conditional)
    if other:
        return Layout(scheduler, None, ((f"from given noise, by {type(scheduler).__name__} instead", loop),), other)
    given = "from given noise", loop
    name, why_not = _pipeline(method, scheduler, conditional=conditional)
    if name and not pixels:
        why_not = f"{name} takes the data for pixels in [-1, 1], and this model's codec is another"
    elif isinstance(method, Consistency) and shape[1] != shape[2]:
        why_not = f"{name} draws squares alone, and this model's images have sides {shape[1]} and {shape[2]}"
    if why_not:
        return Layout(scheduler, None, (given,), why_not)
    labels = "class_labels=[0], " if conditional else ""
    steps = 1 if isinstance(method, Consistency) else 10
    example = _PIPELINE.format(
        pipeline=name, labels=labels, steps=steps, seed=FIRST_SEED, options=scheduler_options(method)
    )
    if isinstance(method, Consistency):
        drawn = f"generator = torch.Generator().manual_seed({FIRST_SEED})\n"
        lines = example.replace(drawn, "").replace("generator=generator", "latents=noise, batch_size=len(noise)")
        lines = lines.replace("image = ", "images = ").replace(".images[0]", ".images")
        given = "from given noise; it takes RGB images alone", lines
    else:
        given = "from given noise, which the pipeline does not take", loop
    return Layout(scheduler, name, (("from N(0, I)", example), given))


def scheduler_of(method: object, *, time: str) -> tuple[Any, str]:
    """Return diffusers' scheduler for what this method trained, or None, and why its samples are not the method's.

    Without a reason they are.

    Args:
        method: the method.
        time: how the net is told of time, ``levels`` or ``log_sigma``.
    """
    fitting = "log_sigma" if isinstance(method, Consistency | Edm) else "levels"
    if time != fitting:
        return None, f"the U-Net's time is {time!r}, and diffusers' loops for this method need {fitting!r}"
    if isinstance(method, Consistency):
        from diffusers import CMStochasticIterativeScheduler

        return CMStochasticIterativeScheduler(
            num_train_timesteps=SAMPLING_LEVELS,
            sigma_min=method.sigma_min,
            sigma_max=method.sigma_max,
            sigma_data=method.sigma_data,
            rho=method.rho,
            clip_denoised=False,
        ), ""
    if isinstance(method, Edm):
        return _edm(method)
    if isinstance(method, Denoising):
        return _flow(method) if isinstance(method.schedule, Straight) else _ddpm(method)
    return None, "diffusers knows no such method"


def scheduler_options(method: object) -> str:
    """Return what to hand to DDIM's step, or to a pipeline that passes it on, as Python's arguments."""
    if not isinstance(method, Denoising):
        return ""
    eta = f", eta={method.eta}" if method.eta else ""
    return eta + (", use_clipped_model_output=True" if method.clip else "")


def _edm(method: Edm) -> tuple[Any, str]:
    from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler

    levels = {key: getattr(method, key) for key in ("sigma_min", "sigma_max", "sigma_data", "rho")}
    if method.sampler == "dpmpp":
        return EDMDPMSolverMultistepScheduler(**levels, lower_order_final=False), ""
    scheduler = EDMEulerScheduler(**levels)
    own = method.sampler == "ddim" and not method.churn
    return scheduler, "" if own else _another(f"{method.sampler!r} with churn {method.churn}", scheduler)


def _flow(method: Denoising) -> tuple[Any, str]:
    from diffusers import FlowMatchEulerDiscreteScheduler

    if method.clip:
        return None, "diffusers' scheduler of flow matching does not clip"
    if method.predict != "velocity":
        return None, f"diffusers has no scheduler that predicts {method.predict!r} on {method.schedule}"
    scheduler = FlowMatchEulerDiscreteScheduler()
    own = method.sampler == "ddim" and not method.eta
    return scheduler, "" if own else _another(f"{method.sampler!r} with eta {method.eta}", scheduler)


def _ddpm(method: Denoising) -> tuple[Any, str]:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    schedule, predictions = method.schedule, {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
    if not isinstance(schedule, Betas) or method.predict not in predictions:
        return None, f"diffusers has no scheduler that predicts {method.predict!r} on {schedule}"
    if schedule.levels != 1000:
        return None, f"the U-Net counts 1000 levels as diffusers does, and the schedule has {schedule.levels}"
    levels = {
        "num_train_timesteps": schedule.levels,
        "beta_start": schedule.first,
        "beta_end": schedule.last,
        "beta_schedule": schedule.kind,
        "prediction_type": predictions[method.predict],
        "timestep_spacing": "trailing",
    }
    if method.sampler == "dpmpp":
        return DPMSolverMultistepScheduler(**levels, lower_order_final=False), ""
    scheduler = DDIMScheduler(**levels, clip_sample=method.clip > 0, clip_sample_range=method.clip or 1.0)
    return scheduler, "" if method.sampler == "ddim" else _another(f"{method.sampler!r}", scheduler)


def _another(ours: str, scheduler: Any) -> str:
    return f"diffusers has {type(scheduler).__name__} for it, and this model's sampler is another, {ours}"


def _pipeline(method: object, scheduler: Any, *, conditional: bool) -> tuple[str, str]:
    """Return the pipeline over a plain U-Net that samples by this scheduler, or no name and why there is none."""
    if isinstance(method, Consistency):
        return "ConsistencyModelPipeline", ""
    kind = type(scheduler).__name__
    if kind != "DDIMScheduler":
        taught = "EDM" if isinstance(method, Edm) else "flow matching" if kind.startswith("Flow") else kind
        return "", f"diffusers has no pipeline of {taught} over a plain U-Net"
    return ("", "DDIMPipeline takes no labels") if conditional else ("DDIMPipeline", "")


def _loop(method: object, scheduler: Any, *, conditional: bool) -> str:
    """Return Python that samples from given noise by the scheduler; x ends in model space."""
    steps, x, t = "scheduler.set_timesteps(10)\nx = noise", "x", "t"
    if isinstance(method, Consistency):
        steps = "scheduler.set_timesteps(1)\nx = noise * scheduler.init_noise_sigma"
        x = "scheduler.scale_model_input(x, t)"
    elif isinstance(method, Edm):
        steps = "scheduler.set_timesteps(18)\nx = noise * scheduler.sigmas[0]"
        x, t = "scheduler.scale_model_input(x, t)", "1000 * t"
    elif type(scheduler).__name__.startswith("Flow"):
        steps = "scheduler.set_timesteps(sigmas=[1 - i / 10 for i in range(10)])\nx = noise"
    if conditional:
        steps += "\nlabels = torch.tensor([0])  # a class for each row of noise"
    return _LOOP.format(
        first="import torch\n" if conditional else "",
        scheduler=type(scheduler).__name__,
        steps=steps,
        x=x,
        t=t,
        labels=", class_labels=labels" if conditional else "",
        options=scheduler_options(method) if type(scheduler).__name__ == "DDIMScheduler" else "",
    )
