"""One run: train, evaluate along the way, and write its folder so that nothing finished is ever lost.

``config.json`` the resolved configuration; ``environment.json`` versions, commit and hardware; ``log.jsonl`` losses and
times; ``evaluations.jsonl`` every measured distance; ``checkpoints/`` to resume from; ``samples/`` grids of images;
``export/`` the averaged net for others to load, and the mark of a finished run.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from immiscible_diffusion.checks import NotFiniteError
from immiscible_diffusion.couplings import prepared
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
from immiscible_diffusion.runs.team import ALONE, Team
from immiscible_diffusion.sample import Trained
from immiscible_diffusion.streams import stream_seed
from immiscible_diffusion.train import State, fit, new_state
from immiscible_diffusion.types import Coupling, HasPreparation, Source

__all__ = ["data_batches", "execute", "trained_at"]

_LOG_EVERY = 50
_WRITE_EVERY = 20.0
"""Seconds between two writings of the log, for those who watch."""
_PRIOR_ROWS = 20_000


def execute(
    config: Config,
    folder: Path,
    device: torch.device,
    team: Team = ALONE,
    stop: Callable[[], bool] | None = None,
) -> Generator[int, None, None]:
    """Train one run in its folder, or go on with it; yield the step after each step and after each measurement.

    A state that is due to be measured is saved first, and every measurement is written when it is made. However the
    run ends, the last good state is saved: the same call again goes on from there, on any number of processes.

    Args:
        config: the run.
        folder: where it is kept.
        device: where to train.
        team: the processes that train together, all with this call; the first one writes.
        stop: asked after every step; the run is saved and left where any process says so.

    Raises:
        ValueError: the folder holds another configuration, records without a checkpoint to go on from, or data that
            have changed; or another process works in it.
        NotFiniteError: training diverged.
    """
    with ExitStack() as held:
        team.once(lambda: _entered(held, folder))
        records, finished = team.once(lambda: (read_records(config, folder), is_finished(folder)))
        last = config.train.steps
        due = set(config.evaluate.due(last))
        if finished and {steps for steps, _ in records.measured(last)} >= set(config.evaluate.all_steps):
            yield last
            return
        net = with_prompts(config.net, config.source)
        state = _start(dataclasses.replace(config, net=net), folder, device, team)
        if state.step == 0 and records.last_step:
            raise ValueError(
                f"{folder} holds records up to step {records.last_step} and no checkpoint to go on from. Nothing was "
                "changed: restore its checkpoints, or remove the folder to train anew"
            )
        records.cut(state.step)
        session = team.once(lambda: records.begin_session(config, state.step))
        source = conditioned(config.source, net, str(device))
        coupling = yield from _ready(config, source, device, state.step, team)
        trained = _trained(config, coupling, state.ema)
        saved, written, agreed = state.step, time.monotonic(), True
        training = fit(
            state, source, config.codec, coupling, config.method, config.train,
            accelerator=team.accelerator, stop=stop,
        )  # fmt: skip
        try:
            for _ in itertools.chain([state], training):  # a run cut in mid-evaluation begins with it
                step = state.step
                if step > saved and (step == last or step % _LOG_EVERY == 0):
                    records.log.append(_logged(state, config))
                    if team.first and time.monotonic() - written > _WRITE_EVERY:
                        records.write()
                        written = time.monotonic()
                measures = step in due
                if step > saved and (measures or (config.train.checkpoint and step % config.train.checkpoint == 0)):
                    saved = _keep(state, records, config, team)
                if measures:
                    grids = folder / "samples" if step == last else None
                    now = dataclasses.replace(trained, net=state.averaged())
                    for measurement in evaluate(now, config, grids, records.measured(step), team, step == last):
                        records.evaluations.append({"step": step, **measurement})
                        if team.first:
                            records.write()
                        yield step
                    del now  # of sharded weights a whole copy
                yield step
        except BaseException as error:
            agreed = isinstance(error, NotFiniteError)  # the other processes may know nothing of another error
            raise
        finally:
            if state.step > saved and (agreed or (team.first and state.shards is None)):
                _keep(state, records, config, team if agreed else ALONE)
        if state.step == last:
            now = dataclasses.replace(trained, net=state.averaged())
            about = _about(config, records, session)
            classes = config.source.classes
            team.once(lambda: save_export(now, folder / "export", net=net, classes=classes, about=about))


def _entered(held: ExitStack, folder: Path) -> None:
    """Lock the folder for this process, and remove the remains of a crash."""
    held.enter_context(locked(folder))
    remove_parts(folder)


def _about(config: Config, records: Records, session: dict[str, Any]) -> dict[str, Any]:
    """Return the description of the training for an export."""
    plain, last = config.plain(), config.train.steps
    ended = [line for line in records.evaluations if line["step"] == last]
    return {
        "coupling": plain["coupling"],
        "source": plain["source"],
        "seed": config.train.seed,
        "steps": last,
        "metrics": [{k: v for k, v in line.items() if k not in ("step", "wall_seconds")} for line in ended],
        "commit": session["commit"],
    }


def data_batches(config: Config, rows: int = _PRIOR_ROWS) -> Iterator[Tensor]:
    """Yield the training data in model space, in batches, one epoch or about this many rows of it."""
    count = max(1, min(rows, config.source.rows) // config.train.batch)
    batches = config.source.batches(config.train.batch, config.train.seed)
    for batch in itertools.islice(batches, count):
        yield config.codec.encode(batch.raw)


def _logged(state: State, config: Config) -> dict[str, Any]:
    """Return a line of the log; counts of images let runs of different batches lie over each other."""
    line = {"step": state.step, "images": state.step * config.train.batch, "loss": state.loss}
    line |= {"grad_norm": state.grad_norm, "lr": config.train.rate(state.step - 1), **_pace(state)}
    return line | ({"skipped": state.skipped} if state.skipped else {})


def _keep(state: State, records: Records, config: Config, team: Team) -> int:
    """Save the state from which a resumed run continues, and return the step; all processes of the team must call this.

    Raises:
        NotFiniteError: a device that was not waited for met NaN or infinity; the state before is kept.
    """
    state.check()
    team.once(records.write)
    every, best = config.train.keep_every, _best_step(records, config)
    checkpoint.save(
        state,
        records.folder / "checkpoints",
        keep=config.train.keep_last,
        stays=lambda step: step == best or bool(every and step % every == 0),
        team=team,
    )
    return state.step


def _best_step(records: Records, config: Config) -> int:
    """Return the step with the best value of ``train.keep_best`` at the most sampling steps; 0 without one."""
    name, metrics = config.train.keep_best, config.evaluate.metrics
    lines = [line for line in records.evaluations if name in line]
    if not lines:
        return 0
    most = max(line["sampling_steps"] for line in lines)
    better = min if metrics[name.partition("-")[0]].better == "lower" else max
    return int(better((line for line in lines if line["sampling_steps"] == most), key=lambda line: line[name])["step"])


def trained_at(config: Config, folder: Path, step: int, device: torch.device) -> Trained:
    """Return the model of a run with the averaged weights that it had after a step, from a checkpoint that was kept.

    Raises:
        ValueError: there is no checkpoint of this step, or it is damaged.
    """
    net = with_prompts(config.net, config.source).build(data_shape(config), config.source.classes)
    checkpoint.load_average(net, folder / "checkpoints", step)
    source = conditioned(config.source, config.net, str(device))
    coupling = prepared(config.coupling, source, config.codec, device)
    return _trained(config, coupling, net.to(device).eval().requires_grad_(False))


def _start(config: Config, folder: Path, device: torch.device, team: Team) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(config.train.seed, 0, "net"))
        net = config.net.build(data_shape(config), config.source.classes)
    state = new_state(net.to(device), config.train, team.accelerator)
    checkpoint.load_newest(state, folder / "checkpoints", team)
    return state


def _ready(
    config: Config, source: Source, device: torch.device, step: int, team: Team
) -> Generator[int, None, Coupling]:
    """Return the coupling, prepared with the data where it must be; yield the step on the way, to be stopped there."""
    if not isinstance(config.coupling, HasPreparation):
        return config.coupling
    if not team.alone:  # the first process prepared it before the first run, and kept what it made
        return team.in_turn(lambda: prepared(config.coupling, source, config.codec, device))
    with closing(config.coupling.prepare(source, config.codec, device)) as preparing:
        while True:
            try:
                next(preparing)
            except StopIteration as end:
                return cast("Coupling", end.value)
            yield step


def _trained(config: Config, coupling: Coupling, net: nn.Module) -> Trained:
    prior = coupling.prior(data_batches(config))
    use = describe("coupling", config.coupling)["use"]
    return Trained(net, config.method, config.codec, prior, data_shape(config), use)


def _pace(state: State) -> dict[str, float]:
    """Return seconds since the start by part, and the coupling's mean milliseconds a step."""
    seconds = {f"{name}_seconds": round(value, 4) for name, value in state.seconds.items()}
    return {**seconds, "coupling_ms": round(1000 * state.seconds["coupling"] / state.step, 4)}
