"""DINOv2 and CLIP from tiny random models in the hub's layout."""

from pathlib import Path

import pytest
import torch

from benchmarks.precision._independent import pillow_bicubic
from immiscible_diffusion.features import Clip, Dinov2

pytestmark = pytest.mark.medium

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("dinov2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
        )
        transformers.Dinov2Model(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = transformers.CLIPConfig(
            text_config={**sizes, "vocab_size": 99}, projection_dim=12,
            vision_config={**sizes, "image_size": 24, "patch_size": 8, "projection_dim": 12},
        )  # fmt: skip
        transformers.CLIPModel(config).save_pretrained(path)
    return str(path)


def images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_dinov2_gives_the_class_token_of_scaled_images(dinov2: str) -> None:
    net = transformers.Dinov2Model.from_pretrained(dinov2).eval()
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (pillow_bicubic(images(), 56) / 255 - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        states = net(pixel_values=x).last_hidden_state
    features = Dinov2(dinov2, size=56)
    torch.testing.assert_close(features(images()), states[:, 0], rtol=0, atol=1e-4)
    assert float((features(images()) - states[:, 1]).abs().max()) > 0.01
    torch.testing.assert_close(features(images()[2:3]), features(images())[2:3], rtol=0, atol=1e-5)


def test_clip_gives_the_projected_embedding_of_unit_length(clip: str) -> None:
    net = transformers.CLIPModel.from_pretrained(clip).eval()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    x = (pillow_bicubic(images(), 24) / 255 - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        expected = net.visual_projection(net.vision_model(pixel_values=x).pooler_output)
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(Clip(clip)(images()), expected, rtol=0, atol=1e-4)


def test_fingerprints_follow_the_weights_not_the_path(dinov2: str, clip: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    transformers.Dinov2Model.from_pretrained(dinov2).save_pretrained(copy)
    assert Dinov2(str(copy)).fingerprint == Dinov2(dinov2).fingerprint
    assert Dinov2(str(copy), size=56).fingerprint != Dinov2(dinov2).fingerprint
    assert Clip(clip).fingerprint.startswith("clip/")


def test_what_is_not_such_a_model_is_refused(dinov2: str, clip: str, tmp_path: Path, unchecked: None) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        Dinov2(str(tmp_path))(images())
    net = transformers.Dinov2Model.from_pretrained(dinov2)
    net.config.save_pretrained(tmp_path)
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot read"):  # a pickle, where safetensors are needed
        Dinov2(str(tmp_path), "other")(images())
    with pytest.raises(ValueError, match="size is 0"):
        Dinov2(dinov2, size=0)
