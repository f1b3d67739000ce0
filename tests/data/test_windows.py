"""Demonstrations in real files, and their windows against a plain loop."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import zarr

from immiscible_diffusion.data import Detour, Windows
from immiscible_diffusion.data._episodes import Episodes, Pad, Windowed
from immiscible_diffusion.registry import make

ENDS = [5, 12, 20, 40]
STATE = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
ACTION = np.random.default_rng(1).uniform(0, 512, size=(40, 2)).astype(np.float32)


def write_zarr(path: Path, version: int = 2, **changed: Any) -> Path:
    arrays = {"data/state": STATE, "data/action": ACTION, "meta/episode_ends": np.array(ENDS)} | changed
    group = zarr.open_group(str(path), mode="w", zarr_format=version)  # type: ignore[arg-type]
    for name, values in arrays.items():
        if values is not None:
            group.create_array(name, data=values)
    return path


def write_parquet(path: Path, order: Any = slice(None), **changed: Any) -> Path:
    episode = np.searchsorted(ENDS, np.arange(40), "right")
    frame = np.arange(40) - np.concatenate([[0], ENDS])[episode]
    columns = {"observation.state": list(STATE), "action": list(ACTION), "episode_index": episode, "frame_index": frame}
    table = pa.table({name: values for name, values in (columns | changed).items() if values is not None})
    pa.parquet.write_table(table.take(np.arange(40)[order]), path)
    return path


def read(path: Path, **options: Any) -> Episodes:
    return Windows(str(path), held_out_episodes=1, **options).windowed().episodes


def same(episodes: Episodes) -> bool:
    return (
        np.array_equal(episodes.observations.numpy(), STATE)
        and np.array_equal(episodes.actions.numpy(), ACTION)
        and episodes.ends.tolist() == ENDS
    )


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.medium
def test_zarr_is_read_as_it_was_written(tmp_path: Path, version: int) -> None:
    folder = write_zarr(tmp_path / "replay.zarr", version)
    assert same(read(folder))
    packed = tmp_path / "replay.zarr.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    assert same(read(packed))
    assert not same(read(write_zarr(tmp_path / "other.zarr", version, **{"data/state": STATE[::-1].copy()})))


def test_parquet_is_read_in_the_order_of_its_frames(tmp_path: Path) -> None:
    assert same(read(write_parquet(tmp_path / "a.parquet")))
    shuffled = np.random.default_rng(2).permutation(40)
    assert same(read(write_parquet(tmp_path / "b.parquet", shuffled)))
    without = {"frame_index": None}
    assert same(read(write_parquet(tmp_path / "c.parquet", **without)))
    assert not same(read(write_parquet(tmp_path / "d.parquet", shuffled, **without)))
    parts = tmp_path / "parts"
    parts.mkdir()
    write_parquet(parts / "0.parquet", slice(0, 20))
    write_parquet(parts / "1.parquet", slice(20, 40))
    assert same(read(parts))


def test_windows_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    source = Windows(str(write_zarr(tmp_path / "a.zarr")), observed=3, horizon=6, held_out_episodes=1)
    train, apart = source.windowed().rows
    assert sorted([*train.tolist(), *apart.tolist()]) == list(range(40))
    seen = STATE[train.numpy()]
    low, high = seen.min(0), seen.max(0)
    batch = source.take(torch.arange(40))
    assert batch.cond is not None
    for step in range(40):
        begin = max([0, *[end for end in ENDS if end <= step]])
        end = min(end for end in ENDS if end > step)
        at = [min(max(step - 2 + i, begin), end - 1) for i in range(6)]
        np.testing.assert_array_equal(batch.raw[step], ACTION[at])
        expected = (2 * (STATE[at[:3]] - low) / (high - low) - 1).reshape(-1)
        np.testing.assert_allclose(batch.cond[step], expected, rtol=1e-5, atol=1e-5)
    assert (source.shape, source.rows) == ((6, 2), len(train))
    assert set(source.held_out().rows.tolist()) == set(apart.tolist())  # type: ignore[union-attr]


@pytest.mark.parametrize("pad", ["mask", "repeat", "drop"])
def test_repeated_actions_are_masked_kept_or_dropped(tmp_path: Path, pad: Pad) -> None:
    """Of horizon 6, windows of episodes of 5 to 20 steps: which actions are real, by a plain loop."""
    source = Windows(str(write_zarr(tmp_path / "a.zarr")), observed=2, horizon=6, held_out_episodes=1, pad=pad)
    batch = source.take(torch.arange(40))
    assert torch.equal(batch.raw, replace(source, pad="mask").take(torch.arange(40)).raw)
    real, whole = torch.zeros(40, 6, 1, dtype=torch.bool), []
    for step in range(40):
        begin, end = max([0, *[end for end in ENDS if end <= step]]), min(end for end in ENDS if end > step)
        real[step] = torch.tensor([begin <= step - 1 + i < end for i in range(6)]).unsqueeze(1)
        whole += [step] * (step - 1 + 5 < end)
    kept = sorted(torch.cat(source.windowed().rows).tolist())
    assert kept == (whole if pad == "drop" else list(range(40)))
    assert len(whole) == 24
    if pad == "mask":
        assert batch.mask is not None
        assert torch.equal(batch.mask, real)
        assert next(source.batches(8, 0)).mask is not None
    else:
        assert batch.mask is None


def test_a_horizon_that_leaves_no_window_is_refused(tmp_path: Path) -> None:
    path = str(write_zarr(tmp_path / "a.zarr"))
    with pytest.raises(ValueError, match=r"source\.pad = 'drop' leaves no .* window: .* source\.horizon = 30"):
        Windows(path, horizon=30, held_out_episodes=1, pad="drop").held_out()
    assert len(Windows(path, horizon=30, held_out_episodes=1).held_out().raw) > 0
    with pytest.raises(ValueError, match=r"source\.pad is 'cut'; it must be one of"):
        make("source", {"use": "windows", "path": path, "pad": "cut"})


def policys_windows(observed: int, horizon: int, executed: int) -> list[tuple[int, list[int]]]:
    """Return present step and actions' steps of each window, by the rule of Diffusion Policy's code, as read.

    In an episode of n steps, windows begin at -(observed - 1) .. n - horizon + executed - 1; beyond the ends, the first
    or last step is repeated.
    """
    windows = []
    for begin, end in zip([0, *ENDS[:-1]], ENDS, strict=True):
        for first in range(begin - (observed - 1), end - horizon + executed):
            steps = [min(max(step, begin), end - 1) for step in range(first, first + horizon)]
            windows.append((first + observed - 1, steps))
    return windows


@pytest.mark.parametrize(("observed", "horizon", "executed"), [(2, 6, 3), (1, 5, 5), (3, 4, 1), (2, 16, 8)])
def test_windows_are_those_of_diffusion_policy_and_those_it_leaves_out(
    tmp_path: Path, observed: int, horizon: int, executed: int
) -> None:
    path = str(write_zarr(tmp_path / "a.zarr"))
    source = Windows(path, observed=observed, horizon=horizon, held_out_episodes=1, pad="repeat")
    expected = policys_windows(observed, horizon, executed)
    batch = source.take(torch.tensor([step for step, _ in expected]))
    np.testing.assert_array_equal(batch.raw, ACTION[np.array([steps for _, steps in expected])])
    omitted = horizon - observed - executed + 1
    last = [step for begin, end in zip([0, *ENDS[:-1]], ENDS, strict=True) for step in range(begin, end)[-omitted:]]
    left_out = sorted(set(range(40)) - {step for step, _ in expected})
    assert left_out == (last if omitted > 0 else [])
    assert sum(map(len, source.windowed().rows)) == 40


def test_observations_that_hardly_change_are_zero() -> None:
    """Noise of the last bit around 1,000 is no observation; the same noise around 0 is all there is."""
    noise = torch.tensor([0.0, 6e-5]).repeat(10).unsqueeze(1)
    for offset, expected in ((1000.0, {0.0}), (0.0, {-1.0, 1.0})):
        windowed = Windowed(Episodes(noise + offset, torch.randn(20, 1), torch.tensor([10, 20])), 1, 2, 1)
        assert set(windowed.take(torch.arange(20)).cond.flatten().tolist()) == expected  # type: ignore[union-attr]


def test_an_observation_that_never_changes_is_zero() -> None:
    still = torch.cat([torch.randn(20, 1), torch.ones(20, 1)], 1)
    windowed = Windowed(Episodes(still, torch.randn(20, 1), torch.tensor([10, 20])), 1, 2, 1)
    assert windowed.take(torch.arange(20)).cond[:, 1].abs().max() == 0  # type: ignore[index]


BAD = {
    "a missing array": {"data/action": None},
    "another length": {"data/action": ACTION[:30]},
    "ends beyond the data": {"meta/episode_ends": np.array([5, 50])},
    "ends that fall": {"meta/episode_ends": np.array([12, 5, 40])},
    "no ends": {"meta/episode_ends": np.array([], dtype=np.int64)},
    "not a number": {"data/state": np.where(np.arange(200).reshape(40, 5) == 77, np.nan, STATE)},
    "text": {"data/state": np.array([["a"] * 5] * 40, dtype="U1")},
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_store_gets_one_clear_message(tmp_path: Path, name: str) -> None:
    path = write_zarr(tmp_path / "bad.zarr", 3, **BAD[name])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"cannot read demonstrations from .*bad\.zarr"):
        read(path)


def test_bad_files_get_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no table PAR1")
    (tmp_path / "b.zip").write_bytes(b"no archive")
    (tmp_path / "empty").mkdir()
    write_parquet(tmp_path / "c.parquet", **{"action": None})
    write_parquet(tmp_path / "d.parquet", **{"action": [[1.0], [1.0, 2.0]] * 20})
    for name in ("a.parquet", "b.zip", "c.parquet", "d.parquet", "empty", "absent"):
        with pytest.raises(ValueError, match=r"demonstrations (from|at) .*" + name):
            read(tmp_path / name)
    with pytest.raises(ValueError, match=r"1 \.\. 3"):
        Windows(str(write_parquet(tmp_path / "e.parquet")), held_out_episodes=4).held_out()


@pytest.mark.filterwarnings("ignore")
def test_a_pickle_in_a_store_is_never_opened(tmp_path: Path) -> None:
    """A numeric array that is packed by pickle: reading it would run what it says."""
    import pickle

    class Harm:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return (tmp_path / "harmed").touch, ()

    path = write_zarr(tmp_path / "bad.zarr", 2)
    about = path / "data" / "action" / ".zarray"
    values = json.loads(about.read_text()) | {"compressor": {"id": "pickle", "protocol": 5}, "filters": None}
    about.write_text(json.dumps(values))
    for chunk in about.parent.glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ValueError, match="cannot read demonstrations"):
        read(path)
    assert not (tmp_path / "harmed").exists()
    pickle.loads(chunk.read_bytes())  # noqa: S301  # control: the chunk is what it seems
    assert (tmp_path / "harmed").exists()


def test_demonstrations_go_around_the_obstacle_on_both_sides() -> None:
    episodes = Detour().windowed().episodes
    begins = [0, *episodes.ends.tolist()[:-1]]
    below = [
        float(episodes.observations[a:b, 1].mean()) < 0 for a, b in zip(begins, episodes.ends.tolist(), strict=True)
    ]
    assert sum(below) == 40
    assert not Detour.touches(episodes.observations).any()
    assert Detour.arrived(episodes.actions[episodes.ends - 1]).all()
    moved = Detour.step(episodes.observations, episodes.actions)
    torch.testing.assert_close(moved, episodes.actions, atol=1e-6, rtol=0)  # every action is within reach
    assert not torch.equal(Detour(seed=1).windowed().episodes.actions[:20], episodes.actions[:20])
