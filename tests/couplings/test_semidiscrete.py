"""Noise first, then the datum whose cell it falls in; the fit is kept, goes on, and is the same on the way."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm
from torch import Tensor

from encodable import Blur, Pictures
from immiscible_diffusion import MLP, Assignment, Denoising, Digits, Pixels, Train, fit, new_state
from immiscible_diffusion.couplings import Cells, Flipped, Semidiscrete, Windowed, prepared, semidiscrete
from immiscible_diffusion.couplings._data_points import data_points
from immiscible_diffusion.couplings.semidiscrete import unevenness
from immiscible_diffusion.data import Images, Latents
from immiscible_diffusion.data.latent_files import encode
from immiscible_diffusion.diagnostics.effect import effect
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.registry import describe, make
from immiscible_diffusion.runs import checkpoint
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Batch, Coupling, HasChoice, HasMemory, HasPreparation, HasTrainingRows

pytestmark = pytest.mark.medium

CPU = torch.device("cpu")
SOURCE = Digits(held_out_rows=1500)  # 297 rows
LINE = torch.tensor([[-2.0], [-1.5], [0.0], [0.1], [0.7], [4.0]])
EDGES = norm.ppf([i / 6 for i in range(7)])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_line() -> Cells:
    """Return the cells of six points on a line, whose edges are the sixths of the normal distribution."""
    steps = [-EDGES[k + 1] * float(LINE[k + 1] - LINE[k]) for k in range(5)]
    return Cells(LINE, torch.tensor([0.0, *steps]).cumsum(0))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "immiscible-diffusion" / "potentials"


def made(couple: Semidiscrete, source: Any = SOURCE) -> tuple[list[float], Cells]:
    """Return the shares that a preparation yields, and what it returns."""
    shares, preparing = list[float](), couple.prepare(source, Pixels())
    while True:
        try:
            shares.append(next(preparing))
        except StopIteration as end:
            return shares, end.value


def test_each_noise_chooses_the_datum_whose_cell_it_lies_in() -> None:
    """The noise is what the generator draws, in its order; on a line a cell is a sixth of the distribution."""
    choice = on_line().choose(500, generator(0))
    assert torch.equal(choice.noise, torch.randn(500, 1, generator=generator(0)))
    expected = torch.bucketize(choice.noise[:, 0], torch.tensor(EDGES[1:-1], dtype=torch.float32))
    assert torch.equal(choice.places, expected)
    assert torch.equal(choice.x, LINE[expected])
    assert not choice.mirrored.any()
    assert not torch.equal(Cells(LINE, torch.zeros(6)).choose(500, generator(0)).places, expected)


def test_mirrored_pairs_are_mirror_images_of_pairs() -> None:
    """Half of them, noise and datum alike, so that noise stays normal and distances what they were."""
    data = torch.randn(20, 3, 4, 4, generator=generator(1))
    plain = Cells(data, torch.zeros(20)).choose(400, generator(0))
    flipped = Cells(data, torch.zeros(20), flip=True).choose(400, generator(0))
    side = flipped.mirrored
    assert torch.equal(flipped.places, plain.places)
    assert 150 < int(side.sum()) < 250
    for one, other in ((flipped.noise, plain.noise), (flipped.x, plain.x)):
        assert torch.equal(one[side], other[side].flip(-1))
        assert torch.equal(one[~side], other[~side])
        assert not torch.equal(one[side], other[side])


def test_the_fit_ends_even_and_says_how_far_it_is(cache: Path) -> None:
    shares, cells = made(Semidiscrete(0.2))
    assert shares[0] == 0.0
    assert shares[-1] == pytest.approx(1, abs=0.01)
    assert all(0 <= share <= 1 for share in shares)
    assert torch.equal(cells.data, data_points(SOURCE, Pixels(), CPU))
    assert -0.02 < unevenness(cells.data, cells.dual, draws=60_000, generator=generator(9)) < 0.25
    assert unevenness(cells.data, torch.zeros(297), draws=60_000, generator=generator(9)) > 0.5
    _, finer = made(Semidiscrete(0.05))
    assert unevenness(cells.data, finer.dual, draws=60_000, generator=generator(9)) < 0.07


def test_what_was_fitted_is_kept_by_the_data_and_the_tolerance(cache: Path) -> None:
    _, first = made(Semidiscrete(0.5))
    shares, again = made(Semidiscrete(0.5))
    assert shares == []
    assert torch.equal(first.dual, again.dual)
    (file,) = cache.glob("*.safetensors")
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for damaged in (whole[:200], bytes(flipped), whole.replace(b"ended", b"endes"), b""):
        assert damaged != whole
        file.write_bytes(damaged)
        shares, mended = made(Semidiscrete(0.5))
        assert shares
        assert torch.equal(first.dual, mended.dual)
        assert made(Semidiscrete(0.5))[0] == []
    for other in (made(Semidiscrete(0.4)), made(Semidiscrete(0.5), Digits(held_out_rows=1499))):
        assert other[0]
    assert len(list(cache.glob("*.safetensors"))) == 3


@pytest.mark.parametrize("cut", [1, 5, 17])
def test_a_fit_that_was_cut_goes_on_and_ends_the_same(cut: int, cache: Path) -> None:
    whole_shares, whole = made(Semidiscrete(0.03))
    (file,) = cache.glob("*.safetensors")
    file.unlink()
    preparing = Semidiscrete(0.03).prepare(SOURCE, Pixels())
    assert len(list(itertools.islice(preparing, cut))) == cut
    preparing.close()  # as an interrupt does
    assert file.exists() == (cut > 1)  # the first yield comes before the first step
    shares, resumed = made(Semidiscrete(0.03))
    assert torch.equal(resumed.dual, whole.dual)
    assert len(shares) == len(whole_shares) - max(0, cut - 2)  # the state that was kept is yielded again


def test_a_cache_that_cannot_be_written_costs_the_fit_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the cache .* cannot be written"):
        assert made(Semidiscrete(0.8))[1].dual.shape == (297,)


def test_equal_rows_are_given_up_with_a_word(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Twins(Digits):
        def training_rows(self, places: Tensor, mirrored: Tensor, generator: Any = None) -> Batch:
            return super().training_rows(places // 2, mirrored)

    monkeypatch.setattr(semidiscrete, "_MOST", 2.0)
    with pytest.warns(UserWarning, match=r"stay uneven: .*, not coupling.unevenness = 0.3; rows that are equal"):
        made(Semidiscrete(0.3), Twins(held_out_rows=1500))


@pytest.fixture
def pictures(tmp_path: Path) -> Images:
    """Fifteen pictures without symmetry, of which training sees twelve, some mirrored."""
    for i in range(15):
        values = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        (tmp_path / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(tmp_path / "images" / "ab"[i % 2] / f"{i:02d}.png")
    return Images(str(tmp_path / "images"), size=8, held_out_rows=3, flip=True)


@pytest.mark.parametrize("memory", [True, False])
def test_images_come_with_their_labels_mirrored_as_the_choice_says(pictures: Images, memory: bool, cache: Path) -> None:
    source = dataclasses.replace(pictures, memory=memory)
    cells = prepared(Semidiscrete(0.5), source, Pixels())
    assert isinstance(cells, Cells)
    assert cells.flip
    assert len(cells.data) == source.rows == 12
    choice = cells.choose(64, generator(0))
    batch = source.training_rows(choice.places, choice.mirrored)
    assert torch.equal(Pixels().encode(batch.raw), choice.x)
    assert batch.rows is not None
    assert batch.cond is not None
    names = [Path(source.row_name(int(row))).parent.name for row in batch.rows]
    assert names == ["ab"[label] for label in batch.cond.tolist()]
    held_out = source.held_out().rows
    assert held_out is not None
    assert not set(batch.rows.tolist()) & set(held_out.tolist())
    plain = prepared(Semidiscrete(0.5), dataclasses.replace(source, flip=False), Pixels())
    assert isinstance(plain, Cells)
    assert torch.equal(plain.dual, cells.dual)  # read: cells do not depend on the flip
    assert not plain.choose(64, generator(0)).mirrored.any()


@pytest.mark.slow
def test_cells_of_random_posteriors_are_those_of_their_means(tmp_path: Path, cache: Path) -> None:
    list(encode(Pictures(), Blur(), tmp_path / "encoded", flip=True))
    for flip in (False, True):
        source = Latents(str(tmp_path / "encoded"), flip=flip)
        places, sides = torch.arange(source.rows), torch.arange(source.rows) % 2 == 1
        means = source.training_rows(places, torch.zeros_like(sides))
        assert torch.equal(source.training_rows(places, torch.zeros_like(sides)).raw, means.raw)
        draws = torch.stack([source.training_rows(places, sides, generator(i)).raw for i in range(300)])
        mirrored = source.training_rows(places, sides)
        spread = draws.std(0)
        assert bool((spread > 0).any())
        error = ((draws.mean(0) - mirrored.raw).abs() - 5 * spread / 300**0.5).max()
        assert float(error) < 1e-3
        assert not torch.equal(mirrored.raw, means.raw)
        batch = next(dataclasses.replace(source, flip=False).batches(source.rows, 0))
        assert means.rows is not None
        assert batch.rows is not None
        assert means.rows.sort().values.equal(batch.rows.sort().values)
        order = batch.rows.argsort()
        if means.cond is not None and batch.cond is not None and source.classes is not None:
            assert torch.equal(means.cond[means.rows.argsort()], batch.cond[order])


SEEN: list[tuple[Tensor, Tensor]] = []
CONFIG = Train(steps=8, batch=32, lr=1e-2)


class Recording(Denoising):
    """A method that keeps what it sees."""

    def loss(self, net: Any, x: Tensor, noise: Tensor, cond: Tensor | None = None, **options: Any) -> Tensor:
        SEEN.append((x, noise))
        return super().loss(net, x, noise, cond, **options)


@pytest.mark.parametrize("prefetch", [False, True])
def test_training_takes_the_chosen_rows_and_goes_on_exactly(cache: Path, tmp_path: Path, prefetch: bool) -> None:
    """The resumed run's cells come from elsewhere: it keeps to its own."""
    config = dataclasses.replace(CONFIG, prefetch=prefetch)
    cells = prepared(Semidiscrete(0.5), SOURCE, Pixels())
    assert isinstance(cells, Cells)

    def fresh() -> Any:
        torch.manual_seed(0)
        return new_state(MLP(width=8, depth=1).build((1, 8, 8), None), config)

    SEEN.clear()
    state = fresh()
    for _ in fit(state, SOURCE, Pixels(), cells, Recording(), config):
        if state.step == 3:
            checkpoint.save(state, tmp_path / "kept")
    whole = list(SEEN)
    for i, (x, noise) in enumerate(whole):
        choice = cells.choose(32, stream(0, i, "noise"))
        assert torch.equal(x, choice.x)
        assert torch.equal(noise, choice.noise)
    SEEN.clear()
    resumed = fresh()
    assert checkpoint.load_newest(resumed, tmp_path / "kept")
    elsewhere = Cells(cells.data, torch.randn(len(cells.data), generator=generator(4)))
    list(fit(resumed, SOURCE, Pixels(), elsewhere, Recording(), config))
    assert all(
        torch.equal(*pair) for one, other in zip(SEEN, whole[3:], strict=True) for pair in zip(one, other, strict=True)
    )
    assert all(torch.equal(*pair) for pair in zip(resumed.net.parameters(), state.net.parameters(), strict=True))
    assert not torch.equal(
        elsewhere.choose(32, stream(0, 3, "noise")).x,
        Cells(cells.data, elsewhere.dual).choose(32, stream(0, 3, "noise")).x,
    )


def test_the_noise_is_nearer_than_that_of_a_batch(cache: Path) -> None:
    cells = prepared(Semidiscrete(0.2), SOURCE, Pixels())
    batches = [(Pixels().encode(batch.raw), batch.cond) for batch in itertools.islice(SOURCE.batches(32, 0), 9)]
    whole, batch = effect(cells, batches), effect(Assignment(), batches)
    assert whole["distance_reduction_percent"] > 1.3 * batch["distance_reduction_percent"]
    assert whole["noise_square"] == pytest.approx(1, abs=0.02)


def test_it_is_made_from_a_file_and_has_its_abilities() -> None:
    couple = make("coupling", {"use": "semidiscrete", "unevenness": 0.2})
    assert couple == Semidiscrete(0.2)
    assert make("coupling", describe("coupling", couple)) == couple
    assert isinstance(couple, Coupling)
    assert isinstance(couple, HasPreparation)
    assert isinstance(on_line(), Coupling)
    assert isinstance(on_line(), HasChoice)
    assert isinstance(on_line(), HasMemory)
    assert couple.prior([]) == on_line().prior([]) == StandardNormal()
    assert isinstance(Digits(), HasTrainingRows)
    assert prepared(Assignment(), Digits(), Pixels()) == Assignment()


def padded() -> Any:
    class Padded(Digits):
        def training_rows(self, places: Tensor, mirrored: Tensor, generator: Any = None) -> Batch:
            return super().training_rows(places, mirrored)._replace(mask=torch.ones(len(places), 1, 1, 8).bool())

    return Padded()


class Stream:
    """A source that cannot give a row by number."""

    shape, rows, classes = (1, 8, 8), 100, None

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        return Digits().batches(size, seed, start)

    def held_out(self) -> Batch:
        return Digits().held_out()


@pytest.mark.usefixtures("unchecked", "cache")
def test_misuse_is_named_before_any_fit() -> None:
    x = torch.randn(4, 1, 8, 8)
    for couple in (Semidiscrete(), on_line()):
        with pytest.raises(ValueError, match="draws noise first and chooses the data for it"):
            couple(x)
    with pytest.raises(ValueError, match=r"source Stream cannot give them so .*take coupling = 'assignment'"):
        next(Semidiscrete().prepare(Stream(), Pixels()))
    with pytest.raises(ValueError, match="source Stream cannot give them so"):
        next(
            fit(
                new_state(MLP(width=8).build((1, 8, 8), None), CONFIG),
                Stream(),
                Pixels(),
                on_line(),
                Denoising(),
                CONFIG,
            )
        )
    with pytest.raises(ValueError, match="these data are padded"):
        next(Semidiscrete().prepare(padded(), Pixels()))
    for wrap in (Flipped, Windowed):
        for couple in (Semidiscrete(), on_line()):
            with pytest.raises(ValueError, match="which chooses the data for its noise; it cannot be wrapped"):
                wrap(couple)
    with pytest.raises(ValueError, match="unevenness is 0"):
        Semidiscrete(0)
    with pytest.raises(ValueError, match="6 rows of data on cpu need as many potentials there"):
        Cells(LINE, torch.zeros(5))
    with pytest.raises(ValueError, match="data holds NaN or infinity, first in row 0"):
        Cells(torch.full((2, 1), torch.nan), torch.zeros(2))
    with pytest.raises(ValueError, match="remember 6 potentials, dual; there came"):
        on_line().remember({"dual": torch.zeros(5)})
    with pytest.raises(ValueError, match="b is 0"):
        on_line().choose(0)
