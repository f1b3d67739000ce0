"""The network against its published structure written out by hand, and against recorded distances."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.precision._extract import images_of
from immiscible_diffusion.features import Inception
from immiscible_diffusion.features._inception_net import LAYERS, InceptionNet, Layer, folded, layers_within
from immiscible_diffusion.metrics import frechet_distance, kernel_distance

pytestmark = pytest.mark.medium

SHORT: list[Layer] = [64, 192, 768, 1280, "spatial"]


@pytest.fixture(scope="session")
def weights(shared_data: Callable[[str], Path]) -> str:
    (path,) = shared_data("inception-2015").glob("*.safetensors")
    return str(path)


@pytest.fixture(scope="session")
def unfolded() -> dict[str, Tensor]:
    """Random weights of the whole network as pytorch-fid stores them, with batch normalisation."""
    generator, result = torch.Generator().manual_seed(0), {}

    def uniform(n: int, low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    for name, value in InceptionNet([*SHORT, 2048, "logits"]).state_dict().items():
        part = name.removesuffix(".weight")
        if name.startswith("fc"):
            result[name] = torch.randn(value.shape, generator=generator) * 0.05
        elif part != name:
            n = value[0].numel()
            result[f"{part}.conv.weight"] = torch.randn(value.shape, generator=generator) * (2 / n) ** 0.5
            result[f"{part}.bn.weight"] = uniform(len(value), 0.8, 1.2)
            result[f"{part}.bn.bias"] = uniform(len(value), -0.3, 0.3)
            result[f"{part}.bn.running_mean"] = uniform(len(value), -0.3, 0.3)
            result[f"{part}.bn.running_var"] = uniform(len(value), 0.5, 1.5)
            result[f"{part}.bn.num_batches_tracked"] = torch.tensor(7)
    return result


def by_hand(state: dict[str, Tensor], x: Tensor, padded: bool = False, last: str = "max") -> dict[Layer, Tensor]:
    """Return all layers' features: convolution, normalisation, ReLU and pools in the order of the published graph."""

    def conv(name: str, y: Tensor, stride: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
        y = functional.conv2d(y, state[f"{name}.conv.weight"], stride=stride, padding=pad)
        mean, variance = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
        return functional.batch_norm(
            y, mean, variance, state[f"{name}.bn.weight"], state[f"{name}.bn.bias"], eps=0.001
        ).relu()

    def average(y: Tensor) -> Tensor:
        return functional.avg_pool2d(y, 3, 1, 1, count_include_pad=padded)

    features: dict[Layer, Tensor] = {}
    x = conv("Conv2d_1a_3x3", x, 2)
    x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", x), 1, (1, 1))
    x = functional.max_pool2d(x, 3, 2)
    features[64] = x.mean((2, 3))
    x = functional.max_pool2d(conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", x)), 3, 2)
    features[192] = x.mean((2, 3))
    for m in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        five = conv(f"{m}.branch5x5_2", conv(f"{m}.branch5x5_1", x), 1, (2, 2))
        three = conv(f"{m}.branch3x3dbl_2", conv(f"{m}.branch3x3dbl_1", x), 1, (1, 1))
        three = conv(f"{m}.branch3x3dbl_3", three, 1, (1, 1))
        x = torch.cat([conv(f"{m}.branch1x1", x), five, three, conv(f"{m}.branch_pool", average(x))], 1)
    m = "Mixed_6a"
    double = conv(f"{m}.branch3x3dbl_2", conv(f"{m}.branch3x3dbl_1", x), 1, (1, 1))
    double = conv(f"{m}.branch3x3dbl_3", double, 2)
    x = torch.cat([conv(f"{m}.branch3x3", x, 2), double, functional.max_pool2d(x, 3, 2)], 1)
    for m in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        one = conv(f"{m}.branch1x1", x)
        if m == "Mixed_6d":
            features["spatial"] = one[:, :7].flatten(1)
        seven = conv(f"{m}.branch7x7_2", conv(f"{m}.branch7x7_1", x), 1, (0, 3))
        seven = conv(f"{m}.branch7x7_3", seven, 1, (3, 0))
        double = conv(f"{m}.branch7x7dbl_1", x)
        for i, pad in ((2, (3, 0)), (3, (0, 3)), (4, (3, 0)), (5, (0, 3))):
            double = conv(f"{m}.branch7x7dbl_{i}", double, 1, pad)
        x = torch.cat([one, seven, double, conv(f"{m}.branch_pool", average(x))], 1)
    features[768] = x.mean((2, 3))
    m = "Mixed_7a"
    three = conv(f"{m}.branch3x3_2", conv(f"{m}.branch3x3_1", x), 2)
    seven = conv(f"{m}.branch7x7x3_2", conv(f"{m}.branch7x7x3_1", x), 1, (0, 3))
    seven = conv(f"{m}.branch7x7x3_4", conv(f"{m}.branch7x7x3_3", seven, 1, (3, 0)), 2)
    x = torch.cat([three, seven, functional.max_pool2d(x, 3, 2)], 1)
    features[1280] = x.mean((2, 3))
    for m in ("Mixed_7b", "Mixed_7c"):
        ends = list[Tensor]()
        for stem in (
            conv(f"{m}.branch3x3_1", x),
            conv(f"{m}.branch3x3dbl_2", conv(f"{m}.branch3x3dbl_1", x), 1, (1, 1)),
        ):
            name = f"{m}.branch3x3_2" if not ends else f"{m}.branch3x3dbl_3"
            ends += [conv(f"{name}a", stem, 1, (0, 1)), conv(f"{name}b", stem, 1, (1, 0))]
        pooled = functional.max_pool2d(x, 3, 1, 1) if m == "Mixed_7c" and last == "max" else average(x)
        x = torch.cat([conv(f"{m}.branch1x1", x), *ends, conv(f"{m}.branch_pool", pooled)], 1)
    features[2048] = x.mean((2, 3))
    features["logits"] = features[2048] @ state["fc.weight"].T
    return features


def close(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.slow
def test_every_layer_equals_the_structure_written_out(unfolded: dict[str, Tensor]) -> None:
    layers = list(LAYERS)
    net = InceptionNet(layers).eval()
    net.load_state_dict(folded(unfolded))
    x = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        ours, expected = net(x), by_hand(unfolded, x)
        padded, averaged = by_hand(unfolded, x, padded=True), by_hand(unfolded, x, last="mean")
    for layer in layers:
        assert ours[layer].shape == (2, LAYERS[layer][1])
        assert close(ours[layer], expected[layer]) < 1e-5, layer
    for layer in (768, 2048):  # torchvision's pools, which are not those of FID, would be seen
        assert close(padded[layer], expected[layer]) > 1e-4
    assert close(averaged[2048], expected[2048]) > 1e-4


def test_the_network_has_the_published_number_of_parameters(weights: str) -> None:
    until_7a = sum(value.numel() for value in InceptionNet([1280]).state_dict().values())
    assert until_7a == 10_653_472
    assert layers_within(InceptionNet([1280]).state_dict()) == SHORT
    assert layers_within(InceptionNet(["logits"]).state_dict()) == list(LAYERS)


@pytest.mark.slow
def test_a_state_dict_with_its_sha256_is_folded_and_used(
    unfolded: dict[str, Tensor], tmp_path: Path, unchecked: None
) -> None:
    import hashlib

    path = tmp_path / "mine.pth"
    torch.save(unfolded, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    raw = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="no known file's"):
        Inception(str(path), "logits")(raw)
    x = functional.interpolate(raw.expand(-1, 3, -1, -1).float() / 255, (299, 299), mode="bilinear") * 2 - 1
    with torch.inference_mode():
        expected = by_hand(unfolded, x)
    features = Inception(str(path), "logits", sha256=digest)
    assert close(features(raw), expected["logits"]) < 1e-5
    assert features.fingerprint == f"inception/{digest}/logits/pytorch_fid"
    short = {name: value[:, :1] if name == "Conv2d_1a_3x3.conv.weight" else value for name, value in unfolded.items()}
    torch.save(short, tmp_path / "other.pth")
    digest = hashlib.sha256((tmp_path / "other.pth").read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="holds another network"):
        Inception(str(tmp_path / "other.pth"), 64, sha256=digest)(raw)


def test_weights_that_end_early_say_what_they_give(weights: str, unchecked: None) -> None:
    raw = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"does not reach layer 2048: it gives \[64, 192, 768, 1280, 'spatial'\]"):
        Inception(weights, 2048)(raw)
    with pytest.raises(ValueError, match="takes uint8 images"):
        Inception(weights, 64)(raw.float())
    with pytest.raises(ValueError, match="takes uint8 images"):
        Inception(weights, 64)(raw[:, :2])
    with pytest.raises(ValueError, match="layer is 512"):
        Inception(weights, 512)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resize is 'nearest'"):
        Inception(weights, resize="nearest")  # type: ignore[arg-type]


def test_features_do_not_depend_on_the_batch_and_do_on_the_resize(
    weights: str, shared_data: Callable[[str], Path]
) -> None:
    raw = images_of(shared_data("cifar10"), "test", 0, 3)
    whole = Inception(weights, 768)(raw)
    assert close(torch.cat([Inception(weights, 768)(raw[:1]), Inception(weights, 768)(raw[1:])]), whole) < 1e-5
    for resize in ("clean_fid", "tensorflow"):
        features = Inception(weights, 768, resize)
        assert close(features(raw), whole) > 1e-3


@pytest.mark.filterwarnings("ignore:.*will save all extracted features")
@pytest.mark.slow
def test_torchmetrics_agrees_through_the_same_network(weights: str, shared_data: Callable[[str], Path]) -> None:
    """FID and KID of the images themselves: our features as torchmetrics' network."""
    fid = pytest.importorskip("torchmetrics.image.fid")
    kid = pytest.importorskip("torchmetrics.image.kid")
    features = Inception(weights, 64)

    class Network(torch.nn.Module):
        num_features = 64

        def forward(self, x: Tensor) -> Tensor:
            return features(x)

    real, test = (images_of(shared_data("cifar10"), name, 0, 24) for name in ("train", "test"))
    frechet = fid.FrechetInceptionDistance(feature=Network()).set_dtype(torch.float64)
    kernel = kid.KernelInceptionDistance(feature=Network(), subsets=1, subset_size=24)
    for measure in (frechet, kernel):
        for part in range(0, 24, 12):
            measure.update(real[part : part + 12], real=True)
            measure.update(test[part : part + 12], real=False)
    ours = features(real), features(test)
    assert frechet_distance(*ours) == pytest.approx(float(frechet.compute()), rel=1e-4)
    assert kernel_distance(*ours) == pytest.approx(float(kernel.compute()[0]), abs=1e-4)


@pytest.mark.slow
def test_recorded_distances_are_met(weights: str, shared_data: Callable[[str], Path]) -> None:
    """FID at 768 and 1280 of 1,000 training and 1,000 test images: .153 and 3.16, recorded with other code."""
    cifar10 = shared_data("cifar10")
    real = Inception(weights).several(images_of(cifar10, "train", 0, 1000), [768, 1280])
    test = Inception(weights).several(images_of(cifar10, "test", 0, 1000), [768, 1280])
    assert frechet_distance(real[768], test[768]) == pytest.approx(0.153, abs=0.0006)
    assert frechet_distance(real[1280], test[1280]) == pytest.approx(3.16, abs=0.006)
