"""How blunt the measurements of an experiment are: what real images score in place of generated ones."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from immiscible_diffusion.experiments.config import Config
from immiscible_diffusion.experiments.experiment import Cell
from immiscible_diffusion.features import FittedClassifier
from immiscible_diffusion.features.training_images import stored, training_images
from immiscible_diffusion.files import digest_of, read_json, write_json
from immiscible_diffusion.metrics import cached_features, noise_floor
from immiscible_diffusion.registry import describe
from immiscible_diffusion.runs.evaluation import fitted, held_out_features, measured_source, networks
from immiscible_diffusion.runs.folder import INSTRUMENT
from immiscible_diffusion.types import Features, HasFingerprint, HasLeastRows, HasListing

__all__ = ["write_instrument"]

_POOL = 4
"""Draws of the noise floor come from this many times as many training images as a draw has."""
_DRAWS = 8

Entry = dict[str, Any]


def write_instrument(cells: Sequence[Cell], folder: Path, device: torch.device) -> None:
    """Write ``instrument.json``: each feature network of an experiment and the noise floor of its metrics.

    Arms that are measured alike share an entry. Entries of the same data, features and metrics are kept.

    Args:
        cells: the runs.
        folder: of the experiment.
        device: where features are computed.
    """
    path = folder / "instrument.json"
    kept: list[Entry] = read_json(path, INSTRUMENT) if path.exists() else []
    arms_of: dict[str, list[str]] = {}
    configs: dict[str, Config] = {}
    for arm, config in sorted({cell.arm: cell.config for cell in reversed(cells)}.items()):
        key = json.dumps(_measured_by(config), sort_keys=True, default=str)
        arms_of.setdefault(key, []).append(arm)
        configs.setdefault(key, config)
    entries = [
        _entry(config, suffix, features, device, kept)
        | {"arms": arms_of[key], "same_conditions": _same_conditions(config)}
        for key, config in configs.items()
        for suffix, features in networks(config).items()
    ]
    write_json(path, entries)


def _same_conditions(config: Config) -> bool:
    """Return whether samples are made under the held-out rows' own conditions, and real rows in their place are not."""
    return config.net.condition(config.source.classes) in ("text", "dense")


def _measured_by(config: Config) -> dict[str, Any]:
    """Return all that the noise floor of a run depends on."""
    plain, source = config.plain(), measured_source(config)
    raw = next(source.batches(1, 0)).raw
    return {
        "source": describe("source", source),
        "listing": source.listing_digest() if isinstance(source, HasListing) else None,
        "codec": None if stored(raw, config.codec) is raw else plain["codec"],
        **{key: plain["evaluate"][key] for key in ("features", "also", "metrics", "samples", "reference")},
    }


def _entry(config: Config, suffix: str, features: Features, device: torch.device, kept: Sequence[Entry]) -> Entry:
    network = fitted(config, features)
    made_by = network.fingerprint if isinstance(network, HasFingerprint) else None
    about = json.dumps([_measured_by(config), suffix, made_by], sort_keys=True, default=str)
    of = digest_of(about.encode())
    for entry in kept:
        if entry["of"] == of:
            return entry
    begun = time.perf_counter()
    real = held_out_features(config, network, device)
    images, _ = training_images(measured_source(config), config.codec, _POOL * config.evaluate.samples)
    training = cached_features(images.to(device), network)
    drawn = min(config.evaluate.samples, len(training))
    floor: Mapping[str, dict[str, float]] = {
        name + suffix: noise_floor(training, real, metric, drawn, _DRAWS)._asdict()
        for name, metric in config.evaluate.metrics.items()
        if drawn >= (metric.least if isinstance(metric, HasLeastRows) else 2)
    }
    return {
        "of": of,
        "features": describe("features", features),
        **_learned(network),
        "reference": config.evaluate.reference,
        "samples": config.evaluate.samples,
        "drawn": drawn,
        "training_rows": len(training),
        "held_out_rows": len(real),
        "draws": _DRAWS,
        "floor": floor,
        "seconds": round(time.perf_counter() - begun, 3),
    }


def _learned(network: Features) -> dict[str, Any]:
    if not isinstance(network, FittedClassifier):
        return {}
    return {"task": network.task, "accuracy": round(network.accuracy, 4), "fit_seconds": network.seconds}
