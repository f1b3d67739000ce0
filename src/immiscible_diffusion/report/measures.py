"""How the metrics of a run are called, and which way is better."""

from collections.abc import Mapping
from typing import Any

from immiscible_diffusion.registry import lookup, names

__all__ = ["metric_label", "metric_name", "rises"]

_NAMES = {
    "frechet": "Fréchet distance",
    "frechet-pooled_pixels": "Fréchet pixel distance",
    "kernel": "kernel distance",
    "kernel-pooled_pixels": "kernel pixel distance",
    "cmmd": "CMMD",
}


def rises(metric: str, configuration: Mapping[str, Any]) -> bool:
    """Return whether larger values of a metric are better, by its class; False if there is no such class.

    Args:
        metric: a key of the evaluations; what follows a hyphen names the features.
        configuration: of the run, which names the metrics that are not built in.

    Raises:
        ValueError: a metric of a module of your own cannot be imported, or does not say which way is better.

    >>> rises("recall-inception", {"evaluate": {}}), rises("frechet", {"evaluate": {}})
    (True, False)
    """
    key = metric.partition("-")[0]
    chosen = [str(choice["use"]) for choice in configuration["evaluate"].get("metrics", [])]
    use = next((use for use in chosen if use.rpartition(":")[2].lower() == key), key)
    if ":" not in use and use not in names("metric"):
        return False
    cls = lookup("metric", use)
    if not hasattr(cls, "better"):
        raise ValueError(f"metric {use!r} must say which way is better: give its class better = 'lower' or 'higher'")
    return bool(cls.better == "higher")


def metric_name(metric: str) -> str:
    """Return a metric's name for people.

    >>> [metric_name(each) for each in ("frechet", "inception_score", "recall-inception")]
    ['Fréchet distance', 'inception score', 'recall, inception']
    """
    return _NAMES.get(metric, metric.replace("_", " ").replace("-", ", "))


def metric_label(configuration: Mapping[str, Any], metric: str) -> str:
    """Return a metric's name for people, with its features; FID where it is one.

    >>> metric_label({"evaluate": {"features": {"use": "inception", "layer": 768}}}, "frechet")
    'FID (768 features)'
    """
    features = configuration["evaluate"]["features"]
    base, _, network = metric.partition("-")
    if base == "frechet" and not network and features["use"] == "inception":
        return f"FID ({features['layer']} features)"
    text = f"{metric_name(base)}, {network or features['use']}"
    return text if rises(metric, configuration) else f"{text} (not FID)"
