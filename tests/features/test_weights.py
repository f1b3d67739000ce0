"""Nothing is opened before its SHA-256 is known, and nothing but the known files is asked of the network."""

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from safetensors.torch import save
from torch import nn

from immiscible_diffusion.features import Inception, _weights
from immiscible_diffusion.features._weights import KNOWN, WeightsFile, digest_of_state, fetch, read_weights

pytestmark = pytest.mark.medium


class Trap:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.mark,)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "immiscible-diffusion" / "weights"


def test_downloads_are_known_checked_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, urls = b"the network", list[str]()
    url = "https://example.org/net.pth"
    monkeypatch.setattr(_weights, "KNOWN", {"net": WeightsFile(url, hashlib.sha256(content).hexdigest())})

    def opener(where: str) -> BinaryIO:
        urls.append(where)
        return io.BytesIO(content)

    path = fetch("net", opener)
    assert path == cache / "net.pth"
    assert path.read_bytes() == content
    assert fetch(url, opener) == path
    assert urls == [url]
    path.write_bytes(b"damaged")
    assert fetch("net", opener).read_bytes() == content
    assert urls == [url, url]


def test_other_content_than_the_known_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nothing of it was kept"):
        fetch("pytorch-fid", lambda url: io.BytesIO(b"something else"))
    assert not cache.exists()
    monkeypatch.setattr(_weights, "_LARGEST", 10)
    long = b"x" * 1000
    monkeypatch.setattr(
        _weights, "KNOWN", {"net": WeightsFile("https://example.org/n", hashlib.sha256(long).hexdigest())}
    )
    with pytest.raises(ValueError, match="nothing of it was kept"):
        fetch("net", lambda url: io.BytesIO(long))


def test_nothing_unknown_is_asked_for(cache: Path) -> None:
    def opener(url: str) -> BinaryIO:
        raise AssertionError(url)

    for name in ("https://example.org/net.pth", KNOWN["pytorch-fid"].url + "?x", "file:///etc/passwd", "nothing"):
        with pytest.raises(ValueError, match="neither a file nor a known download"):
            fetch(name, opener)


def test_a_failed_download_says_where_the_file_may_be_put(cache: Path) -> None:
    def opener(url: str) -> BinaryIO:
        raise OSError("no network")

    with pytest.raises(ValueError, match=r"no network; save it as .*pt_inception-2015-12-05-6726825d\.pth"):
        fetch("pytorch-fid", opener)


def test_a_pickle_is_opened_neither_unknown_nor_known(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "weights.pth"
    torch.save({"x": Trap(str(mark))}, path)
    with pytest.raises(ValueError, match="no known file's"):
        read_weights(path)
    with pytest.raises(ValueError, match="not 00"):
        read_weights(path, "00")
    with pytest.raises(ValueError, match="cannot read weights"):
        read_weights(path, digest(path))
    assert not mark.exists()
    with path.open("rb") as file:
        assert file.read(2) == b"PK"
    pickle.loads(pickle.dumps(Trap(str(mark))))  # noqa: S301 - the control: it does leave its mark when opened
    assert mark.exists()


def test_safetensors_need_no_sha256_but_meet_one_that_is_given(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save({"x": torch.arange(3.0)}))
    tensors, seen = read_weights(path)
    assert isinstance(tensors, dict)
    assert torch.equal(tensors["x"], torch.arange(3.0))
    assert seen == digest(path)
    assert read_weights(path, digest(path).upper())[1] == seen
    with pytest.raises(ValueError, match="has SHA-256"):
        read_weights(path, "0" * 64)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cannot read weights"):
        read_weights(path)
    with pytest.raises(ValueError, match="cannot read weights"):
        read_weights(tmp_path / "nowhere.pth")


def test_only_a_state_dict_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ValueError, match="not a state dict"):
        read_weights(path, digest(path))


class Layers(nn.Module):
    """2048 numbers of an image: its channels' means, repeated."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)).repeat(1, 683)[:, :2048].reshape(-1, 2048, 1, 1)


class StyleGAN(nn.Module):
    """A network with the interface of StyleGAN's TorchScript file."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_is_opened_after_its_sha256_alone(tmp_path: Path, unchecked: None) -> None:
    path = tmp_path / "net.pt"
    torch.jit.save(torch.jit.trace(StyleGAN(), torch.zeros(1, 3, 4, 4)), path)  # type: ignore[no-untyped-call]
    raw = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="no known file's"):
        Inception(str(path))(raw)
    features = Inception(str(path), resize="tensorflow", sha256=digest(path))(raw)
    expected = ((raw.float() - 128) / 128).mean((2, 3))
    torch.testing.assert_close(features[:, :3], expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="gives layer 2048 alone"):
        Inception(str(path), 768, sha256=digest(path))(raw)


def test_the_digest_of_tensors_sees_names_types_shapes_and_values() -> None:
    base = {"a": torch.arange(4.0), "b": torch.zeros(0)}
    others = (
        {"c": torch.arange(4.0), "b": torch.zeros(0)},
        {"a": torch.arange(4.0).double(), "b": torch.zeros(0)},
        {"a": torch.arange(4.0).reshape(2, 2), "b": torch.zeros(0)},
        {"a": torch.arange(4.0) + 1e-6, "b": torch.zeros(0)},
        {"a": torch.arange(4.0)},
    )
    digests = {digest_of_state(state) for state in (base, *others)}
    assert len(digests) == 6
    assert digest_of_state(dict(reversed(base.items()))) == digest_of_state(base)
