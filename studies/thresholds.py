"""How the speed-up depends on the quality asked for, as Table 3 of arXiv:2406.12303 has it."""

from collections.abc import Mapping

from immiscible_diffusion.report.speedup import Curve, Speedup, speedup

__all__ = ["thresholds"]


def thresholds(reference: Mapping[int, Curve], arm: Mapping[int, Curve]) -> list[tuple[int, Speedup]]:
    """Return the speed-up for the quality that the reference has after each of its evaluations but the first.

    Nothing is known of training before the first evaluation, so that no speed-up can be read off it. A quality that
    every seed had before is no new one and is left out.

    Args:
        reference: seed -> curve, of independent noise say; all seeds are measured at the same training steps.
        arm: seed -> curve, with the same seeds.

    Raises:
        ValueError: the seeds differ or there are none, or the reference's seeds were measured at different steps.

    >>> curves = {0: [(100, 9.0), (200, 6.0), (300, 3.0)]}
    >>> [(step, round(gains.ratio, 2)) for step, gains in thresholds(curves, {0: [(100, 8.0), (200, 3.0)]})]
    [(200, 1.55), (300, 1.5)]
    """
    steps = {tuple(step for step, _ in curve) for curve in reference.values()}
    if len(steps) > 1:
        raise ValueError(f"the reference's seeds were measured at different steps: {sorted(steps)}")
    gains = []
    for step in sorted(*steps)[1:] if steps else ():
        until = {seed: [point for point in curve if point[0] <= step] for seed, curve in reference.items()}
        gain = speedup(until, arm)
        if max(high for _, high in gain.reference.values()) == step:
            gains.append((step, gain))
    return gains
