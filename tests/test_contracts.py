"""What holds for everything registered, so that a new file is tested the day it exists."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from encodable import Blur, Pictures
from immiscible_diffusion import Denoising, types
from immiscible_diffusion.data.latent_files import encode
from immiscible_diffusion.registry import KINDS, describe, lookup, make, names

pytestmark = pytest.mark.medium

PROTOCOLS: dict[str, Any] = {
    "coupling": types.Coupling,
    "method": types.Method,
    "codec": types.Codec,
    "source": types.Source,
    "features": types.Features,
    "metric": types.Metric,
    "net": types.NetDescription,
    "schedule": types.Schedule,
}
EVERYTHING = [(kind, name) for kind in KINDS for name in names(kind) if name != "plain"]  # "plain": a doctest's


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    for i in range(40):
        Image.fromarray(np.full((8, 8, 3), 6 * i, np.uint8)).save(path / f"{i:02d}.png")
    return path


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latents")
    assert [done.rows for done in encode(Pictures(), Blur(), path / "encoded")][-1] == 30
    return path / "encoded"


def demonstrations(path: Path) -> Path:
    """Write 12 episodes of 9 steps as LeRobot does."""
    import pyarrow as pa
    import pyarrow.parquet

    numbers = np.random.default_rng(0).normal(size=(108, 2))
    columns = {"observation.state": list(numbers), "action": list(numbers + 1), "episode_index": np.arange(108) // 9}
    pa.parquet.write_table(pa.table(columns), path)
    return path


def built(kind: str, name: str, folder: Path, latents: Path) -> Any:
    needed: dict[str, dict[str, Any]] = {
        "images": {"path": str(folder), "size": 8, "held_out_rows": 5},
        "latents": {"path": str(latents)},
        "vae": {"path": str(folder)},
        "painting": {"source": "digits", "codec": "pixels"},
        "windows": {"path": str(demonstrations(folder.parent / "demonstrations.parquet"))},
    }
    return make(kind, {"use": name, **needed.get(name, {})})


def test_every_kind_has_something() -> None:
    assert {kind for kind, _ in EVERYTHING} == set(KINDS)


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_an_object_is_its_own_frozen_configuration(kind: str, name: str, folder: Path, latents: Path) -> None:
    thing = built(kind, name, folder, latents)
    assert dataclasses.is_dataclass(thing)
    assert make(kind, describe(kind, thing)) == thing
    assert lookup(kind, name).__doc__
    if kind in PROTOCOLS:
        assert isinstance(thing, PROTOCOLS[kind])
    with pytest.raises(dataclasses.FrozenInstanceError):
        thing.anything = 1
    with pytest.raises(ValueError, match=f"unknown key {kind}.bogus"):
        make(kind, {"use": name, "bogus": 1})


@pytest.mark.parametrize("name", names("net"))
@pytest.mark.parametrize("classes", [None, 4])
def test_nets_keep_shape_and_use_their_labels_or_not(name: str, classes: int | None) -> None:
    torch.manual_seed(0)
    net = make("net", {"use": name, "conditional": classes is not None}).build((3, 8, 8), classes).eval()
    x_t, t = torch.randn(5, 3, 8, 8), torch.rand(5)
    labels = torch.tensor([0, 1, 2, 3, 0])
    with torch.no_grad():
        first, second = net(x_t, t, labels), net(x_t, t, labels.roll(1))
        assert first.shape == x_t.shape
        assert not torch.equal(net(x_t, t.roll(1), labels), first)
    assert torch.equal(first, second) == (classes is None)
    with pytest.raises(ValueError, match="labels; this source has none"):
        make("net", {"use": name, "conditional": True}).build((3, 8, 8), None)


@pytest.mark.parametrize("name", names("net"))
@pytest.mark.parametrize("classes", [None, 4])
def test_nets_read_what_they_wrote(name: str, classes: int | None, tmp_path: Path) -> None:
    described = make("net", {"use": name, "conditional": classes is not None})
    assert described.condition(classes) == ("nothing" if classes is None else "labels")
    torch.manual_seed(0)
    net = described.build((3, 8, 8), classes).eval()
    described.save(net, tmp_path)
    again = described.load(tmp_path, (3, 8, 8), classes).eval()
    other = described.build((3, 8, 8), classes).eval()  # control: other random weights
    x_t, t, labels = torch.randn(4, 3, 8, 8), torch.rand(4), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        assert torch.equal(again(x_t, t, labels), net(x_t, t, labels))
        assert not torch.equal(other(x_t, t, labels), net(x_t, t, labels))
    for path in list(tmp_path.rglob("*.safetensors")):
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"cannot (read|load)"):
        described.load(tmp_path, (3, 8, 8), classes)
    if isinstance(described, types.HasStockParts):
        assert all((tmp_path / part).is_dir() for part in described.stock_parts())


@pytest.mark.parametrize("name", names("net"))
def test_nets_with_a_dense_condition_know_its_shape(name: str) -> None:
    described = make("net", name)
    if not isinstance(described, types.HasDenseCondition):
        pytest.skip(f"{name} takes no dense condition")
    described = make("net", {"use": name, "beside": 2})
    assert described.condition(4) == "dense"
    net, x_t, t = described.build((3, 8, 8), None), torch.randn(4, 3, 8, 8), torch.rand(4)
    assert net(x_t, t, torch.zeros(4, *described.condition_shape((3, 8, 8)))).shape == x_t.shape
    with pytest.raises(ValueError, match="beside its input"):
        net(x_t, t, torch.zeros(4, 1, *described.condition_shape((3, 8, 8))))


@pytest.mark.parametrize("name", names("method"))
def test_methods_name_a_scheduler_of_diffusers_or_why_not(name: str) -> None:
    import diffusers

    sampling = make("method", name).stock_sampling()
    assert bool(sampling.scheduler) != bool(sampling.why_none)
    if sampling.scheduler:
        assert getattr(diffusers, sampling.scheduler)(**sampling.options).config


def trains_and_samples(method: types.Method, classes: int | None) -> None:
    """Assert what the training loop and the sampler need of a method: a loss a row, and images that can be repeated."""
    torch.manual_seed(0)
    net = make("net", {"use": "mlp", "width": 16, "conditional": classes is not None}).build((1, 4, 4), classes).eval()
    x, noise, start = torch.randn(3, 6, 1, 4, 4, generator=generator(0))
    cond = None if classes is None else torch.arange(6) % classes
    teacher = net if isinstance(method, types.HasTeacher) else None
    kept = x.clone(), noise.clone(), start.clone()
    state = torch.get_rng_state()

    def loss(noise: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return method.loss(net, x, noise, cond, teacher=teacher, progress=0.5, generator=generator(1), mask=mask)

    def sample(start: torch.Tensor, rows: slice) -> torch.Tensor:
        chosen = None if cond is None else cond[rows]
        return method.sample(net, start[rows], chosen, steps=2, generator=generator(2))

    first, everything = loss(noise), slice(None)
    assert (first.shape, first.dtype, first.requires_grad) == ((6,), torch.float32, True)
    assert bool(first.isfinite().all())
    assert bool((first >= 0).all())
    assert torch.equal(first, loss(noise))
    assert not torch.equal(first, loss(noise.roll(1, 0)))
    padded = loss(noise, torch.arange(6).reshape(6, 1, 1, 1) > 0)
    assert float(padded[0].detach()) == 0
    torch.testing.assert_close(padded[1:], first[1:])
    images = sample(start, everything)
    assert (images.shape, images.dtype, images.requires_grad) == (start.shape, start.dtype, False)
    assert bool(images.isfinite().all())
    assert torch.equal(images, sample(start, everything))
    assert not torch.equal(images, sample(noise, everything))
    if not (isinstance(method, types.HasFreshNoise) and method.stochastic(2)):
        # float32, and some methods scale their start by 80
        torch.testing.assert_close(images[2:4], sample(start, slice(2, 4)), rtol=1e-4, atol=1e-3)
    assert all(torch.equal(before, after) for before, after in zip(kept, (x, noise, start), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match=r"steps|levels"):
        method.sample(net, start, cond, steps=0)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", names("method"))
@pytest.mark.parametrize("classes", [None, 3])
def test_methods_train_and_sample(name: str, classes: int | None) -> None:
    trains_and_samples(make("method", name), classes)


class OfTheBatch(Denoising):
    """A loss that is one number a batch."""

    def loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().loss(*args, **kwargs).mean()


class OfTheGlobalGenerator(Denoising):
    """Samples that draw from the global generator."""

    def sample(self, net: Any, noise: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().sample(net, noise + 0.1 * torch.randn_like(noise), *args, **kwargs)


class WithoutItsNoise(Denoising):
    """A loss of noise that was not paired."""

    def loss(self, net: Any, x: torch.Tensor, noise: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().loss(net, x, torch.zeros_like(noise), *args, **kwargs)


class OfThePadding(Denoising):
    """A loss that counts what a mask leaves out."""

    def loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().loss(*args, **{**kwargs, "mask": None})


@pytest.mark.parametrize("broken", [OfTheBatch(), OfTheGlobalGenerator(), WithoutItsNoise(), OfThePadding()])
def test_a_method_that_breaks_the_contract_is_caught(broken: types.Method) -> None:
    with pytest.raises(AssertionError):
        trains_and_samples(broken, None)


@pytest.mark.parametrize("name", [name for name in names("codec") if name not in ("vae", "bounds")])
def test_codecs_invert_themselves(name: str) -> None:
    raw = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    codec = make("codec", name)
    assert torch.equal(codec.decode(codec.encode(raw)), raw)
    assert codec.encode(raw).dtype == torch.float32


@pytest.mark.parametrize("name", names("source"))
def test_sources_depend_on_their_arguments_alone(name: str, folder: Path, latents: Path) -> None:
    source = built("source", name, folder, latents)

    def first(size: int, seed: int, start: int, count: int) -> Iterator[torch.Tensor]:
        return (batch.raw for batch in itertools.islice(source.batches(size, seed, start), count))

    per_epoch = source.rows // 7
    whole = list(first(7, 3, 0, per_epoch + 3))
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], first(7, 3, 2, per_epoch + 1), strict=True))
    assert not torch.equal(whole[0], next(first(7, 4, 0, 1)))
    numbers = [batch.rows for batch in itertools.islice(source.batches(7, 3), per_epoch)]
    held = source.held_out().rows
    assert len(set(torch.cat(numbers).tolist())) == 7 * per_epoch
    assert not set(torch.cat(numbers).tolist()) & set(held.tolist())
    assert whole[0].shape == (7, *source.shape)
    assert whole[0].dtype in (torch.uint8, torch.float32)


@pytest.mark.parametrize("name", [name for name in names("source") if name not in ("latents", "painting")])
def test_sources_give_rows_by_number_as_their_batches_did(name: str, folder: Path, latents: Path) -> None:
    source = built("source", name, folder, latents)
    batch = next(source.batches(5, 0))
    taken = source.take(batch.rows)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(taken, batch, strict=True))
    assert not torch.equal(source.take(batch.rows.flip(0)).raw, batch.raw)
    with pytest.raises((ValueError, IndexError)):
        source.take(torch.tensor([10**6]))


@pytest.mark.parametrize("name", names("schedule"))
def test_schedules_fall_from_noise_to_data(name: str) -> None:
    schedule = make("schedule", name)
    times = schedule.times(20)
    assert bool((times.diff() < 0).all())
    assert float(times[0]) > 0.99
    assert 0 <= float(times[-1]) < 0.06
    alpha, sigma = schedule.coefficients(times)
    assert bool((alpha.diff() > 0).all())
    assert bool((sigma.diff() < 0).all())
    assert float(alpha[0]) < 0.01
    drawn = schedule.draw(1000, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert 0 <= float(drawn.min()) < 0.01
    assert 0.99 < float(drawn.max()) <= 1
