from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize("damage", ["truncate", "remove", "not json"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path, damage: str) -> None:
    state = trained_state()
    checkpoint.save(state, tmp_path)
    state.step = 4
    newest = checkpoint.save(state, tmp_path)
    file = newest / ("state.json" if damage == "not json" else "optimizer.safetensors")
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:20])
    loaded = empty_state()
    with pytest.warns(UserWarning, match="step-000000004 cannot be used"):
        assert checkpoint.load_newest(loaded, tmp_path)
    assert loaded.step == 3


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    state = trained_state()
    for step in range(3, 8):
        state.step = step
        checkpoint.save(state, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000006", "step-000000007"]


def test_an_empty_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    assert not checkpoint.load_newest(empty_state(), tmp_path)
