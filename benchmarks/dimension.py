"""How near couplings bring noise to latents of real images, by the number of coordinates and the rows of a batch."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.codecs import VAE
from immiscible_diffusion.couplings import Assignment, Independent, Nearest, Viewed
from immiscible_diffusion.couplings.viewed import pooled
from immiscible_diffusion.data import Images
from immiscible_diffusion.types import Coupling

__all__ = ["bench_dimension", "dimension_line", "dimension_page"]

_TABLE = re.compile(r"(<!-- dimension -->\n).*?(<!-- end of dimension)", re.DOTALL)
_CELLS = 8
"""Side of the grid whose averages are the coarse part of a latent."""

COUPLINGS: dict[str, Coupling] = {
    "assignment": Assignment(),
    "assignment, pooled": Viewed("pooled", size=_CELLS),
    "nearest of 16, dot": Nearest(16, cost="dot"),
    "nearest of 64, dot": Nearest(64, cost="dot"),
}


def bench_dimension(
    images: str, codec: str, pixels: Sequence[int], *, split: str, rows: int, batches: Sequence[int], repeats: int
) -> Iterator[dict[str, Any]]:
    """Yield, for every size, batch and coupling, by how many percent pairs are nearer than independent ones.

    Args:
        images: folder or hub name of the images.
        codec: folder or hub name of the autoencoder.
        pixels: heights and widths.
        split: of the images.
        rows: latents a size; batches are cut from them.
        batches: rows a batch.
        repeats: draws of noise for every latent.
    """
    for size in pixels:
        latents = _latents(images, codec, split, size, rows)
        for b in batches:
            alone = _distances(Independent(), latents, b, repeats)
            for name, coupling in COUPLINGS.items():
                if b == 1 and not isinstance(coupling, Nearest):
                    continue
                near = _distances(coupling, latents, b, repeats)
                gains = {part: 100 * (1 - near[part] / alone[part]) for part in near}
                yield (
                    {"pixels": size, "d": latents[0].numel(), "batch": b, "coupling": name}
                    | {f"{part}_percent": float(gain.mean()) for part, gain in gains.items()}
                    | {f"{part}_error": float(gain.std() / len(gain) ** 0.5) for part, gain in gains.items()}
                )


def _latents(images: str, codec: str, split: str, size: int, rows: int) -> Tensor:
    """Return the latents of the first images, (rows, c, h, w)."""
    encoder = VAE(codec)
    source = Images(images, split=split, size=size, held_out_rows=1)
    parts, done = [], 0
    for batch in source.batches(4, 0):
        parts.append(encoder.encode(batch.raw))
        done += len(parts[-1])
        if done >= rows:
            break
    return torch.cat(parts)[:rows]


def _distances(coupling: Coupling, latents: Tensor, b: int, repeats: int) -> dict[str, Tensor]:
    """Return each repeat's mean distance of pairs in full and of their coarse parts, (repeats,)."""
    generator = torch.Generator().manual_seed(0)
    full, coarse = torch.zeros(repeats), torch.zeros(repeats)
    batches = torch.split(latents[: len(latents) // b * b], b)
    for i in range(repeats):
        for x in batches:
            noise = coupling(x, generator=generator)
            full[i] += (x - noise).flatten(1).norm(dim=1).mean() / len(batches)
            low, low_noise = pooled(x, noise, size=_CELLS)
            coarse[i] += (low - low_noise).flatten(1).norm(dim=1).mean() / len(batches)
    return {"distance": full, "coarse": coarse}


def dimension_line(row: dict[str, Any]) -> str:
    """Return a row in one line for a terminal."""
    return (
        f"d {row['d']:>6}, batch {row['batch']:>2}, {row['coupling']:<20} distance -{row['distance_percent']:.2f} % "
        f"(+- {row['distance_error']:.2f}), coarse -{row['coarse_percent']:.2f} % (+- {row['coarse_error']:.2f})"
    )


def dimension_page(text: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a page with the table of these rows between its markers; a dash stands for a missing number.

    Raises:
        ValueError: the page has no markers.
    """
    sizes = dict.fromkeys((row["pixels"], row["d"]) for row in rows)
    heads = " | ".join(f"{pixels} pixels, d = {d:,}" for pixels, d in sizes)
    lines = [f"| batch | coupling | {heads} |", "|--:|---|" + "--:|" * len(sizes)]
    gains = {(row["batch"], row["coupling"], row["d"]): row for row in rows}
    for b, name in dict.fromkeys((row["batch"], row["coupling"]) for row in rows):
        cells = (gains.get((b, name, d)) for _, d in sizes)
        numbers = (
            "-" if row is None else f"{row['distance_percent']:.2f}, {row['coarse_percent']:.2f}" for row in cells
        )
        lines.append(f"| {b} | {name} | {' | '.join(numbers)} |")
    table = "\n".join(lines) + "\n"
    filled, count = _TABLE.subn(lambda match: match[1] + table + match[2], text)
    if count != 1:
        raise ValueError("the page needs the markers <!-- dimension --> and <!-- end of dimension ... --> once")
    return filled
