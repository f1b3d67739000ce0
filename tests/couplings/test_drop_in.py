"""``couple(x)`` stands where ``torch.randn_like(x)`` stood, whatever that was given; ``labels=`` is one word."""

from typing import Any

import pytest
import torch
from torch import Tensor

from immiscible_diffusion import couple
from immiscible_diffusion.couplings import Assignment, Greedy, Mixed, Nearest, assign, assign_index, nearest
from immiscible_diffusion.registry import make
from immiscible_diffusion.streams import stream
from pairing import PAIRING
from sweeps import sweep

OTHERWISE = "joint", "independent", "nearest", "oversampled", "flipped", "rotated"
"""Those that keep no class apart, leave no pair to a class, choose noise for each row alone, or put it elsewhere."""


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise_stream(seed: int = 0) -> torch.Generator:
    return stream(seed, 0, "noise")


X = randn(8, 3, 6, 6)


def test_couple_is_the_assignment_of_fresh_noise() -> None:
    noise = torch.randn(X.shape, generator=noise_stream())
    assert torch.equal(couple(X, generator=noise_stream()), assign(X, noise))
    assert not torch.equal(couple(X, generator=noise_stream()), noise)


@pytest.mark.parametrize("name", PAIRING)
def test_what_randn_like_takes_changes_no_number(name: str) -> None:
    options: dict[str, Any] = {"device": X.device, "dtype": X.dtype, "memory_format": torch.channels_last}
    plain = make("coupling", name)(X, generator=noise_stream())
    noise = make("coupling", name)(X, generator=noise_stream(), **options)
    assert torch.equal(noise, plain)
    assert noise.stride() == torch.randn_like(X, **options).stride() != plain.stride()
    for device in ("cpu", torch.device("cpu")):
        assert make("coupling", name)(X, device=device).device == X.device


@pytest.mark.parametrize("x", [X, X.contiguous(memory_format=torch.channels_last), X[:1].expand(4, -1, -1, -1), X.mT])
@pytest.mark.parametrize("memory_format", [torch.preserve_format, torch.contiguous_format])
def test_the_memory_format_is_that_of_randn_like(x: Tensor, memory_format: torch.memory_format) -> None:
    noise = couple(x, memory_format=memory_format)
    assert noise.stride() == torch.randn_like(x, memory_format=memory_format).stride()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"dtype": torch.bfloat16}, r"dtype is torch.bfloat16 and x is torch.float32.*convert x first"),
    "device": ({"device": "cuda:0"}, r"device is cuda:0 and x is on cpu.*move x first"),
    "meta": ({"device": "meta"}, "device is meta"),
    "memory format": (
        {"memory_format": torch.channels_last_3d},
        r"channels_last_3d, which no tensor of shape \(8, 3, 6",
    ),
    "labels of another length": (
        {"labels": torch.arange(7)},
        r"labels has .* shape \(7,\); it must hold an integer a row",
    ),
    "one-hot labels": ({"labels": torch.eye(8)}, r"labels has dtype torch.float32"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_x_is_refused(case: str) -> None:
    options, message = WRONG[case]
    for coupling in (couple, Nearest()):
        with pytest.raises(ValueError, match=message):
            coupling(X, **options)


def test_labels_are_one_word_for_functions_and_objects() -> None:
    labels, noise = torch.arange(8) % 2, torch.randn(X.shape, generator=noise_stream())
    within = assign(X, noise, labels=labels)
    assert torch.equal(couple(X, generator=noise_stream(), labels=labels), within)
    assert torch.equal(Assignment(per_class=True)(X, cond=labels, generator=noise_stream()), within)
    assert torch.equal(Assignment(per_class=True)(X, cond=0 * labels, generator=noise_stream(), labels=labels), within)
    assert not torch.equal(couple(X, cond=labels, generator=noise_stream()), within)  # a condition alone is no label


@pytest.mark.parametrize("name", sweep(sorted({*PAIRING} - {*OTHERWISE}), 4))
def test_rows_pair_within_their_class(name: str) -> None:
    """Two classes on opposite sides: plain pairing gives each the noise of its side, pairing within them does not."""
    labels = torch.arange(64) % 2
    x = 5 * (2.0 * labels - 1).reshape(-1, 1) + 0.1 * randn(64, 1)
    coupling = make("coupling", name)
    options = {"step": 10**6, "index": torch.arange(64)}
    sides = {
        given: torch.stack(
            [
                (make("coupling", name)(x, generator=noise_stream(seed), labels=lab, **options) * x.sign()).mean()
                for seed in range(40)
            ]
        ).mean()
        for given, lab in (("labels", labels), ("none", None))
    }
    assert abs(float(sides["labels"])) < 0.08  # 40 x 64 numbers: standard error .02
    assert name == "conditional" or float(sides["none"]) > 0.3
    assert isinstance(coupling, type(make("coupling", name)))


def test_a_class_is_paired_as_a_batch_of_its_own() -> None:
    labels, generator = torch.tensor([1, 0, 0, 1, 0, 1, 1, 0]), noise_stream()
    noise = Greedy()(X, generator=noise_stream(), labels=labels)
    for label in (0, 1):
        assert torch.equal(noise[labels == label], Greedy()(X[labels == label], generator=generator))


def test_what_belongs_to_rows_goes_with_them_into_a_class() -> None:
    labels, index, mask = torch.arange(8) % 2, torch.arange(8) + 3, (torch.arange(8) < 5).reshape(8, 1, 1, 1)
    seen: list[Any] = []

    class Keeping(Greedy):
        def pair(self, x: Tensor, rows: Any) -> Tensor:
            seen.append((x, rows))
            return super().pair(x, rows)

    Keeping()(X, cond=10 * labels, labels=labels, index=index, step=4, mask=mask)
    for label, (x, rows) in enumerate(seen):
        part = labels == label
        assert torch.equal(x, torch.where(mask, X, 0)[part])
        assert torch.equal(rows.cond, 10 * labels[part])
        assert torch.equal(rows.index, index[part])
        assert torch.equal(rows.mask, mask[part])
        assert rows.step == 4


def test_several_labels_act_as_their_combinations() -> None:
    domain, style, noise = torch.arange(8) % 2, torch.arange(8) // 4, randn(8, 3, 6, 6, seed=1)
    combined = assign_index(X, noise, labels=2 * domain + style)
    assert torch.equal(assign_index(X, noise, labels=(domain, style)), combined)
    assert not torch.equal(assign_index(X, noise, labels=domain), combined)
    assert torch.equal(
        couple(X, labels=(domain, style), generator=noise_stream()),
        couple(X, labels=2 * domain + style, generator=noise_stream()),
    )


def test_a_wrapper_hands_the_labels_on() -> None:
    labels = torch.arange(8) % 2
    inner = Assignment()(X, generator=noise_stream(), labels=labels)
    assert torch.equal(Mixed(Assignment(), start=1.0, end=1.0)(X, generator=noise_stream(), labels=labels), inner)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": 3}, "generator is 3; it must be one torch.Generator"),
        ({"generator": [torch.Generator()]}, "it must be one torch.Generator"),
        (
            {"labels": [0] * 8},
            r"labels hold a int; labels must be a tensor with an integer a row, \(8,\), such as torch",
        ),
        ({"labels": torch.zeros(8).numpy()}, "labels hold a ndarray; .*torch.tensor"),
        ({"mask": torch.ones(8, 3, dtype=torch.bool)}, r"write mask.reshape\(8, 3, 1, 1\)"),
        ({"mask": torch.ones(8, 3, 6, 6)}, r"write mask.bool\(\)$"),
        ({"mask": torch.ones(8, 6, 6, dtype=torch.bool)}, "each further axis as long as x's or 1$"),
    ],
)
def test_what_others_take_is_refused_with_a_remedy(options: dict[str, Any], message: str) -> None:
    for call in (Assignment(), Nearest(4)) if "generator" in options else (Assignment(),):
        with pytest.raises(ValueError, match=message):
            call(X, **options)


@pytest.mark.usefixtures("unchecked")
def test_a_mask_that_is_written_as_told_will_do() -> None:
    mask = torch.ones(8, 3)
    assert couple(X, mask=mask.bool().reshape(8, 3, 1, 1)).shape == X.shape
    with pytest.raises(ValueError, match=r"x is a torch\.uint8 tensor.*scale it to model space"):
        couple(X.byte())
    with pytest.raises(ValueError, match="generator is 3"):
        nearest(X, 4, generator=3)  # type: ignore[arg-type]


def test_a_second_argument_has_a_name() -> None:
    """couple(x, labels) and couple(x, noise), a habit from other libraries, once ran as couple(x) and said nothing."""
    for second in (torch.arange(8) % 2, torch.randn_like(X), None):
        with pytest.raises(TypeError, match=r"write couple\(x, labels=y\) .* paired by assign\(x, noise\)"):
            Assignment()(X, second)  # type: ignore[call-overload]
