"""Conditions of a net: captions become hidden states on their way from a source, class names become prompts."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from immiscible_diffusion.nets.text_encoder import TextEncoder, text_encoder
from immiscible_diffusion.types import Batch, Int, Source

__all__ = ["Captioned", "conditioned", "with_prompts", "with_states"]

N = TypeVar("N")


@runtime_checkable
class Prompted(Protocol):
    """The description of a net whose condition is text."""

    conditional: bool
    text: str
    revision: str
    prompts: tuple[str, ...]


@runtime_checkable
class HasCaptions(Protocol):
    """A source whose condition is the number of a caption, and that knows its text."""

    def captions(self, numbers: Tensor) -> list[str]:
        """Return the captions of these numbers."""
        ...


@dataclass(frozen=True)
class Captioned:
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
        return self.encoder(self.source.captions(numbers))


def with_states(source: Source, path: str, revision: str = "", device: str = "cpu") -> Captioned:
    """Return the source with the hidden states of its captions as condition.

    Args:
        source: yields numbers of captions as condition.
        path: of the text encoder: a folder with ``text_encoder/`` and ``tokenizer/``, or a name on the hub.
        revision: the hub's branch, tag or commit; its main branch if empty.
        device: where texts are encoded.

    Raises:
        ValueError: the source has labels or no captions, or there is no encoder.
    """
    if source.classes is not None or not isinstance(source, HasCaptions):
        raise ValueError(f"{type(source).__name__} yields no captions; a text encoder has nothing to read")
    return Captioned(source, text_encoder(path, revision, device))


def conditioned(source: Source, net: object, device: str = "cpu") -> Source:
    """Return the source with the condition that the net takes: captions become hidden states, the rest stays.

    Raises:
        ValueError: the net's condition is text, and the source has neither labels nor captions.
    """
    if not isinstance(net, Prompted) or not (net.conditional and net.text) or source.classes is not None:
        return source
    if not isinstance(source, HasCaptions):
        raise ValueError(f"the net's condition is text, and {type(source).__name__} has neither labels nor captions")
    return with_states(source, net.text, net.revision, device)


def with_prompts(net: N, source: Source) -> N:
    """Return the net's description with the source's class names as prompts, where it asks for text and names none.

    Raises:
        ValueError: the source has labels but no names for them.
    """
    if not isinstance(net, Prompted) or not (net.conditional and net.text) or net.prompts or source.classes is None:
        return net
    names = getattr(source, "class_names", None)
    if names is None:
        raise ValueError(f"{type(source).__name__} does not name its {source.classes} classes; give net.prompts")
    return dataclasses.replace(net, prompts=tuple(names))  # type: ignore[type-var]
