"""Part ``effect``: FID of independent noise and of assignment along one training, at equal steps.

Flow matching comes first; consistency training follows once flow matching has had all its steps. In each study the two
arms take one step in turn, so both are equally far whenever the time is up. Both see the same images, noise and times.

A later run on the same machine goes on exactly, from the whole state of both arms. A later run on another machine goes
on from the averaged weights that come back in ``STUDY-ARM.safetensors``, 8 bits each: the optimizer starts anew there,
and the column ``origin`` of the rows says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.data import Resident
from benchmarks.gpu.part import images_of, unet
from benchmarks.gpu.scale import Site
from immiscible_diffusion.codecs import Pixels
from immiscible_diffusion.features import Inception, PooledPixels
from immiscible_diffusion.files import write_bytes
from immiscible_diffusion.methods import Consistency, Denoising
from immiscible_diffusion.metrics import Moments, frechet_from_moments
from immiscible_diffusion.metrics.moments import moments_of
from immiscible_diffusion.metrics.reference import read_npz
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.registry import make
from immiscible_diffusion.sample import Trained, generate
from immiscible_diffusion.streams import stream_seed
from immiscible_diffusion.train import State, Train, fit, new_state, teacher_of
from immiscible_diffusion.types import Features, HasTeacher

__all__ = ["ARMS", "effect", "evaluation_steps", "packed", "unpacked"]

ARMS = ("independent", "assignment")
_TOGETHER = 1000
"""Images sampled at once."""


@dataclass(frozen=True)
class Study:
    """One method and how it is evaluated.

    Args:
        name: of its rows and files.
        method: loss and sampling.
        time: how the U-Net takes the time.
        ema: decay of the averaged weights.
        most: the largest number of sampling steps that means anything.
    """

    name: str
    method: Any
    time: str
    ema: float
    most: int


STUDIES = (
    Study("flow-matching", Denoising(), "levels", 0.999, 10**9),
    Study("consistency", Consistency(), "log_sigma", 0.999, 2),
)


def effect(site: Site) -> bool:
    """Train and evaluate until the studies are done or the time is up; return whether they are done."""
    torch.backends.cudnn.benchmark = True
    images = images_of(site)
    features, reference = _reference(site, images)
    for study in STUDIES:
        if not site.rows.has("effect", study=study.name, step=site.scale.last, arm=ARMS[-1]):
            _Training(site, study, images, features, reference).run()
        if not site.rows.has("effect", study=study.name, step=site.scale.last, arm=ARMS[-1]):
            return False
    return True


def evaluation_steps(first: int, last: int) -> Iterator[int]:
    """Yield the training steps after which FID is measured: the first, then always twice as many, and the last.

    >>> list(evaluation_steps(500, 3000))
    [500, 1000, 2000, 3000]
    """
    while first < last:
        yield first
        first *= 2
    yield last


def packed(net: nn.Module) -> dict[str, Tensor]:
    """Return a net's parameters at 8 bits: whole numbers in -127..127, and one scale for each row of a matrix.

    Vectors stay in float32. The error of a weight is at most half a scale, 1 / 254 of the largest in its row.
    """
    tensors = dict[str, Tensor]()
    for name, value in net.state_dict().items():
        value = value.detach().float().cpu()
        if value.ndim < 2:
            tensors[name] = value.contiguous()
            continue
        scale = value.flatten(1).abs().amax(1).clamp(min=1e-30) / 127
        wide = scale.view(-1, *[1] * (value.ndim - 1))
        tensors[name] = (value / wide).round().to(torch.int8).contiguous()
        tensors[f"{name}:scale"] = scale
    return tensors


def unpacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict that ``packed`` gave, in float32."""
    state = dict[str, Tensor]()
    for name, value in tensors.items():
        if name.endswith(":scale"):
            continue
        scale = tensors.get(f"{name}:scale")
        state[name] = value if scale is None else value.float() * scale.view(-1, *[1] * (value.ndim - 1))
    return state


def _reference(site: Site, images: Tensor) -> tuple[Features, Moments]:
    """Return the features and the moments of real images: of the pack, or of the invented images themselves."""
    if site.pack is None:
        features: Features = PooledPixels(2)
        return features, Moments.of(features(images))
    features = Inception(str(site.pack / "inception.safetensors"), 768)
    moments = read_npz(site.pack / "reference.npz")
    device = torch.device(site.device)
    return features, Moments(moments.mean.to(device), moments.covariance.to(device), moments.count)


def _nets(state: State) -> dict[str, nn.Module]:
    """Return the net, its average, and the teacher where there is one, by name."""
    nets = {"net": state.net, "ema": state.ema, "teacher": state.teacher}
    return {name: net for name, net in nets.items() if net is not None}


class _Training:
    """Both arms of one study."""

    def __init__(self, site: Site, study: Study, images: Tensor, features: Features, reference: Moments) -> None:
        self.site, self.study, self.images = site, study, images
        self.features, self.reference = features, reference
        self.cuda = torch.device(site.device).type == "cuda"
        self.config = Train(
            steps=site.scale.last,
            batch=site.scale.batch,
            lr=2e-4,
            warmup=site.scale.warmup,
            ema=study.ema,
            precision="bf16" if self.cuda else "fp32",
            prefetch=True,
        )
        self.couplings = {arm: make("coupling", arm) for arm in ARMS}
        self.states = {arm: self._new() for arm in ARMS}
        self.origin = self._restore()

    def run(self) -> None:
        """Train in turn, evaluate at the steps due and once more before the time is up."""
        site, due = self.site, set(evaluation_steps(self.site.scale.first, self.site.scale.last))
        self._compile()
        loops = {
            arm: fit(state, Resident(self.images), Pixels(), self.couplings[arm], self.study.method, self.config)
            for arm, state in self.states.items()
        }
        evaluated = max((row["step"] for row in site.rows.of("effect") if row["study"] == self.study.name), default=0)
        wait, begun, left = site.limit / 6, self._step, site.left()
        try:
            while self._step < site.scale.last:
                for loop in loops.values():
                    next(loop)
                short = site.left() < 1.2 * wait
                if self._step in due or (short and self._step > 1.25 * evaluated):
                    before, seconds = site.left(), left - site.left()
                    self._evaluate(seconds / (self._step - begun))
                    evaluated, wait = self._step, before - site.left()
                    begun, left = self._step, site.left()
                    self._save()
                if short:
                    break
        finally:
            for loop in loops.values():
                loop.close()  # type: ignore[attr-defined]
        self._save()

    @property
    def _step(self) -> int:
        return self.states[ARMS[-1]].step

    def _new(self) -> State:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(0, 0, "net"))
            net = unet(self.site.scale.net, self.study.time).build(tuple(self.images.shape[1:]), None)
        net = net.to(self.site.device)
        if self.cuda:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        state = new_state(net, self.config)
        if isinstance(self.study.method, HasTeacher):
            state.teacher = teacher_of(state)
        return state

    def _compile(self) -> None:
        """Compile the nets that train; where that fails, record why and go on without."""
        if not self.cuda:
            return
        state = self.states[ARMS[0]]
        state.net.compile()
        x = Pixels().encode(self.images[: self.config.batch])
        try:
            with torch.autocast("cuda", torch.bfloat16):
                self.study.method.loss(state.net, x, torch.randn_like(x)).mean().backward()
        except Exception as error:  # whatever the compiler raises: training needs it not
            self.site.rows.add("effect", study=self.study.name, error=f"torch.compile: {str(error)[:200]}")
            state.net._compiled_call_impl = None
        else:
            self.states[ARMS[1]].net.compile()
        state.optimizer.zero_grad()

    def _evaluate(self, seconds_per_step: float) -> None:
        """Record one row for each arm and number of sampling steps."""
        scale, study = self.site.scale, self.study
        for arm, state in self.states.items():
            model = Trained(
                state.ema, study.method, Pixels(), StandardNormal(), tuple(self.images.shape[1:]), "independent"
            )
            for steps in sorted({min(steps, study.most) for steps in scale.sampling}):
                before = self.site.left()
                with torch.autocast(self.site.device, torch.bfloat16, self.cuda):
                    generated = list(generate(model, scale.samples, steps=steps, batch=_TOGETHER))
                moments = moments_of((raw.to(self.site.device) for raw in generated), self.features)
                self.site.rows.add(
                    "effect",
                    study=study.name,
                    arm=arm,
                    step=state.step,
                    sampling_steps=steps,
                    frechet=frechet_from_moments(self.reference, moments),
                    features=getattr(self.features, "fingerprint", type(self.features).__name__),
                    samples=scale.samples,
                    images=len(self.images),
                    batch=self.config.batch,
                    loss=state.loss,
                    pair_of_steps_ms=1000 * seconds_per_step,
                    seconds=before - self.site.left(),
                    origin=self.origin,
                )

    @property
    def _kept(self) -> Path:
        return self.site.state / f"{self.study.name}.pt"

    def _save(self) -> None:
        """Keep both arms whole on this machine, and write their averaged weights among the results."""
        from safetensors.torch import save

        arms = {
            arm: {
                **{name: net.state_dict() for name, net in _nets(state).items()},
                "optimizer": state.optimizer.state_dict(),
            }
            for arm, state in self.states.items()
        }
        self.site.state.mkdir(parents=True, exist_ok=True)
        part = self._kept.with_suffix(".part")
        torch.save({"step": self._step, "arms": arms, "origin": self.origin}, part)
        part.replace(self._kept)
        for arm, state in self.states.items():
            path = self.site.rows.path.parent / f"{self.study.name}-{arm}.safetensors"
            write_bytes(path, save(packed(state.ema), {"step": str(state.step)}))

    def _restore(self) -> str:
        """Go on from the whole state on this machine, or from an earlier run's weights; return which."""
        if self._kept.exists():
            kept = torch.load(self._kept, map_location=self.site.device, weights_only=True)
            for arm, state in self.states.items():
                for name, net in _nets(state).items():
                    net.load_state_dict(kept["arms"][arm][name])
                state.optimizer.load_state_dict(kept["arms"][arm]["optimizer"])
                state.step = kept["step"]
            return str(kept["origin"])
        folder = self.site.earlier
        paths = {arm: folder / f"{self.study.name}-{arm}.safetensors" for arm in ARMS} if folder else {}
        if not paths or not all(path.exists() for path in paths.values()):
            return "new weights"
        from safetensors import safe_open

        steps = set[int]()
        for arm, path in paths.items():
            with safe_open(path, "pt") as file:
                steps.add(int(file.metadata()["step"]))
                weights = unpacked({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            for net in _nets(self.states[arm]).values():
                net.load_state_dict(weights)
        if len(steps) != 1:
            raise ValueError(f"the weights in {folder} are of different steps, {sorted(steps)}; delete them")
        for state in self.states.values():
            state.step = next(iter(steps))
        return f"averaged weights of step {self._step}, in 8 bits"
