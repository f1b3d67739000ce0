import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from immiscible_diffusion import MLP, Denoising, Digits, Independent, Pixels, Train, fit, new_state
from immiscible_diffusion.runs import checkpoint
from immiscible_diffusion.train import State

pytestmark = pytest.mark.medium

CONFIG = Train(steps=3)


def trained_state() -> State:
    torch.manual_seed(0)
    state = new_state(MLP(width=8, depth=1).build((1, 8, 8), None), CONFIG)
    list(fit(state, Digits(), Pixels(), Independent(), Denoising(), CONFIG))
    return state


def empty_state() -> State:
    return new_state(MLP(width=8, depth=1).build((1, 8, 8), None), CONFIG)


def test_a_crash_in_mid_write_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = trained_state()
    checkpoint.save(state, tmp_path)
    state.step = 4

    def crash(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", crash)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(state, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000003"]
    loaded = empty_state()
    assert checkpoint.load_newest(loaded, tmp_path)
    assert loaded.step == 3


def change(file: Path, name: str, value: torch.Tensor | None) -> None:
    tensors = load_file(file)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, file)


def without_digests(newest: Path) -> None:
    """Make it a checkpoint of an earlier version, in which only its content can show damage."""
    about = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps({key: about[key] for key in ("step", "seconds")}))


def replaced_by_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda at: (at / "optimizer.safetensors").write_bytes((at / "optimizer.safetensors").read_bytes()[:20]),
    "gone": lambda at: (at / "optimizer.safetensors").unlink(),
    "one bit": lambda at: (at / "ema.safetensors").write_bytes(
        (at / "ema.safetensors").read_bytes()[:-1] + bytes([(at / "ema.safetensors").read_bytes()[-1] ^ 1])
    ),
    "not JSON": lambda at: (at / "state.json").write_text('{"step": 4'),
    "null": lambda at: (at / "state.json").write_text("null"),
    "a list": lambda at: (at / "state.json").write_text("[4]"),
    "another step": lambda at: (at / "state.json").write_text('{"step": -4, "seconds": {}}'),
    "step zero": lambda at: (at / "state.json").write_text('{"step": 0, "seconds": {}}'),
    "no seconds": lambda at: (at / "state.json").write_text('{"step": 4, "seconds": null}'),
    "seconds that are no number": lambda at: (at / "state.json").write_text('{"step": 4, "seconds": {"step": NaN}}'),
    "digests that are no table": lambda at: (at / "state.json").write_text('{"step": 4, "seconds": {}, "sha256": 5}'),
    "too deep": lambda at: (at / "state.json").write_text("[" * 10**5),
    "a moment that is not finite": lambda at: change(at / "optimizer.safetensors", "0.step", torch.tensor(torch.nan)),
    "a kind of moments missing": lambda at: save_file(
        {k: v for k, v in load_file(at / "optimizer.safetensors").items() if not k.endswith("exp_avg_sq")},
        at / "optimizer.safetensors",
    ),
    "weights of another dtype": lambda at: change(at / "net.safetensors", "enter.weight", torch.zeros(8, 96).half()),
    "a tensor of another shape": lambda at: change(at / "optimizer.safetensors", "0.exp_avg", torch.zeros(3)),
    "a moment missing": lambda at: change(at / "optimizer.safetensors", "0.exp_avg", None),
    "a parameter too many": lambda at: change(at / "optimizer.safetensors", "99.exp_avg", torch.zeros(3)),
    "no moments": lambda at: save_file({}, at / "optimizer.safetensors"),
    "not a number": lambda at: change(at / "net.safetensors", "enter.weight", torch.full((8, 96), torch.nan)),
    "weights of another net": lambda at: change(at / "net.safetensors", "enter.weight", torch.zeros(4, 96)),
    "a folder in place of a file": lambda at: replaced_by_a_folder(at / "ema.safetensors"),
}


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_loaded(
    tmp_path: Path, damage: str, digests: bool
) -> None:
    if damage == "one bit" and not digests:
        return
    state = trained_state()
    checkpoint.save(state, tmp_path)
    state.step = 4
    newest = checkpoint.save(state, tmp_path)
    if not digests:
        without_digests(newest)
    DAMAGE[damage](newest)
    loaded = empty_state()
    with pytest.warns(UserWarning, match=r"step-000000004 is damaged \(.*goes on from step 3"):
        assert checkpoint.load_newest(loaded, tmp_path)
    assert loaded.step == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000003", "step-000000004.damaged"]
    loaded.step = 4
    checkpoint.save(loaded, tmp_path)
    loaded.step = 5
    checkpoint.save(loaded, tmp_path)
    assert {"step-000000004", "step-000000005"} < {path.name for path in tmp_path.iterdir()}


def test_a_checkpoint_of_an_earlier_version_is_loaded(tmp_path: Path) -> None:
    """Control of the damage above: without digests an undamaged one is whole."""
    state = trained_state()
    without_digests(checkpoint.save(state, tmp_path))
    loaded = empty_state()
    assert checkpoint.load_newest(loaded, tmp_path)
    for name, value in state.net.state_dict().items():
        assert torch.equal(loaded.net.state_dict()[name], value)


class Tied(torch.nn.Module):
    """Two layers of one weight, and a slice of it as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
        self.leave.weight = self.enter.weight
        self.register_buffer("part", self.enter.weight.detach()[:3])

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor | None = None) -> torch.Tensor:
        made: torch.Tensor = self.leave(self.enter(x.flatten(1)))
        return made.view_as(x)


def test_weights_that_are_tied_are_saved_and_stay_tied(tmp_path: Path) -> None:
    config = Train(steps=2, batch=8)
    state = new_state(Tied(), config)
    for _ in fit(state, Digits(), Pixels(), Independent(), Denoising(), config):
        pass
    checkpoint.save(state, tmp_path)
    loaded = new_state(Tied(), config)
    net, loaded_net = cast(Tied, state.net), cast(Tied, loaded.net)
    assert not torch.equal(loaded_net.enter.weight, net.enter.weight)
    assert checkpoint.load_newest(loaded, tmp_path)
    assert loaded_net.leave.weight is loaded_net.enter.weight
    for module, ours in ((state.net, loaded.net), (state.ema, loaded.ema)):
        for name, value in module.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value), name


def test_where_all_are_damaged_nothing_is_changed(tmp_path: Path) -> None:
    state = trained_state()
    for step in (3, 4):
        state.step = step
        (checkpoint.save(state, tmp_path) / "net.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="Nothing was changed") as raised:
        checkpoint.load_newest(empty_state(), tmp_path)
    assert "step-000000003: net.safetensors is not as it was written" in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000003", "step-000000004"]


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    state = trained_state()
    for step in range(3, 8):
        state.step = step
        checkpoint.save(state, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000006", "step-000000007"]


def test_an_empty_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    assert not checkpoint.load_newest(empty_state(), tmp_path)
