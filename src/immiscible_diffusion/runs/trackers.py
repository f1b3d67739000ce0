"""Online trackers: the records of a run, sent to TensorBoard, W&B and others through accelerate."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from immiscible_diffusion.files import read_json, read_lines

__all__ = ["Follower", "tracked", "tracker_names"]

T = TypeVar("T")


def tracker_names() -> list[str]:
    """Return the trackers that accelerate knows; each needs its own package.

    Raises:
        ImportError: accelerate is not installed.
    """
    return sorted(str(name) for name in _classes())


class Follower:
    """Reads the log and the evaluations of a run folder as they grow, and tells a tracker each line once.

    If a tracker fails, as without a network, one warning says so and the run goes on without it.
    """

    def __init__(self, tracker: Any, folder: Path) -> None:
        self._tracker, self._folder = tracker, folder
        self._told = {"log.jsonl": 0, "evaluations.jsonl": 0}
        self._described, self._failed = False, False

    def send(self) -> int:
        """Send the configuration once, then all new lines, and return the number of lines."""
        if self._failed or not (self._folder / "config.json").is_file():
            return 0
        return self._attempt(self._send) or 0

    def finish(self) -> None:
        """Send the remaining lines, and close the tracker."""
        self.send()
        self._attempt(self._tracker.finish)

    def _attempt(self, tell: Callable[[], T]) -> T | None:
        try:
            return tell()
        except Exception as error:  # every tracker has errors of its own
            if not self._failed:
                warnings.warn(
                    f"the tracker of {self._folder} failed ({type(error).__name__}: {error}); the run goes on without "
                    "it, and its log is whole in its folder",
                    stacklevel=3,
                )
            self._failed = True
            return None

    def _send(self) -> int:
        if not self._described:
            self._tracker.store_init_configuration(_flat(read_json(self._folder / "config.json")))
            self._described = True
        new = 0
        for name, count in self._told.items():
            lines = read_lines(self._folder / name)[count:]
            for line in lines:
                self._tracker.log(_values(line), step=line["step"])
            self._told[name] = count + len(lines)
            new += len(lines)
        return new


@contextmanager
def tracked(name: str, folder: Path) -> Iterator[Follower]:
    """Follow a run folder with a tracker; the remaining lines are sent at the end.

    Args:
        name: a tracker of accelerate's, such as ``tensorboard`` or ``wandb``; files go into ``trackers`` beside the
            folder.
        folder: the run folder, which need not be there yet.

    Raises:
        ValueError: there is no such tracker.
        ImportError: accelerate or the tracker's package is not installed.
    """
    if name not in tracker_names():
        raise ValueError(f"no tracker {name!r}; accelerate has {tracker_names()}")
    follower = Follower(_started(name, folder), folder)
    try:
        yield follower
    finally:
        follower.finish()


def _classes() -> dict[Any, Any]:
    try:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    except ImportError as error:
        raise ImportError("trackers need accelerate: pip install 'immiscible-diffusion[track]'") from error
    return {getattr(name, "value", name): cls for name, cls in LOGGER_TYPE_TO_CLASS.items()}


def _started(name: str, folder: Path) -> Any:
    from accelerate import PartialState

    PartialState(cpu=True)
    cls = _classes()[name]
    place = {"logging_dir": str(folder.parent / "trackers")} if cls.requires_logging_directory else {}
    try:
        tracker = cls(folder.name, **place)
        tracker.start()
    except ImportError as error:
        raise ImportError(f"the tracker {name} needs its own package: pip install {name} ({error})") from error
    return tracker


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys; values that are neither numbers nor texts become texts.

    >>> _flat({"train": {"steps": 2, "prefetch": False}, "metrics": [1, 2]})
    {'train.steps': 2, 'train.prefetch': False, 'metrics': '[1, 2]'}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def _values(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of a log, or of an evaluation under its sampling steps and start."""
    kept = {key: value for key, value in line.items() if isinstance(value, int | float) and key != "step"}
    if "sampling_steps" not in line:
        return kept
    place = f"{line['sampling_steps']} steps, {line['start']}"
    left_out = "sampling_steps", "samples", "sample_seed", "wall_seconds"
    return {f"{key}/{place}": value for key, value in kept.items() if key not in left_out}
