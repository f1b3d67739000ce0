"""Holes and known parts: what the net is told, and that it is told the truth."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from immiscible_diffusion import Digits, Pixels, make
from immiscible_diffusion.data import Painting
from immiscible_diffusion.experiments.experiment import read_experiment
from immiscible_diffusion.experiments.values import overridden
from immiscible_diffusion.files import read_lines
from immiscible_diffusion.runs.conditions import conditions_for
from immiscible_diffusion.runs.run import execute
from immiscible_diffusion.types import Batch

pytestmark = pytest.mark.medium


def first(source: Painting, size: int = 64, seed: int = 0, start: int = 0) -> Batch:
    return next(source.batches(size, seed, start))


@pytest.mark.parametrize("hole", ["inside", "outside"])
def test_the_condition_is_the_known_part_and_where_it_is(hole: str) -> None:
    source = Painting(Digits(), Pixels(), hole)  # type: ignore[arg-type]
    batch = first(source)
    x = Pixels().encode(batch.raw)
    assert batch.cond is not None
    mask, known = batch.cond[:, :1], batch.cond[:, 1:]
    assert batch.cond.shape == (64, 2, 8, 8)
    assert set(mask.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(known, x * (1 - mask))
    assert torch.equal(first(Painting(Digits(), Pixels(), hole)).raw, next(Digits().batches(64, 0)).raw)  # type: ignore[arg-type]
    for plane in mask[:, 0]:
        box = plane if hole == "inside" else 1 - plane
        rows, columns = box.amax(1).sum(), box.amax(0).sum()
        assert float(box.sum()) == float(rows * columns)  # one box, whole
        assert {float(rows), float(columns)} <= {3.0, 4.0, 5.0, 6.0}


@dataclass(frozen=True)
class Blur:
    """A codec whose every value is of many pixels, as an autoencoder's is: half the sides, means of 6 x 6."""

    def encode(self, raw: Tensor) -> Tensor:
        if raw.dtype != torch.uint8:
            return raw
        return torch.nn.functional.avg_pool2d(raw.float(), 6, 2, 2, count_include_pad=False) / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        raise AssertionError("not asked for")


@dataclass(frozen=True)
class Fixed:
    """One picture to hold out, and what training sees of one."""

    held: Tensor
    trained: Tensor
    classes: int | None = None
    rows: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.trained.shape[1:])

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        yield Batch(self.trained, None, torch.arange(1))

    def held_out(self) -> Batch:
        return Batch(self.held, None, torch.arange(1))


def test_an_encoder_sees_nothing_of_the_hole() -> None:
    """Whatever was in the hole, the condition is the same; where latents are stored, it is not."""
    picture = torch.randint(256, (1, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def conditions(image: Tensor, stored: bool) -> list[Tensor]:
        source = Painting(Fixed(image, Blur().encode(image) if stored else image), Blur())
        conds = [next(source.batches(1, 0)).cond, source.held_out().cond]
        return [cond for cond in conds if cond is not None]

    for part in range(2):
        plain = conditions(picture, False)[part]
        hole = torch.nn.functional.interpolate(plain[:, :1], (16, 16), mode="nearest") > 0
        inside, outside = picture.where(~hole, 255 - picture), picture.where(hole, 255 - picture)
        assert torch.equal(conditions(inside, False)[part], plain)
        assert not torch.equal(conditions(outside, False)[part], plain)  # control
        stored = conditions(picture, True)[part]
        assert torch.equal(stored[:, :1], plain[:, :1])
        assert torch.equal(stored[:, 1:], Blur().encode(picture) * (1 - stored[:, :1]))
        assert not torch.equal(conditions(inside, True)[part], stored)


def test_holes_are_named_by_seed_epoch_and_row_alone() -> None:
    source = Painting(Digits(), Pixels())

    def holes(size: int, seed: int, epoch: int) -> dict[int, torch.Tensor]:
        per_epoch = source.rows // size
        batches = itertools.islice(source.batches(size, seed, epoch * per_epoch), per_epoch)
        masks: dict[int, torch.Tensor] = {}
        for batch in batches:
            assert batch.rows is not None
            assert batch.cond is not None
            masks |= dict(zip(batch.rows.tolist(), batch.cond[:, 0], strict=True))
        return masks

    small, large = holes(16, 0, 0), holes(50, 0, 0)
    shared = sorted(set(small) & set(large))
    assert len(shared) > 1000
    assert all(torch.equal(small[row], large[row]) for row in shared)
    for other in (holes(50, 0, 1), holes(50, 1, 0)):  # control: another epoch, another seed
        same = sum(torch.equal(large[row], other[row]) for row in set(large) & set(other))
        assert same < len(large) / 10


def test_no_more_held_out_pictures_are_encoded_than_samples_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """An autoencoder took four minutes for 10,000 held-out pictures, for each of twelve runs, before any began."""
    (cell, *_) = read_experiment("painting").cells("smoke")
    encoded, encode = [0], Pixels.encode

    def counted(codec: Pixels, raw: Tensor) -> Tensor:
        encoded[0] += len(raw)
        return encode(codec, raw)

    whole = cell.config.source.held_out().cond
    assert whole is not None
    monkeypatch.setattr(Pixels, "encode", counted)
    got = conditions_for(cell.config, 8, first=8)
    assert got is not None
    assert torch.equal(got, whole[8:16])
    assert encoded[0] <= cell.config.evaluate.samples + 1
    assert torch.equal(conditions_for(cell.config, 3, first=len(whole) - 1), whole[[len(whole) - 1, 0, 1]])  # type: ignore[arg-type]


def test_places_and_sides_are_spread() -> None:
    source = Painting(Digits(), Pixels(), least=0.25, most=0.5)
    holes = torch.cat([first(source, 200, seed).cond[:, 0] for seed in range(5)])  # type: ignore[index]
    sides = holes.amax(2).sum(1)
    assert set(sides.tolist()) == {2.0, 3.0, 4.0}
    assert holes.mean(0).min() > 0.02
    middle, corner = holes.mean(0)[3:5, 3:5].mean(), holes.mean(0)[0, 0]
    assert middle > 2 * corner  # a box that stays inside covers the middle more often


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [{"hole": "around"}, {"least": 0.0}, {"least": 0.6, "most": 0.5}, {"most": 1.1}])
def test_what_is_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|need"):
        make("source", {"use": "painting", "source": "digits", "codec": "pixels", **wrong})


@pytest.mark.slow
def test_a_net_learns_to_use_the_known_part(tmp_path: Path) -> None:
    """After a few steps the known part is kept better than in pictures drawn for other holes."""
    experiment = read_experiment("painting")
    values = [("coupling", "assignment"), ("source.hole", "inside"), ("train.seed", 0), ("train.steps", 150)]
    values += [("evaluate.every", 150), ("evaluate.steps", [10]), ("evaluate.samples", 40), ("net.channels", [16, 16])]
    (cell,) = experiment.cells(None, values)
    list(execute(cell.config, tmp_path, torch.device("cpu")))
    (line,) = read_lines(tmp_path / "evaluations.jsonl")
    assert line["frechet"] > 0
    with Image.open(tmp_path / "samples" / "known-result-truth-10-matched.png") as grid:
        assert grid.size == (9 * 9 - 1, 8 * 9 - 1)
        cells = torch.from_numpy(np.asarray(grid).copy()).float()

    def cell_at(row: int, column: int) -> torch.Tensor:
        return cells[9 * row : 9 * row + 8, 9 * column : 9 * column + 8]

    source = cell.config.source
    assert isinstance(source, Painting)
    keep, truth = source.held_out().cond, source.held_out().raw
    assert keep is not None
    errors = {0: 0.0, 1: 0.0}
    for i in range(24):
        row, column = i // 3, 3 * (i % 3)
        known = 1 - keep[i, 0]
        assert torch.equal(cell_at(row, column + 2), truth[i, 0].float())
        for shift in errors:  # control: another picture's truth
            wrong = truth[(i + shift) % 24, 0].float()
            errors[shift] += float(((cell_at(row, column + 1) - wrong).square() * known).sum())
    assert errors[0] < 0.8 * errors[1]


def test_the_codecs_of_an_overridden_source_are_built() -> None:
    assert overridden({"source": {"use": "painting"}}, "source.source.path", "x")["source"]["source"] == {"path": "x"}
    cell = read_experiment("painting").cells("smoke")[0]
    assert cell.config.plain()["source"]["source"]["use"] == "digits"
