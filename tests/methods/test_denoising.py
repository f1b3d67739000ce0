import pytest
import torch
from scipy.stats import kstest, norm
from torch import Tensor

from immiscible_diffusion import Assignment, Betas, Denoising, Straight, make
from immiscible_diffusion.methods import Prediction
from immiscible_diffusion.types import Coupling, Net
from pairing import PAIRING
from shapes import unchecked

METHODS: list[tuple[Betas | Straight, Prediction]] = [
    (Betas(), "eps"),
    (Betas(), "x0"),
    (Betas(), "v"),
    (Betas(), "velocity"),
    (Betas("scaled_linear", first=0.00085, last=0.012), "eps"),
    (Straight(), "velocity"),
    (Straight(), "x0"),
    (Straight(), "v"),
]
IDS = [f"{type(s).__name__}-{getattr(s, 'kind', '')}-{p}" for s, p in METHODS]


def oracle(method: Denoising, x: Tensor, noise: Tensor) -> Net:
    """Return a net that knows the pair, written out case by case."""

    def net(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        if isinstance(method.schedule, Straight):
            alpha, sigma = 1 - t, t
        else:
            levels = torch.cumprod(1 - method.schedule.betas(), 0)[(t * 1000).round().long()]  # type: ignore[attr-defined]
            alpha, sigma = levels.sqrt().float(), (1 - levels).sqrt().float()
        alpha, sigma = alpha[:, None, None, None], sigma[:, None, None, None]
        if method.predict == "eps":
            return noise
        if method.predict == "x0":
            return x
        return noise - x if method.predict == "velocity" else alpha * noise - sigma * x

    return net


@pytest.mark.parametrize("coupling", PAIRING)
@pytest.mark.parametrize(("schedule", "predict"), METHODS, ids=IDS)
def test_a_net_that_knows_the_pair_has_no_loss(schedule: Betas | Straight, predict: Prediction, coupling: str) -> None:
    method, couple = Denoising(schedule, predict), make("coupling", coupling)
    assert isinstance(couple, Coupling)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 2, 4, 4, generator=generator)
    noise = couple(x, cond=torch.arange(16) % 2, generator=generator)
    loss = method.loss(oracle(method, x, noise), x, noise, generator=generator)
    assert loss.shape == (16,)
    assert float(loss.max()) < 1e-10
    # Control: the target of another noise, as in trainers that couple inside q_sample.
    apart = method.loss(oracle(method, x, noise.roll(1, 0)), x, noise, generator=generator)
    if predict != "x0":
        assert float(apart.mean()) > 0.1


@pytest.mark.parametrize(("schedule", "predict"), METHODS, ids=IDS)
def test_x_t_and_target_hold_the_same_noise(schedule: Betas | Straight, predict: Prediction) -> None:
    """Read the noise back out of x_t alone, and compare it with the noise in the target."""
    method = Denoising(schedule, predict)
    x, noise = torch.randn(2, 8, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    seen = {}

    def net(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        seen["x_t"], seen["t"] = x_t, t
        return torch.zeros_like(x_t)

    method.loss(net, x, noise, generator=torch.Generator().manual_seed(2))
    target = oracle(method, x, noise)(seen["x_t"], seen["t"], None)
    back, back_noise = method.split(seen["x_t"], seen["t"], target)
    torch.testing.assert_close(back, x, atol=2e-3, rtol=1e-3)  # 1 / alpha = 157 at the last level amplifies rounding
    torch.testing.assert_close(back_noise, noise, atol=2e-3, rtol=1e-3)


def test_the_loss_is_the_mean_square_error_of_each_row() -> None:
    x, noise = torch.randn(2, 5, 3)
    loss = Denoising(Betas(), "eps").loss(lambda x_t, t, cond: torch.zeros_like(x_t), x, noise)
    torch.testing.assert_close(loss, noise.square().mean(1))


def toy(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
    return torch.tanh(x_t) * (1 - t[:, None, None, None]) + 0.1


@pytest.mark.parametrize("steps", [1, 4, 10, 50, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("predict", "prediction_type"), [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")])
@pytest.mark.parametrize("clip", [0.0, 0.7])
@pytest.mark.medium
def test_sampling_equals_diffusers_ddim(predict: Prediction, prediction_type: str, steps: int, clip: float) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        clip_sample=clip > 0,
        clip_sample_range=clip or 1.0,
    )
    scheduler.set_timesteps(steps)
    noise = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = {}
    for clipped in (True, False):
        x_t = noise
        for i in scheduler.timesteps:
            guess = toy(x_t, (i / 1000).expand(3), None)
            x_t = scheduler.step(guess, i, x_t, use_clipped_model_output=clipped).prev_sample
        expected[clipped] = x_t
    ours = Denoising(Betas(), predict, clip=clip).sample(toy, noise, steps=steps)
    torch.testing.assert_close(ours, expected[True], atol=1e-3, rtol=1e-4)  # diffusers' cumulative product is float32
    # Control: another clip is another image.
    if steps > 1 and predict == "eps":
        other = Denoising(Betas(), predict, clip=0.7 - clip).sample(toy, noise, steps=steps)
        assert float((ours - other).abs().max()) > 1e-2
    # And so is one whose noise is not that of the clipped estimate, as diffusers has it unless told.
    if clip and steps > 1 and predict == "eps":
        assert float((ours - expected[False]).abs().max()) > 1e-2


def test_sampling_sees_diffusers_other_spacing() -> None:
    """Control of the comparison above: "leading" steps give another image."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="leading")
    scheduler.set_timesteps(10)
    noise = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x_t = noise
    for i in scheduler.timesteps:
        x_t = scheduler.step(toy(x_t, (i / 1000).expand(3), None), i, x_t, eta=0.0).prev_sample
    ours = Denoising(Betas(), "eps").sample(toy, noise, steps=10)
    assert float((ours - x_t).abs().max()) > 1e-2


@pytest.mark.parametrize("predict", ["velocity", "v", "x0"])
def test_flow_sampling_is_the_euler_step(predict: Prediction) -> None:
    method = Denoising(Straight(), predict)
    noise = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_t = noise
    for j in range(8):
        t = torch.full((3,), 1 - j / 8, dtype=torch.float64)
        x, eps = method.split(x_t, t, toy(x_t, t, None))
        x_t = x_t - (eps - x) / 8
    torch.testing.assert_close(method.sample(toy, noise, steps=8), x_t, atol=1e-6, rtol=1e-6)  # times are float32


def test_schedules_equal_diffusers() -> None:
    from diffusers import DDPMScheduler

    for ours in (Betas(), Betas("scaled_linear", first=0.00085, last=0.012)):
        scheduler = DDPMScheduler(beta_schedule=ours.kind, beta_start=ours.first, beta_end=ours.last)
        product = scheduler.alphas_cumprod
        alpha, sigma = ours.coefficients(torch.arange(1000) / 1000)
        torch.testing.assert_close(alpha, product.sqrt(), atol=1e-5, rtol=1e-4)  # diffusers' is a float32 product
        torch.testing.assert_close(sigma, (1 - product).sqrt(), atol=1e-5, rtol=1e-4)


def test_every_level_is_drawn_and_no_other() -> None:
    levels = (Betas(levels=7).draw(5000, torch.Generator().manual_seed(0), torch.device("cpu")) * 7).round()
    assert set(levels.tolist()) == set(range(7))


def test_errors_say_what_may_come() -> None:
    with pytest.raises(ValueError, match="eps leaves x open"):
        Denoising(Straight(), "eps")
    with unchecked(), pytest.raises(ValueError, match="they must be equal"):
        Denoising().loss(toy, torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="this schedule has 10 levels"):
        Denoising(Betas(levels=10), "eps").sample(toy, torch.zeros(1, 1, 2, 2), steps=11)
    with pytest.raises(ValueError, match="is 0; it must be a whole number >= 1"):
        Denoising().sample(toy, torch.zeros(1, 1, 2, 2), steps=0)
    with pytest.raises(ValueError, match="0 < first <= last < 1"):
        Betas(first=0.5, last=0.1)


def test_a_coupled_flow_finds_its_data() -> None:
    """Two points and their coupled noise: the exact conditional mean, integrated, ends on the points."""
    x = torch.tensor([[-2.0], [2.0]]).repeat(64, 1)
    noise = Assignment()(x, generator=torch.Generator().manual_seed(0))

    def mean_velocity(x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        sign = torch.sign(x_t)
        return (x_t - 2 * sign) / t[:, None]

    ends = Denoising(Straight(), "velocity").sample(mean_velocity, noise, steps=20)
    torch.testing.assert_close(ends.abs(), torch.full_like(ends, 2.0))


def test_logit_normal_times_have_their_distribution() -> None:
    """The Kolmogorov-Smirnov test against scipy's normal; the control is uniform times, and another mean."""
    draws = torch.Generator().manual_seed(0)
    t = Straight(logit_mean=0.7, logit_std=1.5).draw(5000, draws, torch.device("cpu"))
    assert float(t.min()) >= 0
    assert float(t.max()) < 1
    assert kstest(t.double().logit(), norm(0.7, 1.5).cdf).pvalue > 0.01
    assert kstest(t.double().logit(), norm(0, 1.5).cdf).pvalue < 1e-6
    plain = Straight().draw(5000, draws, torch.device("cpu"))
    assert kstest(plain.double(), "uniform").pvalue > 0.01
    far = Straight(logit_mean=200.0, logit_std=1.0).draw(10, draws, torch.device("cpu"))
    assert float(far.max()) < 1
    assert Denoising(make("schedule", {"use": "straight", "logit_std": 1.0})).schedule == Straight(logit_std=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_mean": 1.0}, r"logit_mean is 1.0 and logit_std 0, which draws times uniformly"),
        ({"logit_std": -1.0}, r"logit_std is -1.0; it must be a number >= 0"),
        ({"logit_mean": float("nan"), "logit_std": 1.0}, r"logit_mean is nan"),
    ],
)
def test_times_that_cannot_be_drawn_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Straight(**options)
