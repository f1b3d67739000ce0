"""One run: train, evaluate along the way, and write its folder so that nothing finished is ever lost.

``config.json`` the resolved configuration; ``environment.json`` versions, commit and hardware; ``log.jsonl`` losses and
times; ``evaluations.jsonl`` every measured distance; ``checkpoints/`` to resume from; ``samples/`` grids of images;
``export/`` the averaged net for others to load, and the mark of a finished run.
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.codecs import VAE
from immiscible_diffusion.data import Latents, Painting
from immiscible_diffusion.experiments.config import Config
from immiscible_diffusion.export.model import save_export
from immiscible_diffusion.files import locked, read_json, read_lines, write_json, write_lines
from immiscible_diffusion.registry import describe
from immiscible_diffusion.runs import checkpoint
from immiscible_diffusion.runs.conditions import conditioned, with_prompts
from immiscible_diffusion.runs.evaluation import evaluate
from immiscible_diffusion.runs.folder import environment, is_finished
from immiscible_diffusion.sample import Trained
from immiscible_diffusion.streams import stream_seed
from immiscible_diffusion.train import State, fit, new_state

__all__ = ["data_batches", "execute"]

_LOG_EVERY = 50
_TELL_EVERY = 20.0
"""Seconds between two writings of the log, for those who watch."""
_PRIOR_ROWS = 20_000


def execute(config: Config, folder: Path, device: torch.device) -> Generator[int, None, None]:
    """Carry out one run in its folder, or what is left of it, and yield the number of finished steps after each.

    However it ends, the last good state is saved: the same call again goes on from there.

    Raises:
        ValueError: the folder holds another configuration, or another process works in it.
        NotFiniteError: training diverged.
    """
    with locked(folder):
        if is_finished(folder):
            yield config.train.steps
            return
        net = with_prompts(config.net, config.source)
        state = _start(dataclasses.replace(config, net=net), folder, device)
        session = _describe_run(config, folder, state.step)
        log = [line for line in read_lines(folder / "log.jsonl") if line["step"] <= state.step]
        evaluations = [line for line in read_lines(folder / "evaluations.jsonl") if line["step"] <= state.step]
        trained = _trained(config, state)
        saved, told = state.step, time.monotonic()
        source = conditioned(config.source, net, str(device))
        training = fit(state, source, config.codec, config.coupling, config.method, config.train)
        try:
            for _ in itertools.chain([state], training):  # a run cut in mid-evaluation begins with it
                last = state.step == config.train.steps
                if state.step > saved and (last or state.step % _LOG_EVERY == 0):
                    log.append({"step": state.step, "loss": state.loss, "grad_norm": state.grad_norm, **_pace(state)})
                    if time.monotonic() - told > _TELL_EVERY:
                        write_lines(folder / "log.jsonl", log)
                        told = time.monotonic()
                due = last or (state.step > 0 and state.step % config.evaluate.every == 0)
                if due and not any(line["step"] == state.step for line in evaluations):
                    grids = folder / "samples" if last else None
                    evaluations += [{"step": state.step, **line} for line in evaluate(trained, config, grids)]
                    saved = _keep(state, folder, log, evaluations)
                elif state.step > saved and config.train.checkpoint and state.step % config.train.checkpoint == 0:
                    saved = _keep(state, folder, log, evaluations)
                yield state.step
        finally:
            if state.step > saved:
                _keep(state, folder, log, evaluations)
        plain, ended = config.plain(), [line for line in evaluations if line["step"] == state.step]
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


def _keep(state: State, folder: Path, log: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> int:
    """Write what a resumed run goes on from, and return the step."""
    write_lines(folder / "log.jsonl", log)
    write_lines(folder / "evaluations.jsonl", evaluations)
    checkpoint.save(state, folder / "checkpoints")
    return state.step


def _start(config: Config, folder: Path, device: torch.device) -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(config.train.seed, 0, "net"))
        net = config.net.build(_shape(config), config.source.classes)
    state = new_state(net.to(device), config.train)
    checkpoint.load_newest(state, folder / "checkpoints")
    return state


def _trained(config: Config, state: State) -> Trained:
    prior = config.coupling.prior(data_batches(config))
    coupling = describe("coupling", config.coupling)["use"]
    return Trained(state.ema, config.method, config.codec, prior, _shape(config), coupling)


def _shape(config: Config) -> tuple[int, ...]:
    """Return the shape of one datum in model space, which an autoencoder makes smaller than that of an image."""
    stored = config.source.source if isinstance(config.source, Painting) else config.source
    if isinstance(stored, Latents) and isinstance(config.codec, VAE):
        made, read = stored.encoder, config.codec.fingerprint()
        if any(made[key] != read[key] for key in ("class", "weights_sha256")):
            raise ValueError(f"these latents were encoded by {made}; codec.path holds {read}, which cannot decode them")
    return tuple(config.codec.encode(next(config.source.batches(1, 0)).raw).shape[1:])


def _pace(state: State) -> dict[str, float]:
    """Return seconds since the start by part, and the coupling's mean milliseconds a step."""
    seconds = {f"{name}_seconds": round(value, 4) for name, value in state.seconds.items()}
    return {**seconds, "coupling_ms": round(1000 * state.seconds["coupling"] / state.step, 4)}


def _describe_run(config: Config, folder: Path, step: int) -> dict[str, Any]:
    """Write the configuration, add this session's environment to those of the sessions before it, and return it."""
    plain = json.loads(json.dumps(config.plain()))
    path = folder / "config.json"
    if path.exists() and read_json(path) != plain:
        raise ValueError(f"{folder} holds a run with another configuration; choose another folder")
    write_json(path, plain)
    path = folder / "environment.json"
    sessions = read_json(path) if path.exists() else []
    session = {"from_step": step, **environment()}
    write_json(path, [*sessions, session])
    return session
