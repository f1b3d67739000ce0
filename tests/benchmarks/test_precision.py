"""The page of precision is what was measured, what was measured keeps to what was agreed, and the program resumes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.precision import extract, features_in, filled, tables
from benchmarks.precision._extract import LAYERS, images_of
from benchmarks.precision.measure import _closed_forms, _on_features, _published, _resizes
from immiscible_diffusion.features import Inception
from immiscible_diffusion.files import read_json

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[2]
MEASURED = read_json(ROOT / "tests" / "reference" / "precision.json")


def test_the_page_shows_what_was_measured() -> None:
    page = (ROOT / "docs" / "precision.md").read_text(encoding="utf-8")
    assert filled(page, MEASURED) == page
    row = MEASURED["agreement"][0]
    changed = {**MEASURED, "agreement": [{**row, "error": 0.123}, *MEASURED["agreement"][1:]]}
    assert filled(page, changed) != page
    with pytest.raises(ValueError, match="0 places <!-- agreement -->"):
        filled(page.replace("<!-- agreement -->", ""), MEASURED)


def test_what_was_measured_keeps_to_what_was_agreed() -> None:
    assert len(MEASURED["agreement"]) > 20
    for row in MEASURED["agreement"]:
        assert row["error"] <= row["agreed"], row
    for row in MEASURED["published"]:
        assert row["ours"] == pytest.approx(row["published"], rel=row["agreed"]), row
    assert {"train", "test"} <= {row["set"] for row in MEASURED["published"]}
    for layer in map(str, LAYERS):
        values = [row["layers"][layer]["mean"] for row in MEASURED["bias"]]
        assert values == sorted(values, reverse=True)
        assert len(values) >= 3


def test_tables_have_a_line_for_every_row() -> None:
    found = tables(MEASURED)
    for name in ("agreement", "published", "bias"):
        assert found[name].count("\n") == len(MEASURED[name]) + 1


@pytest.mark.slow
def test_every_stage_still_agrees(shared_data: Callable[[str], Path]) -> None:
    """The stages that take seconds, on random features: those of the network are measured by the program."""
    pytest.importorskip("torchmetrics")
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(24, 24, generator=generator)
    features = {
        name: dict.fromkeys((768, 1280), torch.randn(1000, 24, generator=generator) @ mix) for name in ("train", "test")
    }
    rows = [*_on_features(features), *_resizes(shared_data("cifar10"))]
    assert len(rows) > 12
    for row in rows:
        assert row["error"] <= row["agreed"], row


@pytest.mark.slow
def test_closed_forms_still_agree() -> None:
    for row in _closed_forms():
        assert row["error"] <= row["agreed"], row


class Counting:
    """Stands in for the network: features are sums of pixels, and calls are counted."""

    def __init__(self) -> None:
        self.images = 0

    def several(self, raw: torch.Tensor, layers: Sequence[Any]) -> dict[Any, torch.Tensor]:
        self.images += len(raw)
        sums = raw.float().sum((1, 2, 3))
        return {layer: sums[:, None] + layer for layer in layers}


def test_extraction_goes_on_where_it_was_cut(
    tmp_path: Path, shared_data: Callable[[str], Path], unchecked: None
) -> None:
    cifar10, network = shared_data("cifar10"), Counting()
    work = extract(cifar10, network, tmp_path, {"train": 500, "jpeg75": 250})  # type: ignore[arg-type]
    assert next(work).name == "train-00000.safetensors"
    work.close()  # type: ignore[attr-defined]
    rest = [path.name for path in extract(cifar10, network, tmp_path, {"train": 500, "jpeg75": 250})]  # type: ignore[arg-type]
    assert rest == ["jpeg75-00000.safetensors", "train-00250.safetensors"]
    assert network.images == 750
    features = features_in(tmp_path)
    assert set(features) == {"train", "jpeg75"}
    expected = images_of(cifar10, "train", 0, 500).float().sum((1, 2, 3))
    assert torch.equal(features["train"][768][:, 0], expected + 768)
    (tmp_path / "train-00000.safetensors").unlink()
    assert set(features_in(tmp_path)) == {"jpeg75"}  # nothing after a gap is taken
    (tmp_path / "jpeg75-00000.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="delete it"):
        features_in(tmp_path)
    for counts in ({"train": 100}, {"other": 250}):
        with pytest.raises(ValueError, match="multiples of 250"):
            next(extract(cifar10, Inception(), tmp_path, counts))


def test_damaged_images_are_damaged_by_as_much_as_they_say(shared_data: Callable[[str], Path], unchecked: None) -> None:
    cifar10 = shared_data("cifar10")
    plain = images_of(cifar10, "test", 10, 30)
    assert torch.equal(images_of(cifar10, "test", 0, 30)[10:], plain)
    middle = (plain > 80) & (plain < 175)  # where noise is not clipped
    for name, low, high in (("noise8", 7.8, 8.2), ("noise25", 24, 26), ("jpeg75", 1, 12)):
        damaged = images_of(cifar10, name, 10, 30)
        spread = float((damaged.float() - plain.float())[middle].std())
        assert low < spread < high
        assert torch.equal(images_of(cifar10, name, 12, 14), damaged[2:4])  # one image's noise is its own
    with pytest.raises(ValueError, match="holds 10000 test images; asked for were 10001"):
        images_of(cifar10, "test", 9999, 10_001)


def test_recorded_sets_without_features_are_left_out() -> None:
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    features = {"train": {768: x, 1280: x}, "test": {768: x[:500], 1280: x[:500]}}
    assert [row["set"] for row in _published(features)] == ["train"]
