"""Features of a classifier that is trained on the data themselves."""

import itertools
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from immiscible_diffusion import Digits, Pixels
from immiscible_diffusion.codecs import Bounds
from immiscible_diffusion.data import Detour, Images
from immiscible_diffusion.features import Classifier, FittedClassifier
from immiscible_diffusion.features import _classifier_net as recipe
from immiscible_diffusion.features._resize import reduced
from immiscible_diffusion.features.training_images import training_images
from immiscible_diffusion.metrics import frechet_distance
from immiscible_diffusion.types import Batch, HasFingerprint, HasFitting
from shapes import unchecked


@pytest.fixture(scope="module")
def digits() -> FittedClassifier:
    return Classifier().fitted(Digits(), Pixels())


@pytest.fixture
def brief(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train for twelve steps, and return the empty folder that fitted classifiers are kept in."""
    monkeypatch.setattr(recipe, "_STEPS", 12)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "immiscible-diffusion" / "classifiers"


def unlabelled(folder: Path, count: int, size: int = 8) -> Images:
    folder.mkdir()
    for i, image in enumerate(Digits().take(torch.arange(count)).raw):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:04d}.png")
    return Images(str(folder), size=size, held_out_rows=count // 4)


def test_it_knows_held_out_digits_and_says_how_many(digits: FittedClassifier) -> None:
    held_out = Digits().held_out()
    right = float((digits.net(recipe.scaled(held_out.raw)).argmax(1) == held_out.cond).float().mean())
    assert digits.accuracy == pytest.approx(right, abs=1e-6)
    assert digits.accuracy > 0.96
    assert (digits.task, digits.held_out_rows) == ("labels", 500)


def test_its_features_are_the_last_numbers_before_the_classes(digits: FittedClassifier) -> None:
    raw = Digits().held_out().raw
    features = digits(raw)
    assert features.shape == (500, 128)
    torch.testing.assert_close(digits.net[-1](features), digits.net(recipe.scaled(raw)))
    torch.testing.assert_close(digits(raw[7:9]), features[7:9])


def test_no_held_out_digit_is_trained_on() -> None:
    images, labels = training_images(Digits(), Pixels(), 10**6)
    trained, unseen = ({image.numpy().tobytes() for image in part} for part in (images, Digits().held_out().raw))
    assert labels is not None
    assert len(images) == len(labels) == 1296  # three reads of 432
    assert len(trained & unseen) < 0.01 * len(unseen)  # equal drawings of two people
    assert training_images(Digits(), Pixels(), 10)[0].shape == (10, 1, 8, 8)


def test_distances_rise_with_the_noise(digits: FittedClassifier) -> None:
    raw, generator = Digits().held_out().raw, torch.Generator().manual_seed(0)
    real, noise = digits(raw[:250]), torch.randn(raw[250:].shape, generator=generator)
    damaged = [(raw[250:] + sigma * noise).round().clamp(0, 255).to(torch.uint8) for sigma in (0, 8, 16, 32, 64)]
    distances = [frechet_distance(real, digits(images)) for images in damaged]
    assert distances == sorted(distances)
    assert distances[-1] > 2 * distances[0]


@pytest.mark.medium
@pytest.mark.slow
def test_a_control_shuffled_labels_are_not_learned() -> None:
    images, labels = training_images(Digits(), Pixels(), 10**6)
    assert labels is not None
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    net = recipe.untrained((1, 8, 8), 10, 0)
    recipe.train(net, images, shuffled, flip=False, seed=0)
    held_out = Digits().held_out()
    assert recipe.accuracy(net, held_out.raw, held_out.cond) < 0.18  # chance is 0.1, s.d. 0.013


@pytest.mark.medium
@pytest.mark.slow
def test_rotations_of_images_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    features = Classifier().fitted(unlabelled(tmp_path / "images", 800), Pixels())
    assert (features.task, features.held_out_rows) == ("rotation", 200)
    assert features.net[-1].out_features == 4
    assert features.accuracy > 0.7  # chance is 0.25
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (500, 3, 8, 8), dtype=torch.uint8, generator=generator)
    assert recipe.accuracy(features.net, noise, None) == pytest.approx(0.25, abs=0.05)


def test_rotations_are_told_for_labelled_images_where_asked(brief: Path) -> None:
    features = Classifier(task="rotation").fitted(Digits(), Pixels())
    assert features.task == "rotation"
    assert features.net[-1].out_features == 4


def test_large_images_are_reduced_before_the_net_sees_them(brief: Path, tmp_path: Path) -> None:
    source = unlabelled(tmp_path / "images", 80, size=72)
    features = Classifier(size=8).fitted(source, Pixels())
    raw = source.held_out().raw
    assert (features.shape, features.size) == ((3, 72, 72), 8)
    assert torch.equal(features(raw), recipe.penultimate(features.net, reduced(raw, 8)))
    assert recipe.accuracy(features.net, reduced(raw, 8), None) == features.accuracy
    again = Classifier(size=8).fitted(source, Pixels())
    assert (again.size, again.seconds) == (8, features.seconds)  # read, not fitted
    assert torch.equal(again(raw), features(raw))
    other = Classifier(size=16).fitted(source, Pixels())
    assert other.net[0].weight.shape != features.net[0].weight.shape or not equal(features, other)
    with pytest.raises(ValueError, match=r"set evaluate.features.size = 64, or evaluate.features = 'pooled_pixels'"):
        Classifier().fitted(source, Pixels())


def test_training_images_are_reduced_as_held_out_ones() -> None:
    images, _ = training_images(Digits(), Pixels(), 100)
    small, _ = training_images(Digits(), Pixels(), 100, side=4)
    assert torch.equal(small, reduced(images, 4))
    assert small.shape == (100, 1, 4, 4)


def test_the_same_fit_has_the_same_bits(brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = Classifier().fitted(Digits(), Pixels())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    torch.rand(3)
    torch.set_num_threads(threads + 1)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            again = Classifier().fitted(Digits(), Pixels())
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
        torch.set_rng_state(before)
    assert list((tmp_path / "another").rglob("*.safetensors"))  # it was fitted, not read
    assert equal(first, again)
    assert not equal(first, Classifier(seed=1).fitted(Digits(), Pixels()))
    assert not equal(first, Classifier().fitted(Digits(held_out_rows=499), Pixels()))
    assert len(list(brief.glob("*.safetensors"))) == 1
    assert torch.equal(torch.get_rng_state(), before)


def equal(first: FittedClassifier, second: FittedClassifier) -> bool:
    states = first.net.state_dict(), second.net.state_dict()
    bits = all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert bits == (first.fingerprint == second.fingerprint)
    return bits


@pytest.mark.slow
def test_the_cache_gives_the_same_bits_and_is_mended_when_damaged(brief: Path) -> None:
    first = Classifier().fitted(Digits(), Pixels())
    (file,) = brief.glob("*.safetensors")
    kept = Classifier().fitted(Digits(), Pixels())
    assert kept.seconds == first.seconds  # it was read
    assert equal(first, kept)
    assert not kept.net.training
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    for damaged in (whole[:1000], bytes(flipped), whole.replace(b"accuracy", b"accurate"), b""):
        assert damaged != whole
        file.write_bytes(damaged)
        again = Classifier().fitted(Digits(), Pixels())
        assert again.seconds != first.seconds
        assert equal(first, again)
        assert Classifier().fitted(Digits(), Pixels()).seconds == again.seconds


def test_where_the_cache_cannot_be_written(brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the cache .* cannot be written"):
        assert Classifier().fitted(Digits(), Pixels()).task == "labels"


@pytest.mark.slow
def test_of_two_processes_one_fits_and_the_other_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = (
        "from immiscible_diffusion import Digits, Pixels\n"
        "from immiscible_diffusion.features import Classifier\n"
        "made = Classifier().fitted(Digits(), Pixels())\n"
        "print(made.fingerprint, made.seconds)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate()[0] for process in running]
    assert said[0].startswith(b"classifier/")
    assert said[0] == said[1]


def test_it_can_be_sent_to_other_processes(digits: FittedClassifier) -> None:
    assert isinstance(Classifier(), HasFitting)
    assert isinstance(digits, HasFingerprint)
    assert not isinstance(digits, HasFitting)
    assert equal(digits, pickle.loads(pickle.dumps(digits)))  # noqa: S301


@dataclass(frozen=True)
class Wide:
    """Images of 8 x 16 pixels without labels."""

    rows: int = 4
    classes: int | None = None
    shape: tuple[int, ...] = (3, 8, 16)

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        while True:
            yield Batch(torch.zeros(size, *self.shape, dtype=torch.uint8), None)

    def held_out(self) -> Batch:
        return next(self.batches(2, 0))


def test_what_cannot_be_learned_is_refused(digits: FittedClassifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be fitted to the data before use"):
        Classifier()(Digits().held_out().raw)
    with unchecked(), pytest.raises(ValueError, match="no task named 'classes'"):
        Classifier(task="classes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed is -1"):
        Classifier(seed=-1)
    for size in (-1, 3, 65):
        with pytest.raises(ValueError, match=f"size is {size}; it must be 0, or 4 to 64 pixels"):
            Classifier(size=size)
    with pytest.raises(ValueError, match="must be 0 unless images are square and no smaller: Wide yields 8 x 16"):
        Classifier(size=8).fitted(Wide(), Pixels())
    with pytest.raises(ValueError, match="must be 0 unless images are square and no smaller: Digits yields 8 x 8"):
        Classifier(size=9).fitted(Digits(), Pixels())
    with pytest.raises(ValueError, match=r"learn from images.*Detour yields.*set evaluate.features = 'values'"):
        Classifier().fitted(Detour(), Bounds())
    with pytest.raises(ValueError, match="4 to 64 pixels; Wide yields 8 x 65"):
        Classifier().fitted(Wide(shape=(3, 8, 65)), Pixels())
    with pytest.raises(ValueError, match="4 to 64 pixels; Wide yields 3 x 8"):
        Classifier().fitted(Wide(shape=(3, 3, 8)), Pixels())
    with pytest.raises(ValueError, match=r"1 or 3 channels; Wide yields \(2, 8, 8\)"):
        Classifier().fitted(Wide(shape=(2, 8, 8)), Pixels())
    with pytest.raises(ValueError, match="rotations need square images; Wide yields 8 x 16"):
        Classifier().fitted(Wide(), Pixels())
    with pytest.raises(ValueError, match="task is 'labels', and Wide has none"):
        Classifier(task="labels").fitted(Wide(), Pixels())
    other = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with unchecked(), pytest.raises(ValueError, match=r"trained on uint8 images \(1, 8, 8\); there came \(3, 8, 8\)"):
        digits(other)


def test_the_time_of_a_fit_is_that_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a second later: two steps take a second."""
    monkeypatch.setattr(time, "perf_counter", itertools.count().__next__)
    assert [Classifier().fit_seconds((1, 8, 8), rows) for rows in (1, 9000, 10**7)] == [100, 703, 2350]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 17, 40), (3, 32, 32), (1, 64, 64)])
def test_nets_for_every_size_end_in_128_numbers(shape: tuple[int, int, int]) -> None:
    net = recipe.untrained(shape, 7, 0)
    raw = torch.zeros(2, *shape, dtype=torch.uint8)
    assert recipe.penultimate(net, raw).shape == (2, 128)
    assert net(recipe.scaled(raw)).shape == (2, 7)


def test_images_are_shifted_and_mirrored_as_a_whole() -> None:
    image = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    padded = torch.nn.functional.pad(image.float(), (1, 1, 1, 1), mode="replicate").to(torch.uint8)[0, 0]
    shifted = {padded[i : i + 8, j : j + 8].numpy().tobytes() for i in range(3) for j in range(3)}
    both = shifted | {padded.flip(1)[i : i + 8, j : j + 8].numpy().tobytes() for i in range(3) for j in range(3)}
    for flip, allowed in ((False, shifted), (True, both)):
        moved = recipe._moved(image.expand(300, 1, 8, 8), flip, torch.Generator().manual_seed(0))
        assert {part.contiguous().numpy().tobytes() for part in moved} == allowed


@pytest.mark.slow
def test_it_learns_cifar10_at_8_pixels(
    shared_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = Images(str(shared_data("cifar10")), size=8, held_out_split="test", held_out_rows=0, flip=True)
    assert Classifier().fitted(source, Pixels()).accuracy > 0.6
