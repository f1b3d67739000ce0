from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from immiscible_diffusion.features import PooledPixels
from immiscible_diffusion.metrics import (
    Moments,
    cached_features,
    frechet_from_moments,
    read_npz,
    reference,
    write_npz,
)

pytestmark = pytest.mark.medium


def moments(seed: int = 0) -> Moments:
    return Moments.of(torch.randn(50, 4, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "immiscible-diffusion" / "features"


class Counted:
    """Features that count how often they are made."""

    def __init__(self, fingerprint: str = "counted") -> None:
        self.fingerprint, self.made = fingerprint, 0

    def __call__(self, raw: Tensor) -> Tensor:
        self.made += 1
        return raw.float().flatten(1)


def test_features_are_made_once_for_the_same_images_network_and_arithmetic(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_WORTH_SECONDS", 0.0)
    raw = torch.arange(48, dtype=torch.uint8).reshape(4, 3, 2, 2)
    network = Counted()
    made = cached_features(raw, network)
    assert torch.equal(cached_features(raw, network), made)
    assert torch.equal(made, raw.float().flatten(1))
    assert network.made == 1
    # Another image, another order, another shape of the same bytes, another network: each is made.
    for other in (raw + 1, raw.flip(0), raw.reshape(4, 3, 4, 1)):
        assert torch.equal(cached_features(other, network), other.float().flatten(1))
    assert network.made == 4
    another = Counted("another")
    cached_features(raw, another)
    assert another.made == 1
    monkeypatch.setattr(torch, "__version__", "0.0")
    cached_features(raw, network)
    assert network.made == 5


def test_damaged_features_are_made_again_and_quick_ones_are_not_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    cached_features(raw, PooledPixels())
    assert not cache.exists()
    monkeypatch.setattr(reference, "_WORTH_SECONDS", 0.0)
    whole = cached_features(raw, PooledPixels())
    (file,) = cache.iterdir()
    for damaged in (file.read_bytes()[:-5], b"", b"\xff" * 40):
        file.write_bytes(damaged)
        assert torch.equal(cached_features(raw, PooledPixels()), whole)


def test_npz_goes_round_and_others_files_are_read(tmp_path: Path) -> None:
    path, made = tmp_path / "mine.npz", moments()
    write_npz(path, made)
    again = read_npz(path)
    assert frechet_from_moments(again, made) == pytest.approx(0, abs=1e-6)
    assert torch.equal(again.covariance, made.covariance)
    assert again.count == 50
    np.savez(path, mu=made.mean.numpy(), sigma=made.covariance.numpy())  # pytorch-fid, clean-fid and EDM
    foreign = read_npz(path)
    assert foreign.count is None
    assert torch.equal(foreign.mean, made.mean)
    write_npz(path, foreign)
    assert set(np.load(path).files) == {"mu", "sigma"}


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    for name in ("edm.pkl", "edm.pickle"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        with pytest.raises(ValueError, match="is a pickle, which can run code"):
            read_npz(tmp_path / name)
    path = tmp_path / "objects.npz"
    np.savez(path, mu=np.array([{}], dtype=object), sigma=np.eye(1))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_npz(path)


@pytest.mark.parametrize(
    ("mu", "sigma", "why"),
    [
        (np.zeros(2), np.eye(3), r"\(f,\) and \(f, f\)"),
        (np.zeros((2, 2)), np.eye(2), r"\(f,\) and \(f, f\)"),
        (np.zeros(2), np.array([[1.0, 0.5], [0.1, 1.0]]), "not symmetric"),
        (np.zeros(2), np.diag([1.0, -0.1]), "negative"),
        (np.array([0.0, np.nan]), np.eye(2), "finite"),
        (np.array(["a", "b"]), np.eye(2), "cannot read"),
    ],
)
def test_what_is_no_statistics_is_refused(tmp_path: Path, mu: object, sigma: object, why: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, mu=mu, sigma=sigma)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=why):
        read_npz(path)


def test_files_that_are_not_npz_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    for content in (b"", b"PK\x03\x04 not a zip", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot read statistics"):
            read_npz(path)
    np.savez(path, mean=np.zeros(2))
    with pytest.raises(ValueError, match="has no 'mu'"):
        read_npz(path)
    with pytest.raises(ValueError, match="cannot read statistics"):
        read_npz(tmp_path / "nowhere.npz")
