"""Consistency training: the published schedules, the loss against its definition, sampling against diffusers."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from immiscible_diffusion import make
from immiscible_diffusion.methods import Consistency, Edm, improved
from immiscible_diffusion.methods._consistency_levels import chances, level_count
from immiscible_diffusion.methods._distances import distance
from immiscible_diffusion.methods._preconditioning import scalings
from immiscible_diffusion.schedules import karras, log_time
from immiscible_diffusion.types import Net
from pairing import PAIRING

pytestmark = pytest.mark.medium

METHODS = [Consistency(), Consistency(distance="l1", teacher=0.95, last=200), replace(improved(), gap_power=0.5)]
IDS = ["original", "l1", "improved"]


def sigma_of(t: Tensor) -> Tensor:
    return 0.002 * (80 / 0.002) ** t.double()


def nearest_level(levels: Tensor, t: Tensor) -> Tensor:
    """Return the level that a time, rounded to float32, stands for."""
    return levels[(log_time(levels) - t.double()[..., None]).abs().argmin(-1)]


def oracle(method: Consistency | Edm, x: Tensor, noise: Tensor, progress: float) -> Net:
    """Return a net that knows the pair: the path's beginning is x + sigma_min noise, and for EDM the data."""
    floor = method.sigma_min if isinstance(method, Consistency) else 0.0
    begin = x + floor * noise

    def net(scaled: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        level = nearest_level(method.levels(progress), t) if isinstance(method, Consistency) else sigma_of(t)
        sigma = level.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        x_t = x + sigma * noise
        skip = 0.25 / ((sigma - floor) ** 2 + 0.25)
        out = (sigma - floor) * 0.5 / (sigma**2 + 0.25).sqrt()
        return torch.where(out > 1e-6, (begin - skip * x_t) / out.clamp(min=1e-6), torch.zeros_like(x))

    return net


@pytest.mark.parametrize("coupling", PAIRING)
@pytest.mark.parametrize("method", [*METHODS, Edm()], ids=[*IDS, "edm"])
def test_a_net_that_knows_the_pair_has_no_loss(method: Consistency | Edm, coupling: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 2, 4, 4, generator=generator)
    noise = make("coupling", coupling)(x, cond=torch.arange(16) % 2, generator=generator)
    x, noise = x.double(), noise.double()
    net = oracle(method, x, noise, 0.1)
    loss = method.loss(net, x, noise, progress=0.1, generator=torch.Generator().manual_seed(1))
    assert loss.shape == (16,)
    assert float(loss.max()) < 1e-10  # EDM's sigma reaches the net in float32
    # Control: a net that knows other noise than is in x_t.
    other = oracle(method, x, noise.roll(1, 0), 0.1)
    assert float(method.loss(other, x, noise, progress=0.1, generator=generator).mean()) > 1e-4


def test_the_published_number_of_levels() -> None:
    """arXiv:2303.01469, App. C, with s0 = 2 and s1 = 150; arXiv:2310.14189, Table 1, with s0 = 10 and s1 = 1280."""
    for k in range(0, 800, 7):
        root = math.ceil(math.sqrt(k / 800 * (151**2 - 4) + 4) - 1) + 1
        assert level_count(k / 800, growth="root", first=2, last=150) == root
        doubling = min(10 * 2 ** math.floor(k / (800 / (math.log2(1280 / 10) + 1))), 1280) + 1
        assert level_count(k / 800, growth="doubling", first=10, last=1280) == doubling
    counts = [level_count(k / 1000, growth="doubling", first=10, last=1280) for k in range(1000)]
    assert sorted(set(counts)) == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert all(abs(counts.count(n) - 125) <= 1 for n in set(counts))
    assert (counts[0], level_count(0.0, growth="root", first=2, last=150)) == (11, 2)


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.99])
def test_the_published_decay_of_the_teacher(progress: float) -> None:
    count = math.ceil(math.sqrt(progress * (151**2 - 4) + 4) - 1) + 1
    assert Consistency(teacher=0.95).teacher_decay(progress) == pytest.approx(0.95 ** (2 / count), abs=1e-12)
    assert improved().teacher_decay(progress) == 0.0


def test_improved_training_is_its_table() -> None:
    """Table 1 of arXiv:2310.14189."""
    assert improved() == Consistency(
        growth="doubling",
        first=10,
        last=1280,
        teacher=0.0,
        draw="lognormal",
        weight="inverse_gap",
        distance="pseudo_huber",
        sigma_min=0.002,
        sigma_max=80.0,
        rho=7.0,
        sigma_data=0.5,
        p_mean=-1.1,
        p_std=2.0,
        gap_power=1.0,
    )


def test_levels_are_those_of_karras_and_rise() -> None:
    levels = Consistency().levels(0.3)
    n = len(levels)
    expected = [
        (0.002 ** (1 / 7) + (i - 1) / (n - 1) * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 for i in range(1, n + 1)
    ]
    torch.testing.assert_close(levels, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert (float(levels[0]), float(levels[-1])) == (0.002, 80.0)


def test_pairs_of_levels_have_their_published_chances() -> None:
    """The lognormal law by Gaussian integrals of scipy; then the frequency with which the loss draws each."""
    from scipy.stats import norm

    levels = improved().levels(0.0)
    expected = torch.empty(0)
    for options in ((0.5, 1.2), (-1.1, 2.0)):
        reached = norm(*options).cdf(levels.log().numpy())
        expected = torch.from_numpy(reached).diff() / (reached[-1] - reached[0])
        torch.testing.assert_close(chances(levels, "lognormal", *options), expected, atol=1e-12, rtol=1e-9)
    rows, seen = 200_000, []

    def net(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        seen.append(t)
        return torch.zeros_like(x_t)

    x = torch.zeros(rows, 1)
    for method, wanted in ((improved(), expected), (Consistency(first=11), torch.full((10,), 0.1))):
        seen.clear()
        method.loss(net, x, x, generator=torch.Generator().manual_seed(0))
        times = log_time(method.levels(0.0))
        after, before = ((t.double()[:, None] - times).abs().argmin(1) for t in seen)
        assert torch.equal(after, before + 1)
        frequency = torch.bincount(before, minlength=10) / rows
        assert float(((frequency - wanted).abs() / (wanted / rows).sqrt()).max()) < 5  # standard errors


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_the_loss_is_its_definition(method: Consistency) -> None:
    """Write Alg. 3 out for one row at a time, from the times that the nets are told."""
    torch.manual_seed(0)
    x, noise = torch.randn(2, 6, 3, dtype=torch.float64)
    student, teacher = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    times: dict[str, list[Tensor]] = {"student": [], "teacher": []}

    def wrap(name: str, net: nn.Module) -> Net:
        def call(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
            times[name].append(t)
            out: Tensor = net(x_t) * (1 + t[:, None])
            return out

        return call

    loss = method.loss(wrap("student", student), x, noise, teacher=wrap("teacher", teacher), progress=0.4)
    levels = method.levels(0.4)

    def f(net: nn.Module, x_t: Tensor, sigma: float) -> Tensor:
        scale = math.sqrt(sigma**2 + 0.25)
        t = math.log(sigma / 0.002) / math.log(80 / 0.002)
        skip, out = 0.25 / ((sigma - 0.002) ** 2 + 0.25), (sigma - 0.002) * 0.5 / scale
        value: Tensor = skip * x_t + out * net(x_t / scale) * (1 + t)
        return value

    for i in range(6):
        after, before = (float(nearest_level(levels, times[name][0][i])) for name in times)
        error = f(student, x[i] + after * noise[i], after) - f(teacher, x[i] + before * noise[i], before)
        if method.distance == "pseudo_huber":
            c = 0.00054 * math.sqrt(3)
            expected = (error.square().sum() + c**2).sqrt() - c
        else:
            expected = error.square().mean() if method.distance == "l2" else error.abs().mean()
        if method.weight == "inverse_gap":
            expected = expected / (after - before) ** method.gap_power
        assert float(loss[i].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    loss.mean().backward()  # type: ignore[no-untyped-call]
    assert student.weight.grad is not None
    assert teacher.weight.grad is None


def test_a_lognormal_that_draws_no_level_is_refused() -> None:
    with pytest.raises(ValueError, match=r"p_mean is 100.0 and p_std 0.1: no level between 0.002 and 80.0"):
        Consistency(draw="lognormal", p_mean=100.0, p_std=0.1)
    Consistency(p_mean=100.0, p_std=0.1)  # not looked at by the uniform draw


def test_bfloat16_data_keep_their_levels_apart() -> None:
    """One in twenty of the 1,281 levels has a neighbour that is the same number in bf16."""
    method = improved()
    calls: list[tuple[torch.dtype, Tensor]] = []

    def net(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        calls.append((x_t.dtype, t))
        return torch.tanh(x_t)

    x, noise = torch.randn(2, 512, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert float((method.levels(0.99).bfloat16().diff() == 0).double().mean()) > 0.02  # control
    loss, _ = (
        method.loss(net, x.to(dtype), noise.to(dtype), progress=0.99, generator=torch.Generator().manual_seed(1))
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert bool(loss.isfinite().all())
    assert [dtype for dtype, _ in calls] == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert torch.equal(calls[0][1], calls[2][1])
    assert torch.equal(calls[1][1], calls[3][1])


def test_both_nets_drop_the_same_units_and_the_next_step_others() -> None:
    let_through: list[Tensor] = []
    drop = nn.Dropout(0.5)

    def net(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        let_through.append(drop(torch.ones(64)))
        return torch.zeros_like(x_t)

    x = torch.zeros(4, 2)
    torch.manual_seed(0)
    for _ in range(2):
        improved().loss(net, x, x)
    first, first_teacher, second, second_teacher = let_through
    assert torch.equal(first, first_teacher)
    assert torch.equal(second, second_teacher)
    assert not torch.equal(first, second)

    def quiet(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:  # a teacher in evaluation mode draws nothing
        return torch.zeros_like(x_t)

    for _ in range(2):  # the levels' draws are another generator's, as in training
        improved().loss(net, x, x, teacher=quiet, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(let_through[-1], let_through[-2])


def toy(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
    return torch.tanh(x_t) * (1 - t[:, None, None, None]) + 0.1


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 40])
def test_sampling_equals_diffusers(steps: int) -> None:
    from diffusers import CMStochasticIterativeScheduler

    scheduler = CMStochasticIterativeScheduler(clip_denoised=False)
    scheduler.set_timesteps(steps)
    noise = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x_t, generator = noise * scheduler.init_noise_sigma, torch.Generator().manual_seed(7)
    low, high = 250 * math.log(0.002), 250 * math.log(80)
    for i in scheduler.timesteps:
        raw = toy(scheduler.scale_model_input(x_t, i), ((i - low) / (high - low)).float().expand(3), None)
        x_t = scheduler.step(raw, i, x_t, generator=generator).prev_sample
    method = Consistency()
    ours = method.sample(toy, noise, steps=steps, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(ours, x_t, atol=1e-5, rtol=1e-5)
    other = method.sample(toy, noise, steps=steps, generator=torch.Generator().manual_seed(8))
    assert torch.equal(ours, other) == (steps == 1) == (not method.stochastic(steps))


def test_the_scalings_equal_diffusers_and_keep_the_boundary() -> None:
    from diffusers import CMStochasticIterativeScheduler

    scheduler, sigma = CMStochasticIterativeScheduler(), karras(9, low=0.002, high=80.0)
    skip, out, _ = scalings(sigma, sigma_data=0.5, floor=0.002)
    for ours, expected in zip((skip, out), scheduler.get_scalings_for_boundary_condition(sigma), strict=True):
        torch.testing.assert_close(ours, expected)
    assert (float(skip[-1]), float(out[-1])) == (1.0, 0.0)  # f is the identity at sigma_min
    for ours, expected in zip(scalings(sigma, sigma_data=0.5)[:2], scheduler.get_scalings(sigma), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_pseudo_huber_distance_is_quadratic_near_and_linear_far() -> None:
    """Both ends in closed form: |e|^2 / 2c near zero, |e| - c far away; the textbook form loses the near one."""
    c, zero = 0.00054 * math.sqrt(4), torch.zeros(1, 4)
    near = torch.full((1, 4), 1e-7)
    assert float(distance("pseudo_huber", near, zero)) == pytest.approx(4e-14 / (2 * c), rel=1e-4)
    textbook = float((near.square().sum() + c**2).sqrt() - c)
    assert textbook != pytest.approx(4e-14 / (2 * c), rel=0.5)
    assert float(distance("pseudo_huber", near * 1e8, zero)) == pytest.approx(20 - c, rel=1e-6)


@pytest.mark.parametrize("method", [*METHODS, Edm()], ids=[*IDS, "edm"])
def test_the_gradient_by_finite_differences(method: Consistency | Edm) -> None:
    torch.manual_seed(1)
    x, noise, weight = torch.randn(8, 3).double(), torch.randn(8, 3).double(), torch.randn(3, 3).double()
    frozen = weight.clone()

    def loss(w: Tensor) -> Tensor:
        def net(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
            return torch.tanh(x_t @ w)

        def teacher(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:  # else the difference would move it too
            return torch.tanh(x_t @ frozen)

        losses = method.loss(net, x, noise, teacher=teacher, progress=0.2, generator=torch.Generator().manual_seed(0))
        return losses.mean()

    assert torch.autograd.gradcheck(loss, weight.clone().requires_grad_(), eps=1e-6, atol=1e-5, rtol=1e-4)


def test_errors_say_what_may_come(unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"no distance named 'l3'; there are \['l2', 'l1', 'pseudo_huber', 'lpips'\]"):
        Consistency(distance="l3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'lpips' needs a file of weights"):
        Consistency(distance="lpips")
    with pytest.raises(ValueError, match="first is 20 and last 10"):
        Consistency(first=20, last=10)
    with pytest.raises(ValueError, match=r"teacher is 1\.0"):
        Consistency(teacher=1.0)
    with pytest.raises(ValueError, match=r"sigma_max 100\.0; they must rise within \[0.002, 80\]"):
        Consistency(sigma_max=100.0)
    with pytest.raises(ValueError, match=r"rho is 0\.0"):
        Edm(rho=0.0)
    with pytest.raises(ValueError, match="41 sampling steps; consistency sampling has 40 levels"):
        Consistency().sample(toy, torch.zeros(1, 1, 2, 2), steps=41)
    for method in (Consistency(), Edm()):
        with pytest.raises(ValueError, match="they must be equal"):
            method.loss(toy, torch.zeros(2, 3), torch.zeros(3, 3))


def lpips_tensors() -> dict[str, Tensor]:
    """Return a random network under the lpips package's names."""
    generator, tensors, channels = torch.Generator().manual_seed(0), {}, 3
    blocks = [(1, (0, 2), 64), (2, (5, 7), 128), (3, (10, 12, 14), 256), (4, (17, 19, 21), 512), (5, (24, 26, 28), 512)]
    for slice_, layers, width in blocks:
        for layer in layers:
            values = torch.randn(width, channels, 3, 3, generator=generator) * math.sqrt(2 / (9 * channels))
            tensors[f"net.slice{slice_}.{layer}.weight"] = values
            tensors[f"net.slice{slice_}.{layer}.bias"] = 0.1 * torch.randn(width, generator=generator)
            channels = width
        tensors[f"lin{slice_ - 1}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return tensors


def plain_lpips(tensors: dict[str, Tensor], first: Tensor, second: Tensor) -> Tensor:
    """Return LPIPS by VGG-16 as torchvision lists its layers, the two images one after the other."""
    layers: list[nn.Module] = []
    for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512):
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2, 2))
            continue
        part = next(name for name in tensors if name.endswith(f".{len(layers)}.weight") and name.startswith("net"))
        conv = nn.Conv2d(tensors[part].shape[1], width, 3, padding=1)
        conv.weight.data, conv.bias.data = tensors[part], tensors[part.replace("weight", "bias")]  # type: ignore[union-attr]
        layers += [conv, nn.ReLU()]

    def features(image: Tensor) -> list[Tensor]:
        image = nn.Upsample((224, 224), mode="bilinear")(image)
        mean, std = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        hidden, kept = (image - mean[:, None, None]) / std[:, None, None], []
        for i, layer in enumerate(layers):
            hidden = layer(hidden)
            if i in (3, 8, 15, 22, 29):
                kept.append(hidden / (hidden.norm(dim=1, keepdim=True) + 1e-10))
        return kept

    parts = [
        ((a - b).square() * tensors[f"lin{i}.model.1.weight"]).sum(1).mean((1, 2))
        for i, (a, b) in enumerate(zip(features(first), features(second), strict=True))
    ]
    return torch.stack(parts).sum(0)


@pytest.mark.slow
def test_lpips_equals_an_independent_network(tmp_path: Path, unchecked: None) -> None:
    from safetensors.torch import save_file

    tensors, path = lpips_tensors(), tmp_path / "lpips.safetensors"
    save_file(tensors, path)
    first, second = torch.rand(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        ours = distance("lpips", first, second, str(path))
        torch.testing.assert_close(ours, plain_lpips(tensors, first, second), rtol=1e-4, atol=1e-6)
        assert float(distance("lpips", first, first, str(path)).abs().max()) == 0
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(distance("lpips", first, second, str(path)), ours)
            assert torch.ones(1, 1).mm(torch.ones(1, 1)).dtype == torch.bfloat16  # control: it is on
    assert float(ours.min()) > 1e-3
    with pytest.raises(ValueError, match="lpips compares RGB images"):
        distance("lpips", first[:, :1], second[:, :1], str(path))
    save_file({name: value for name, value in tensors.items() if "lin3" not in name}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"has no tensor 'lin3\.model\.1\.weight'"):
        distance("lpips", first, second, str(tmp_path / "part.safetensors"))
    with pytest.raises(ValueError, match="cannot read the lpips weights"):
        distance("lpips", first, second, str(tmp_path / "nothing"))


@pytest.mark.slow
def test_two_points_are_learnt_in_one_step() -> None:
    """Train on two points in the plane: one step from noise lands near them, as it does not before."""
    torch.manual_seed(0)
    method, net, steps, generator = improved(last=40), _Small(), 1200, torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    points = torch.tensor([[-0.5, 0.5], [0.5, -0.5]])
    noise = torch.randn(500, 2, generator=generator)
    before = _nearest(method.sample(net, noise, steps=1), points)
    for i in range(steps):
        x = points[torch.randint(2, (128,), generator=generator)]
        eps = torch.randn(128, 2, generator=generator)
        optimizer.zero_grad()
        method.loss(net, x, eps, progress=i / steps, generator=generator).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = method.sample(net, noise, steps=1)
    assert _nearest(after, points) < 0.3 < 0.5 < before
    assert 0.3 < float((after[:, 0] > 0).float().mean()) < 0.7


def _nearest(x: Tensor, points: Tensor) -> float:
    return float(torch.cdist(x, points).min(1).values.median())


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers: Any = nn.Sequential(nn.Linear(3, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2))

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        out: Tensor = self.layers(torch.cat([x_t, t[:, None]], 1))
        return out
