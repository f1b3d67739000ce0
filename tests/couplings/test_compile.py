"""Couplings inside a compiled step, and under autocast, pair as they do outside."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion.couplings import Assignment, Nearest, assign, nearest
from sweeps import sweep

pytestmark = [pytest.mark.medium, pytest.mark.usefixtures("unchecked", "fresh")]
COSTS = ["l2", "dot", "cosine", "l1"]


@pytest.fixture
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.compiler.reset()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def training(couple: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """Return a flow-matching step that draws its noise inside, and the weight that it trains."""
    weight = (0.1 * randn(12, 12, seed=4)).requires_grad_()

    def step(x: Tensor, t: Tensor) -> Tensor:
        noise = couple(2 * x)
        x_t = (1 - t) * x + t * noise
        return ((x_t @ weight).tanh() - (noise - x)).square().mean()

    return step, weight


def outcome(step: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return loss and gradient of one step under seed 3."""
    torch.manual_seed(3)
    weight.grad = None
    loss = step(randn(16, 12), torch.rand(16, 1, generator=torch.Generator().manual_seed(1)))
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), torch.as_tensor(weight.grad).clone()


INSIDE: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"nearest by {cost}": lambda x, cost=cost: nearest(x, 4, cost=cost) for cost in COSTS},  # type: ignore[misc]
    "Nearest": Nearest(k=4),
    "nearest of 2.5": lambda x: nearest(x, 2.5, cost="dot"),
    **{f"Assignment by {cost}": Assignment(cost=cost) for cost in COSTS},  # type: ignore[arg-type]
    "assign in fp16": lambda x: assign(x, torch.randn_like(x), precision="fp16"),
    "more noise than data": lambda x: assign(x, torch.randn(24, 12)),
}


ALWAYS = {("nearest of 2.5", "eager"), ("Assignment by l2", "aot_eager")}


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(name, backend, marks=[] if (name, backend) in ALWAYS else pytest.mark.slow)
        for name in INSIDE
        for backend in ("eager", "aot_eager")
    ],
)
def test_a_compiled_step_is_the_eager_one(name: str, backend: str) -> None:
    step, weight = training(INSIDE[name])
    loss, gradient = outcome(step, weight)
    compiled_loss, compiled_gradient = outcome(torch.compile(step, backend=backend), weight)
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(compiled_gradient, gradient, rtol=1e-4, atol=1e-6)
    assert abs(float(outcome(*training(torch.randn_like))[0] - loss)) > 1e-3


@pytest.mark.parametrize("name", sweep([name for name in INSIDE if "earest" in name], 3))
def test_nearest_is_one_graph(name: str) -> None:
    step, weight = training(INSIDE[name])
    expected = outcome(step, weight)
    found = outcome(torch.compile(step, backend="aot_eager", fullgraph=True), weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_solver_on_the_host_breaks_the_graph() -> None:
    """The control of the test above."""
    step, weight = training(Assignment())
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        outcome(torch.compile(step, backend="eager", fullgraph=True), weight)


def test_the_solver_is_one_break(monkeypatch: pytest.MonkeyPatch) -> None:
    from immiscible_diffusion.couplings.solvers.solve import solve

    def step(x: Tensor) -> Tensor:
        return x[solve(2 * x)] + 1

    explained = torch._dynamo.explain(step)(randn(8, 8))
    assert (explained.graph_count, explained.graph_break_count) == (2, 1)
    assert torch.equal(torch.compile(step, backend="eager")(randn(8, 8)), step(randn(8, 8)))


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.slow
def test_assignment_breaks_the_graph_where_the_solver_is_called_alone(cost: Any) -> None:
    def step(x: Tensor) -> Tensor:
        return x - assign(2 * x, x.flip(0), cost=cost)

    explained = torch._dynamo.explain(step)(randn(8, 8))
    assert (explained.graph_count, explained.graph_break_count) == (3, 2)  # in `assign` and in its caller


def test_a_compiled_step_checks_nothing_and_an_eager_one_does() -> None:
    x = randn(4, 3)
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match="x holds NaN or infinity, first in row 1"):
        nearest(x, 4)
    noise = torch.compile(lambda x: nearest(x, 4), backend="eager", fullgraph=True)(x)
    assert torch.equal(noise.isfinite().all(1), torch.tensor([True, False, True, True]))


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.slow
def test_another_batch_size_and_value_need_no_other_answer(cost: Any) -> None:
    compiled = torch.compile(lambda x: nearest(x, 4, cost=cost), backend="eager")
    for b in (16, 5, 9, 1):
        for seed in range(2):
            torch.manual_seed(seed)
            expected = nearest(randn(b, 6, seed=seed), 4, cost=cost)
            torch.manual_seed(seed)
            torch.testing.assert_close(compiled(randn(b, 6, seed=seed)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["nearest by l2", "nearest by dot", "Assignment by l2"])
def test_inductor_compiles_it(name: str) -> None:
    """Inductor draws other numbers than eager, unless told to fall back."""
    import torch._inductor.config

    step, weight = training(INSIDE[name])
    expected = outcome(step, weight)
    with torch._inductor.config.patch(fallback_random=True):
        compiled = outcome(torch.compile(step), weight)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)


AUTOCAST: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{f"assign by {cost}": lambda x, n, cost=cost: assign(x, n, cost=cost) for cost in COSTS},  # type: ignore[misc]
    "assign in fp16": lambda x, n: assign(x, n, precision="fp16"),
    "assign in bf16": lambda x, n: assign(x, n, precision="bf16"),
    **{
        f"nearest by {cost}": lambda x, n, cost=cost: nearest(  # type: ignore[misc]
            x, 4, cost=cost, generator=torch.Generator().manual_seed(0)
        )
        for cost in COSTS
    },
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast_changes_no_digit(name: str, dtype: torch.dtype) -> None:
    """Rows from 1e-3 to 1e3, so that the digits of a cost matter."""
    x, noise = randn(128, 16) * torch.logspace(-3, 3, 128)[:, None], randn(128, 16, seed=1)
    expected = AUTOCAST[name](x, noise)
    with torch.autocast("cpu", dtype=dtype):
        paired = AUTOCAST[name](x, noise)
        assert (x @ noise.T).dtype == dtype
    assert paired.dtype == torch.float32
    assert torch.equal(paired, expected)


@pytest.mark.parametrize("name", ["assign by l2", "assign by dot", "nearest by l2", "nearest by dot"])
def test_code_that_lets_autocast_in_fails_the_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, noise = randn(128, 16) * torch.logspace(-3, 3, 128)[:, None], randn(128, 16, seed=1)
    expected = AUTOCAST[name](x, noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        monkeypatch.setattr(torch, "autocast", lambda *a, **k: nullcontext())
        assert not torch.equal(AUTOCAST[name](x, noise), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("cost", ["l2", "dot", "cosine"])
def test_nearest_is_one_graph_on_a_gpu(cost: Any) -> None:
    x = randn(64, 3, 8, 8).cuda()
    compiled = torch.compile(lambda x: nearest(x, 8, cost=cost), backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    noise = compiled(x)
    torch.manual_seed(0)
    torch.testing.assert_close(noise, nearest(x, 8, cost=cost), rtol=1e-5, atol=1e-5)
