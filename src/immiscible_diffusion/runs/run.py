"""One run: train, evaluate along the way, and write its folder so that nothing finished is ever lost.

``config.json`` the resolved configuration; ``environment.json`` versions, commit and hardware; ``log.jsonl`` losses and
times; ``evaluations.jsonl`` every measured distance; ``checkpoints/`` to resume from; ``samples/`` grids of images;
``export/`` the averaged net for others to load, and the mark of a finished run.
"""

import dataclasses
import itertools
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from immiscible_diffusion.experiments.config import Config
from immiscible_diffusion.export.model import save_export
from immiscible_diffusion.files import locked, remove_parts
from immiscible_diffusion.registry import describe
from immiscible_diffusion.runs import checkpoint
from immiscible_diffusion.runs.check import data_shape
from immiscible_diffusion.runs.conditions import conditioned, with_prompts
from immiscible_diffusion.runs.evaluation import evaluate
from immiscible_diffusion.runs.folder import is_finished
from immiscible_diffusion.runs.records import Records, read_records
from immiscible_diffusion.sample import Trained
from immiscible_diffusion.streams import stream_seed
from immiscible_diffusion.train import State, fit, new_state
from immiscible_diffusion.types import Coupling, HasPreparation, Source

__all__ = ["data_batches", "execute"]

_LOG_EVERY = 50
_WRITE_EVERY = 20.0
"""Seconds between two writings of the log, for those who watch."""
_PRIOR_ROWS = 20_000


def execute(config: Config, folder: Path, device: torch.device) -> Generator[int, None, None]:
    """Carry out one run in its folder, or what is left of it; yield its step after each, and after each measurement.

    A state that is due to be measured is saved first, and every measurement is written when it is made. However the
    run ends, the last good state is saved: the same call again goes on from there.

    Raises:
        ValueError: the folder holds another configuration, records without a checkpoint to go on from, or data that
            have changed; or another process works in it.
        NotFiniteError: training diverged.
    """
    with locked(folder):
        remove_parts(folder)
        records, last = read_records(config, folder), config.train.steps
        due = set(config.evaluate.due(last))
        if is_finished(folder) and {steps for steps, _ in records.measured(last)} >= set(config.evaluate.steps):
            yield last
            return
        net = with_prompts(config.net, config.source)
        state = _start(dataclasses.replace(config, net=net), folder, device)
        if state.step == 0 and records.last_step:
            raise ValueError(
                f"{folder} holds records up to step {records.last_step} and no checkpoint to go on from. Nothing was "
                "changed: restore its checkpoints, or remove the folder to train anew"
            )
        records.cut(state.step)
        session = records.begin_session(config, state.step)
        source = conditioned(config.source, net, str(device))
        coupling = yield from _ready(config, source, device, state.step)
        trained = _trained(config, coupling, state)
        saved, written = state.step, time.monotonic()
        training = fit(state, source, config.codec, coupling, config.method, config.train)
        try:
            for _ in itertools.chain([state], training):  # a run cut in mid-evaluation begins with it
                step = state.step
                if step > saved and (step == last or step % _LOG_EVERY == 0):
                    line = {"step": step, "loss": state.loss, "grad_norm": state.grad_norm, **_pace(state)}
                    records.log.append(line)
                    if time.monotonic() - written > _WRITE_EVERY:
                        records.write()
                        written = time.monotonic()
                measures = step in due
                if step > saved and (measures or (config.train.checkpoint and step % config.train.checkpoint == 0)):
                    saved = _keep(state, records)
                if measures:
                    grids = folder / "samples" if step == last else None
                    for measurement in evaluate(trained, config, grids, records.measured(step)):
                        records.evaluations.append({"step": step, **measurement})
                        records.write()
                        yield step
                yield step
        finally:
            if state.step > saved:
                _keep(state, records)
        plain, ended = config.plain(), [line for line in records.evaluations if line["step"] == state.step]
        about = {
            "coupling": plain["coupling"],
            "source": plain["source"],
            "seed": config.train.seed,
            "steps": state.step,
            "metrics": [{k: v for k, v in line.items() if k not in ("step", "wall_seconds")} for line in ended],
            "commit": session["commit"],
        }
        save_export(trained, folder / "export", net=net, classes=config.source.classes, about=about)


def data_batches(config: Config, rows: int = _PRIOR_ROWS) -> Iterator[Tensor]:
    """Yield the training data in model space, in batches, one epoch or about this many rows of it."""
    count = max(1, min(rows, config.source.rows) // config.train.batch)
    batches = config.source.batches(config.train.batch, config.train.seed)
    for batch in itertools.islice(batches, count):
        yield config.codec.encode(batch.raw)


def _keep(state: State, records: Records) -> int:
    """Write what a resumed run goes on from, and return the step."""
    records.write()
    checkpoint.save(state, records.folder / "checkpoints")
    return state.step


def _start(config: Config, folder: Path, device: torch.device) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(config.train.seed, 0, "net"))
        net = config.net.build(data_shape(config), config.source.classes)
    state = new_state(net.to(device), config.train)
    checkpoint.load_newest(state, folder / "checkpoints")
    return state


def _ready(config: Config, source: Source, device: torch.device, step: int) -> Generator[int, None, Coupling]:
    """Return the coupling, prepared with the data where it must be; yield the step on the way, to be stopped there."""
    if not isinstance(config.coupling, HasPreparation):
        return config.coupling
    with closing(config.coupling.prepare(source, config.codec, device)) as preparing:
        while True:
            try:
                next(preparing)
            except StopIteration as end:
                return cast("Coupling", end.value)
            yield step


def _trained(config: Config, coupling: Coupling, state: State) -> Trained:
    prior = coupling.prior(data_batches(config))
    use = describe("coupling", config.coupling)["use"]
    return Trained(state.ema, config.method, config.codec, prior, data_shape(config), use)


def _pace(state: State) -> dict[str, float]:
    """Return seconds since the start by part, and the coupling's mean milliseconds a step."""
    seconds = {f"{name}_seconds": round(value, 4) for name, value in state.seconds.items()}
    return {**seconds, "coupling_ms": round(1000 * state.seconds["coupling"] / state.step, 4)}
