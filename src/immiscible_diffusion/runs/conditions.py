"""What a run's net is conditioned on: captions become hidden states, class names prompts, held-out rows conditions."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from immiscible_diffusion.experiments.config import Config
from immiscible_diffusion.nets.text_encoder import TextEncoder, text_encoder
from immiscible_diffusion.registry import describe
from immiscible_diffusion.share import Share
from immiscible_diffusion.shared_batches import shared
from immiscible_diffusion.types import (
    Batch,
    HasCaptionNumbers,
    HasClassNames,
    HasOriginal,
    HasPrompts,
    Int,
    NetDescription,
    Source,
)

__all__ = ["EncodedCaptions", "conditioned", "conditions_for", "once", "with_prompts", "with_states"]

N = TypeVar("N")
_CACHED = 4
_cache: dict[str, Tensor] = {}


@dataclass(frozen=True)
class EncodedCaptions:
    """A source whose condition is the hidden states of its captions, (b, l, f), on the encoder's device.

    Args:
        source: yields numbers of captions as condition, as ``Latents`` of captioned images does.
        encoder: turns their text into hidden states.
    """

    source: Any
    encoder: TextEncoder

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one raw datum."""
        return tuple(self.source.shape)

    @property
    def rows(self) -> int:
        """How many rows training sees in an epoch."""
        return int(self.source.rows)

    @property
    def classes(self) -> int | None:
        """None: there are captions in place of labels."""
        return None

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield the source's batches with hidden states as condition."""
        for batch in self.source.batches(size, seed, start):
            yield batch._replace(cond=self.states(batch.cond))

    def share_batches(self, size: int, seed: int, start: int, share: Share) -> Iterator[Batch]:
        """Yield this share of each of these batches; only its own captions are encoded."""
        for batch in shared(self.source, size, seed, start, share):
            yield batch._replace(cond=self.states(batch.cond))

    def held_out(self) -> Batch:
        """Return the images that training never sees, with the hidden states of one caption each."""
        batch: Batch = self.source.held_out()
        return batch._replace(cond=self.states(batch.cond))

    def states(self, numbers: Int[Tensor, " b"] | None) -> Tensor:
        """Return the hidden states of the captions of these numbers, (b, l, f).

        Raises:
            ValueError: the source has no captions.
        """
        if numbers is None:
            raise ValueError(f"{type(self.source).__name__} yields no captions; store its latents with captions first")
        return self.encoder(self.source.caption_texts(numbers))


def with_states(source: Source, path: str, revision: str = "", device: str = "cpu") -> EncodedCaptions:
    """Return the source with the hidden states of its captions as condition.

    Args:
        source: yields numbers of captions as condition.
        path: of the text encoder: a folder with ``text_encoder/`` and ``tokenizer/``, or a name on the hub.
        revision: the hub's branch, tag or commit; its main branch if empty.
        device: where texts are encoded.

    Raises:
        ValueError: the source has labels or no captions, or there is no encoder.
    """
    if source.classes is not None or not isinstance(source, HasCaptionNumbers):
        raise ValueError(f"{type(source).__name__} yields no captions; a text encoder has nothing to read")
    return EncodedCaptions(source, text_encoder(path, revision, device))


def conditioned(source: Source, net: NetDescription, device: str = "cpu") -> Source:
    """Return the source with the condition that the net takes: captions become hidden states, the rest stays.

    Raises:
        ValueError: the net's condition is text, and the source has neither labels nor captions.
    """
    if net.condition(source.classes) != "text" or not isinstance(net, HasPrompts):
        return source
    if not isinstance(source, HasCaptionNumbers):
        raise ValueError(f"the net's condition is text, and {type(source).__name__} has neither labels nor captions")
    return with_states(source, net.text, net.revision, device)


def with_prompts(net: N, source: Source) -> N:
    """Return the net's description with the source's class names as prompts, where it attends to text and has none.

    Raises:
        ValueError: the source has labels but no names for them.
    """
    if not isinstance(net, HasPrompts) or not net.text or net.prompts or net.condition(source.classes) != "labels":
        return net
    names = source.class_names if isinstance(source, HasClassNames) else None
    if names is None:
        raise ValueError(f"{type(source).__name__} does not name its {source.classes} classes; give net.prompts")
    return dataclasses.replace(net, prompts=tuple(names))  # type: ignore[type-var]


def conditions_for(config: Config, n: int, first: int = 0) -> Tensor | None:
    """Return the conditions of n images to generate; None for a net without condition.

    Labels run through the classes, (n,); captions are those of the held-out images, as hidden states, (n, l, f); dense
    conditions, (n, *dims), are those of the held-out rows.

    Args:
        config: the run.
        n: how many images.
        first: the number of the first.

    Raises:
        ValueError: the net needs captions or a dense condition, and the source has none.
    """
    numbers, classes = torch.arange(first, first + n), config.source.classes
    kind = config.net.condition(classes)
    if kind == "nothing":
        return None
    if kind == "labels" and classes is not None:
        return numbers % classes
    source = conditioned(config.source, config.net)
    held_out = _held_out_conditions(config, first + n)
    rows = held_out[numbers % len(held_out)]
    return source.states(rows) if isinstance(source, EncodedCaptions) else rows


def once(of: Any, make: Callable[[], Tensor]) -> Tensor:
    """Return a tensor that this process keeps under plain values; the last four are kept."""
    key = json.dumps(of, sort_keys=True, default=str)
    if key not in _cache:
        made = make()
        while len(_cache) >= _CACHED:
            _cache.pop(next(iter(_cache)))
        _cache[key] = made
    return _cache[key]


def _held_out_conditions(config: Config, rows: int) -> Tensor:
    """Return the conditions of so many held-out rows at least, or of all."""
    source = config.source
    if isinstance(source, HasOriginal):
        several = max(rows, config.evaluate.samples)
        return once([describe("source", source), several], lambda: source.held_out_conditions(several))
    return once(describe("source", source), lambda: _conditions_of(source))


def _conditions_of(source: Source) -> Tensor:
    cond = source.held_out().cond
    if cond is None or not len(cond):
        raise ValueError(f"the net needs a condition, and {type(source).__name__} holds out rows without one")
    return cond
