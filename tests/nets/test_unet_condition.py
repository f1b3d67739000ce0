"""The conditional U-Net: its condition is the stock pipeline's, and it drops and trains what was asked for."""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tiny_pipeline
from immiscible_diffusion import Denoising, Digits, Independent, Pixels, Train, fit, new_state
from immiscible_diffusion.nets import UNetCondition
from immiscible_diffusion.nets.text_encoder import text_encoder
from immiscible_diffusion.runs.conditions import EncodedCaptions, conditioned, with_prompts
from immiscible_diffusion.types import Batch
from sweeps import sweep

pytestmark = pytest.mark.medium

X_T = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.9, 0.999])
LABELS = torch.tensor([0, 1, 0, 1, 1, 0])
PROMPTS = ("a photo of a cat", "an aeroplane")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, shared_data: Callable[[str], Path]) -> Path:
    return tiny_pipeline.pipeline(tmp_path_factory.mktemp("pipeline"), shared_data)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def described(folder: Path, **options: Any) -> UNetCondition:
    return UNetCondition(
        **{"pretrained": str(folder), "text": str(folder), "prompts": PROMPTS, "conditional": True, **options}
    )


def learned(classes: int = 2, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    options = {"channels": (8, 16), "width": 16, "heads": 4, "conditional": True, **options}
    return UNetCondition(**options).build((4, 8, 8), classes).eval()


@torch.no_grad()
def ask(net: nn.Module, cond: Tensor | None) -> Tensor:
    out: Tensor = net(X_T, T, cond)
    return out


def test_the_condition_is_what_the_stock_pipeline_makes_of_the_prompts(folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    net = described(folder).build((4, 8, 8), 2).eval()
    prompts = [PROMPTS[label] for label in LABELS]
    states, null = pipeline.encode_prompt(prompts, "cpu", 1, True)
    with torch.no_grad():
        expected = pipeline.unet(X_T, 1000 * T, encoder_hidden_states=states).sample
        theirs_null = pipeline.unet(X_T, 1000 * T, encoder_hidden_states=null).sample
    torch.testing.assert_close(ask(net, LABELS), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ask(net, states.detach()), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ask(net, None), theirs_null, atol=1e-6, rtol=1e-5)
    assert float((expected - theirs_null).abs().mean()) > 1e-3  # control: text does something
    assert float((ask(net, 1 - LABELS) - expected).abs().mean()) > 1e-3
    unconditional = described(folder, conditional=False, prompts=()).build((4, 8, 8), 2).eval()
    torch.testing.assert_close(ask(unconditional, LABELS), theirs_null, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", sweep(["states", "labels", "learned"], 3))
def test_a_dropped_row_sees_the_null_condition_and_the_others_their_own(folder: Path, kind: str) -> None:
    net = learned(drop=0.2) if kind == "learned" else described(folder, drop=0.2).build((4, 8, 8), 2)
    cond = text_encoder(str(folder))([PROMPTS[label] for label in LABELS]) if kind == "states" else LABELS
    full, null = ask(net.eval(), cond), ask(net, None)
    net.train()
    dropped = []
    for seed in range(20):
        torch.manual_seed(seed)
        out = ask(net, cond)
        torch.manual_seed(seed)
        assert torch.equal(ask(net, cond), out)
        rows = (out - null).flatten(1).abs().amax(1) < (out - full).flatten(1).abs().amax(1)
        torch.testing.assert_close(out, torch.where(rows.reshape(-1, 1, 1, 1), null, full), atol=1e-5, rtol=1e-4)
        dropped.append(rows)
    assert 8 <= int(torch.stack(dropped).sum()) <= 40  # of 120, 24 expected: 3.6 deviations
    assert not any("states" in name for name in net.state_dict())  # a checkpoint need not hold what text gives
    setattr(net, "drop", 0.0)  # noqa: B010
    torch.testing.assert_close(ask(net, cond), full, atol=1e-6, rtol=1e-5)


def test_labels_have_rows_of_their_own_and_the_null_condition_another() -> None:
    net = learned()
    same = torch.zeros(6, dtype=torch.long)
    outs = [ask(net, same), ask(net, same + 1), ask(net, None)]
    assert torch.equal(outs[2], ask(net, net.null(same)))  # type: ignore[operator]
    assert all(float((a - b).abs().mean()) > 1e-3 for a, b in zip(outs, [outs[1], outs[2], outs[0]], strict=True))
    mixed = ask(net, LABELS)
    torch.testing.assert_close(mixed, torch.where(LABELS.bool().reshape(-1, 1, 1, 1), outs[1], outs[0]))


def gradients(net: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(3)
    net.train()(X_T, T, LABELS).square().mean().backward()
    return {name: weight.grad for name, weight in net.named_parameters() if weight.grad is not None}


def test_checkpointing_changes_memory_and_no_gradient() -> None:
    kept: list[int] = []

    def counted(net: nn.Module) -> dict[str, Tensor]:
        seen: list[int] = []

        def keep(saved: Tensor) -> Tensor:
            seen.append(saved.numel())
            return saved

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            grads = gradients(net)
        kept.append(sum(seen))
        return grads

    plain, again = counted(learned()), counted(learned(checkpointing=True))
    assert kept[1] < 0.7 * kept[0]
    assert set(plain) == set(again)
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value)


def test_lora_trains_its_updates_alone(folder: Path) -> None:
    base = described(folder).build((4, 8, 8), 2).eval()
    torch.manual_seed(0)
    net = described(folder, lora=2).build((4, 8, 8), 2).eval()
    assert torch.equal(ask(net, LABELS), ask(base, LABELS))  # the updates begin at zero
    trained = {name for name, weight in net.named_parameters() if weight.requires_grad}
    assert trained
    assert all(re.search(r"attn\d\.to_(q|k|v|out\.0)\.lora_[AB]\.", name) for name in trained)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = new_state(net, Train(steps=2, batch=6))
    assert state.optimizer is not None
    list(fit(state, Six(), Scaled(), Independent(), Denoising(), Train(steps=2, batch=6, lr=0.1, warmup=0)))
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained
    assert float((ask(net.eval(), LABELS) - ask(base, LABELS)).abs().mean()) > 1e-3
    assert float((ask(state.ema, LABELS) - ask(base, LABELS)).abs().mean()) > 1e-4


class Six:
    """Six latents with two labels or the numbers of six captions."""

    shape = (4, 8, 8)
    rows = 6

    def __init__(self, classes: int | None = 2, names: tuple[str, ...] | None = None) -> None:
        self.classes, self.class_names = classes, names

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        while True:
            yield self.held_out()

    def held_out(self) -> Batch:
        return Batch(X_T, LABELS if self.classes else torch.arange(6), torch.arange(6))


class CaptionedSix(Six):
    def caption_texts(self, numbers: Tensor) -> list[str]:
        return [f"number {i}" for i in numbers.tolist()]


class Scaled:
    def encode(self, raw: Tensor) -> Tensor:
        return raw

    def decode(self, x: Tensor) -> Tensor:
        return x


def test_captions_become_hidden_states_on_the_way_to_the_net(folder: Path) -> None:
    source = conditioned(CaptionedSix(None), described(folder, prompts=()))
    assert isinstance(source, EncodedCaptions)
    assert (source.shape, source.rows, source.classes) == ((4, 8, 8), 6, None)
    expected = text_encoder(str(folder))([f"number {i}" for i in range(6)])
    for batch in (next(source.batches(6, 0)), source.held_out()):
        assert batch.cond is not None
        assert torch.equal(batch.cond, expected)
        assert torch.equal(batch.raw, X_T)
    assert float((expected[0] - expected[1]).abs().max()) > 0.1
    labelled = CaptionedSix(2)
    assert conditioned(labelled, described(folder)) is labelled
    assert conditioned(CaptionedSix(None), UNetCondition()).classes is None  # nobody asks for text


@pytest.mark.usefixtures("unchecked")
def test_texts_that_are_cut_are_told_once(copied: Path, recwarn: pytest.WarningsRecorder) -> None:
    encoder = text_encoder(str(copied))
    fits, cut = "word " * 75, "word " * 76  # of 77 tokens, two mark the ends
    states = encoder([fits])
    assert not [warning for warning in recwarn.list if "tokens" in str(warning.message)]
    with pytest.warns(UserWarning, match=r"1 of 3 texts have more than 77 tokens, .* and are cut, such as 'word word"):
        encoded = encoder([fits, cut, "a"])
    assert torch.equal(encoded[1], states[0])
    recwarn.clear()
    encoder([cut])
    assert not recwarn.list


def test_a_source_without_the_condition_asked_for_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="Six has neither labels nor captions"):
        conditioned(Six(None), described(folder))
    with pytest.raises(ValueError, match=r"does not name its 2 classes; give net\.prompts"):
        with_prompts(described(folder, prompts=()), Six())
    named = Six(names=("tench", "church"))
    assert with_prompts(described(folder, prompts=()), named).prompts == ("tench", "church")
    assert with_prompts(described(folder), named).prompts == PROMPTS
    assert with_prompts(UNetCondition(conditional=True), named).prompts == ()


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="prompts are 2; there must be one for each of 3 classes"):
        described(folder).build((4, 8, 8), 3)
    with pytest.raises(ValueError, match="takes 4 channels; the data are"):
        described(folder).build((3, 8, 8), 2)
    with pytest.raises(ValueError, match="brings its own architecture: leave out channels"):
        described(folder, channels=(8, 16))
    with pytest.raises(ValueError, match="prompts need text"):
        described(folder, text="")
    with pytest.raises(ValueError, match="no folder nowhere, and it is no name on the hub"):
        described(folder, pretrained="nowhere").build((4, 8, 8), 2)
    net = described(folder).build((4, 8, 8), 2)
    with pytest.raises(ValueError, match=r"hidden states are \(b, 77, 32\)"):
        net(X_T, T, torch.zeros(6, 77, 16))
    with pytest.raises(ValueError, match=r"channels are \(8, 12\)"):
        UNetCondition(channels=(8, 12))
    for options in ({"drop": 1.0}, {"attention": (2,)}, {"lora": -1}, {"tokens": 0}):
        with pytest.raises(
            ValueError, match=r"drop is 1.0; it must|there are 2 levels|(lora|tokens) is .* whole number"
        ):
            UNetCondition(**options)
    with pytest.raises(ValueError, match="levels need"):
        UNetCondition().build((4, 7, 7), None)


@pytest.mark.parametrize(
    "damage", sweep(["pickle", "missing unet", "missing encoder", "cut", "lacking", "another class", "wide"], 4)
)
def test_a_damaged_pipeline_is_one_error(copied: Path, damage: str, shared_data: Callable[[str], Path]) -> None:
    weights, config = copied / "unet" / "diffusion_pytorch_model.safetensors", copied / "unet" / "config.json"
    message = "cannot load the U-Net"
    if damage.startswith("missing"):
        shutil.rmtree(copied / ("unet" if damage.endswith("unet") else "text_encoder"))
        message = r"has no (unet|text_encoder)/"
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "lacking":
        tensors = load_file(weights)
        del tensors["conv_in.weight"]
        save_file(tensors, weights, {"format": "pt"})
        message = "lacks 1 tensors"
    elif damage == "another class":
        config.write_text(config.read_text().replace("UNet2DConditionModel", "UNet2DModel"))
        message = "must be a UNet2DConditionModel"
    elif damage == "wide":
        shutil.rmtree(copied / "text_encoder")
        tiny_pipeline.text_parts(copied, shared_data("clip-tokenizer"), width=16)
        message = "attends to states of width 32"
    else:
        torch.save(load_file(weights), copied / "unet" / "diffusion_pytorch_model.bin")
        weights.unlink()
    with pytest.raises(ValueError, match=message):
        described(copied).build((4, 8, 8), 2)


def test_a_text_encoder_with_missing_weights_is_refused(copied: Path) -> None:
    weights = copied / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    del tensors[next(name for name in tensors if "final_layer_norm" in name)]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 tensors"):
        text_encoder(str(copied))


@pytest.mark.slow
def test_digits_train_with_learned_tokens(tmp_path: Path) -> None:
    """Smoke: a loss falls where the U-Net is told the class."""
    torch.manual_seed(0)
    config = Train(steps=30, batch=64, lr=3e-3, warmup=0)
    net = UNetCondition(channels=(8, 16), heads=4, width=16, conditional=True).build((1, 8, 8), 10)
    losses = [s.loss for s in fit(new_state(net, config), Digits(), Pixels(), Independent(), Denoising(), config)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_an_export_without_text_encoder_is_trained_further_with_its_tokens(tmp_path: Path) -> None:
    net = UNetCondition(channels=(8, 16), width=16, heads=4, conditional=True)
    torch.manual_seed(0)
    first = net.build((4, 8, 8), 2).eval()
    net.save(first, tmp_path)
    torch.manual_seed(1)
    further = UNetCondition(pretrained=str(tmp_path), conditional=True)
    assert torch.equal(ask(further.build((4, 8, 8), 2).eval(), LABELS), ask(first, LABELS))
    with pytest.raises(ValueError, match=r"tokens of shape \(3, 64\); this net has \(4, 64\)"):
        further.build((4, 8, 8), 3)
    save_file({"another": torch.zeros(3, 64)}, tmp_path / "class-tokens.safetensors")
    with pytest.raises(ValueError, match=r"tokens of shape \(0,\); this net has \(3, 64\)"):
        further.build((4, 8, 8), 2)
    (tmp_path / "class-tokens.safetensors").unlink()
    assert not torch.equal(ask(further.build((4, 8, 8), 2).eval(), LABELS), ask(first, LABELS))
    with pytest.raises(ValueError, match=r"has no class-tokens\.safetensors"):
        net.load(tmp_path, (4, 8, 8), 2)


@pytest.mark.parametrize(("package", "extra"), [("peft", "lora"), ("transformers", "text"), ("diffusers", "nets")])
def test_a_missing_package_names_its_extra(
    copied: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"immiscible-diffusion\[{extra}\]"):
        described(copied, lora=2).build((4, 8, 8), 2)
