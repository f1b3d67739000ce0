"""Demonstrations in files: zarr as Push-T's, parquet as LeRobot's. Nothing in them is unpickled."""

from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from immiscible_diffusion.data._episodes import Episodes

__all__ = ["read_demonstrations"]


def read_demonstrations(path: Path, observation: str, action: str) -> Episodes:
    """Return the demonstrations of a zarr store (a folder, or ``.zip``), a parquet file or a folder of them.

    Args:
        path: zarr: arrays ``data/OBSERVATION`` and ``data/ACTION``, (n, o) and (n, a), and ``meta/episode_ends``;
            parquet: columns OBSERVATION and ACTION, lists of numbers, with ``episode_index`` and, where steps are not
            in order, ``frame_index``.
        observation: its name; if empty ``state`` in zarr and ``observation.state`` in parquet.
        action: its name; if empty ``action``.

    Raises:
        ValueError: there is no such file, an array or column is missing or not of numbers, or they do not fit together.
        ImportError: zarr or pyarrow is not installed.
    """
    tables = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    try:
        if tables:
            return _parquet(tables, observation or "observation.state", action or "action")
        if path.is_dir() or path.suffix == ".zip":
            return _zarr(path, observation or "state", action or "action")
    except ValueError as error:
        raise ValueError(f"cannot read demonstrations from {path}: {error}") from error
    raise ValueError(f"no demonstrations at {path}: give a zarr folder, its .zip, a parquet file or a folder of them")


def _zarr(path: Path, observation: str, action: str) -> Episodes:
    zarr = _package("zarr", "policy")
    store: Any = None
    try:
        store = zarr.storage.ZipStore(path, mode="r") if path.suffix == ".zip" else zarr.storage.LocalStore(path)
        group = zarr.open_group(store, mode="r")
        names = (f"data/{observation}", f"data/{action}", "meta/episode_ends")
        arrays = [_array(group, name) for name in names]
    except ValueError:
        raise
    except Exception as error:  # its errors are of many kinds
        raise ValueError(f"it is no zarr store: {error}") from error
    finally:
        with suppress(AttributeError):  # a zip that could not be opened cannot be closed either
            store.close()
    return _episodes(arrays[0], arrays[1], arrays[2])


def _array(group: Any, name: str) -> Any:
    if name not in group:
        raise ValueError(f"it has no array {name}; there are {sorted(key for key, _ in group.members(max_depth=2))}")
    array = group[name]
    if array.dtype.kind not in "fiu" or "pickle" in str(array.metadata.to_dict()).lower():
        raise ValueError(f"{name} is of type {array.dtype} or packed by pickle; it must be plain numbers")
    return np.asarray(array[:])


def _parquet(files: list[Path], observation: str, action: str) -> Episodes:
    arrow, tables = _package("pyarrow", "data"), _package("pyarrow.parquet", "data")
    wanted = [observation, action, "episode_index"]
    parts = []
    for file in files:
        try:
            names = tables.read_schema(file).names
            if missing := sorted(set(wanted) - set(names)):
                raise ValueError(f"{file.name} has no column {missing[0]}; there are {names}")
            parts.append(tables.read_table(file, columns=wanted + ["frame_index"] * ("frame_index" in names)))
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"{file.name}: {error}") from error
    table = arrow.concat_tables(parts)
    keys = [(name, "ascending") for name in ("episode_index", "frame_index") if name in table.column_names]
    table = table.sort_by(keys)
    rows = [_rows(table.column(name).to_pylist(), name) for name in wanted[:2]]
    episode = np.asarray(table.column("episode_index").to_pylist())
    ends = np.append(np.flatnonzero(np.diff(episode)) + 1, len(episode))
    return _episodes(rows[0], rows[1], ends)


def _rows(values: list[Any], name: str) -> Any:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name} must hold lists of numbers of one length: {error}") from error


def _episodes(observations: Any, actions: Any, ends: Any) -> Episodes:
    for name, values in (("observations", observations), ("actions", actions), ("episode ends", ends)):
        if values.dtype.kind not in "fiu":
            raise ValueError(f"{name} are of type {values.dtype}; they must be numbers")
    if ends.ndim != 1 or not len(observations) or not len(actions):
        raise ValueError(f"there are no steps, or episode ends of shape {ends.shape}")
    observations, actions = (
        torch.from_numpy(values.reshape(len(values), -1).astype(np.float32)) for values in (observations, actions)
    )
    return Episodes(observations, actions, torch.from_numpy(ends.astype(np.int64)))


def _package(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"these files need {name}: pip install 'immiscible-diffusion[{extra}]'") from error
