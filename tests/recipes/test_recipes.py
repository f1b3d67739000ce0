"""The recipes' examples run with the real hosts, and the noise in x_t and target is one, paired with the data.

The hosts are installed by their names on the registry; a test whose host is absent is skipped and says so.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from immiscible_diffusion import one_noise

PAGES = Path(__file__).parents[2] / "docs" / "recipes"
HOSTS = {
    "torchcfm": "torchcfm",
    "denoising_diffusion_pytorch": "denoising-diffusion-pytorch",
    "rectified_flow_pytorch": "rectified-flow-pytorch",
    "flow_matching": "flow-matching",
    "k_diffusion": "k-diffusion",
    "smalldiffusion": "smalldiffusion",
    "lightning": "lightning",
    "jax": "jax",
    "diffusers": "diffusers",
}
IMPORT = re.compile(r"^(?:import|from) (\w+)", re.MULTILINE)

Scope = dict[str, Any]
Run = Callable[..., Scope]


def blocks(page: str) -> list[str]:
    """Return the Python examples of a page."""
    examples = re.findall(r"^```python\n(.*?)^```", (PAGES / page).read_text(encoding="utf-8"), re.M | re.S)
    assert examples
    return examples


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return the function that runs examples of a page, and records what its losses compared."""

    def run(page: str, *examples: int, independent: bool = False) -> Scope:
        scope: Scope = {"__name__": "recipe", "targets": [], "inputs": []}
        real = nn.functional.mse_loss

        def recorded(output: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            scope["targets"].append(target.detach())
            return real(output, target, *args, **kwargs)

        monkeypatch.setattr(nn.functional, "mse_loss", recorded)

        def seen(module: nn.Module, args: Any) -> None:
            if args:
                scope["inputs"].append((module, args[0].detach()))

        hook = nn.modules.module.register_module_forward_pre_hook(seen)
        torch.manual_seed(0)
        try:
            for i in examples:
                text = blocks(page)[i]
                if independent:  # the control: the same example with independent noise
                    text = re.sub(
                        r"^from .* import couple.*$",
                        r"\g<0>\nfrom immiscible_diffusion import Independent\ncouple = Independent()",
                        text,
                        flags=re.M,
                    )
                _need(text)
                exec(compile(text, page, "exec"), scope)  # noqa: S102
        finally:
            hook.remove()
        return scope

    return run


def _need(text: str) -> None:
    """Skip where a host that an example imports is not installed."""
    for name in IMPORT.findall(text):
        if name in HOSTS:
            pytest.importorskip(
                name, reason=f"{name} is not installed: pip install {HOSTS[name]}", exc_type=ImportError
            )


def input_of(scope: Scope, net: nn.Module) -> Tensor:
    """Return what a net was given first."""
    return next(given for module, given in scope["inputs"] if module is net)  # type: ignore[no-any-return]


def is_paired(x: Any, noise: Any) -> bool:
    """Return whether an exact assignment, by another package, leaves every row where it is."""
    data, noises = (torch.from_numpy(np.array(rows)).flatten(1).double() for rows in (x, noise))
    rows, columns = linear_sum_assignment(torch.cdist(data, noises).numpy())
    return bool((rows == columns).all())


PAIRED = {
    "overview": ("README.md", [0]),
    "diffusers": ("diffusers.md", [0]),
    "TorchCFM": ("torchcfm.md", [0]),
    "denoising-diffusion-pytorch": ("lucidrains.md", [0]),
    "rectified-flow-pytorch": ("lucidrains.md", [3]),
    "flow_matching": ("flow-matching.md", [0]),
    "minRF": ("transport.md", [0]),
    "SiT": ("transport.md", [1]),
    "EDM": ("sigma.md", [0]),
    "k-diffusion": ("sigma.md", [1]),
    "smalldiffusion": ("sigma.md", [2]),
    "Lightning": ("loops.md", [0]),
}


@pytest.mark.medium
@pytest.mark.filterwarnings("ignore")  # of the hosts
@pytest.mark.parametrize("host", PAIRED)
def test_the_noise_of_a_recipe_is_paired(host: str, run: Run) -> None:
    page, examples = PAIRED[host]
    scope = run(page, *examples)
    assert is_paired(scope["x"], scope["noise"])
    if "x_t" in scope and "target" in scope:
        one_noise(scope["x"], scope["x_t"], scope["target"])
    control = run(page, *examples, independent=True)
    assert not is_paired(control["x"], control["noise"])


@pytest.mark.medium
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("example", [0, 3], ids=["denoising-diffusion-pytorch", "rectified-flow-pytorch"])
def test_a_host_s_own_loss_uses_the_noise_it_was_given(example: int, run: Run) -> None:
    scope = run("lucidrains.md", example)
    x_t, target = input_of(scope, scope["net"]), scope["targets"][0]
    one_noise(scope["x"], x_t, target)
    span = torch.stack([scope["x"].flatten(1), scope["noise"].flatten(1)], dim=2).double()
    solved = torch.linalg.lstsq(span, x_t.flatten(1).double().unsqueeze(2)).solution
    assert torch.allclose((span @ solved).squeeze(2), x_t.flatten(1).double(), atol=1e-4), "x_t is made of this noise"


@pytest.mark.medium
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("objective", ["pred_noise", "pred_v"])
def test_the_trainer_of_denoising_diffusion_pytorch_and_its_own_option(objective: str, run: Run) -> None:
    """The page says that `immiscible=True` trains on other noise, and that the subclass does not."""
    scope = run("lucidrains.md", 0, 1)
    net, images = scope["net"], torch.rand(16, 3, 16, 16)

    def loss_of(diffusion: Any) -> tuple[Tensor, Tensor, Tensor]:
        seen: list[Tensor] = []
        hook = net.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        scope["targets"].clear()
        diffusion(images)
        hook.remove()
        return diffusion.normalize(images), seen[0], scope["targets"][0]

    one_noise(*loss_of(scope["Paired"](net, image_size=16, objective=objective)))
    with pytest.raises(ValueError, match="other noise"):
        one_noise(*loss_of(scope["GaussianDiffusion"](net, image_size=16, objective=objective, immiscible=True)))


@pytest.mark.medium
@pytest.mark.filterwarnings("ignore")
def test_k_diffusion_makes_its_loss_of_the_paired_noise(run: Run) -> None:
    scope = run("sigma.md", 1)
    net, sigma = scope["denoiser"].inner_model, scope["sigma"][:, None, None, None]
    noisy = scope["x"] + sigma * scope["noise"]
    scale = (sigma**2 + 0.25) ** -0.5
    torch.testing.assert_close(input_of(scope, net), noisy * scale)
    target = (scope["x"] - 0.25 * scale**2 * noisy) / (sigma * 0.5 * scale)
    torch.testing.assert_close(scope["losses"], target.square().flatten(1).mean(1))  # the net returns zeros


def test_noise_is_paired_before_sigma_and_not_after(run: Run) -> None:
    scope = run("sigma.md", 0)
    spread = scope["noise"].flatten(1).std(dim=1)
    assert 0.8 < float(spread.min()) <= float(spread.max()) < 1.2  # four standard errors of 192 coordinates
    from immiscible_diffusion import assign

    scaled = torch.randn_like(scope["y"]) * scope["sigma"]
    with pytest.warns(UserWarning, match="root mean square"):
        wrong = assign(scope["y"], scaled) / scope["sigma"]
    assert float(wrong.flatten(1).std(dim=1).max()) > 1.5  # the control: the net is told another row's sigma


@pytest.mark.medium
@pytest.mark.filterwarnings("ignore")
def test_halves_of_prior_preservation_keep_their_noise_apart(run: Run) -> None:
    scope = run("diffusers.md", 0, 1)
    for half in (slice(0, 8), slice(8, 16)):
        assert is_paired(scope["x"][half], scope["noise"][half])


@pytest.mark.medium
@pytest.mark.filterwarnings("ignore")
def test_joint_in_one_process_needs_no_step(run: Run) -> None:
    scope = run("loops.md", 1)
    assert is_paired(scope["x"], scope["noise"])
    assert scope["noise"].shape == (32, 4)


@pytest.mark.medium
@pytest.mark.filterwarnings("ignore")
def test_jax_arrays_are_paired_inside_jit(run: Run) -> None:
    scope = run("jax.md", 0)
    assert is_paired(scope["x"], scope["noise"])
    assert not is_paired(scope["x"], np.random.default_rng(0).normal(size=scope["x"].shape))


@pytest.mark.medium
@pytest.mark.filterwarnings("ignore")
def test_the_adapters_of_matchers_and_diffusions_pair(run: Run) -> None:
    scope = run("torchcfm.md", 1)
    t, x_t, u_t = scope["t"][:, None], scope["x_t"], scope["u_t"]
    x0, x1 = x_t - t * u_t, x_t + (1 - t) * u_t
    rows, columns = linear_sum_assignment(torch.cdist(x1, x0).square().numpy())
    cost, best = (x1 - x0).square().sum(), torch.cdist(x1, x0).square()[rows, columns].sum()
    torch.testing.assert_close(cost, best, rtol=1e-4, atol=0)
    assert float(run("lucidrains.md", 2)["diffusion"](torch.rand(2, 3, 8, 8)).detach()) > 0


@pytest.mark.filterwarnings("ignore")
def test_a_window_of_batches_of_one_row_is_paired(run: Run) -> None:
    scope = run("loops.md", 2)
    pool = list(scope["windows"](scope["loader"], 4, encode=scope["encode"]))[:4]
    x, noise = (torch.cat([each[i] for each in pool]) for i in (1, 2))
    assert is_paired(x, noise)


@pytest.mark.filterwarnings("ignore")
def test_micro_batches_are_paired_as_one_pool(run: Run) -> None:
    scope = run("loops.md", 3)
    assert is_paired(torch.cat(scope["latents"]), torch.cat(scope["noises"]))
    assert not is_paired(torch.cat(scope["latents"]), torch.cat(scope["noises"]).roll(1, 0))


def test_the_coupling_of_small_batches_serves_one_row(run: Run) -> None:
    couple = run("lora-trainers.md", 0)["couple"]
    x = torch.rand(1, 4, 16, 16).expand(200, 4, 16, 16) + 1
    near = (x - couple(x)).flatten(1).norm(dim=1).mean()
    assert float(near) < float((x - torch.randn_like(x)).flatten(1).norm(dim=1).mean()) - 0.5
    assert couple(x[:1]).shape == (1, 4, 16, 16)


def test_pages_keep_to_the_width_and_every_example_is_run() -> None:
    covered = {(page, i) for page, examples in PAIRED.values() for i in examples}
    covered |= {("lora-trainers.md", 0), ("lucidrains.md", 1), ("diffusers.md", 1), ("loops.md", 1), ("jax.md", 0)}
    covered |= {("torchcfm.md", 1), ("lucidrains.md", 2), ("loops.md", 2), ("loops.md", 3)}
    pages = sorted(PAGES.glob("*.md"))
    assert len(pages) >= 9
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert max(map(len, text.splitlines())) <= 120, page
        assert {(page.name, i) for i in range(len(re.findall(r"^```python", text, re.M)))} <= covered
