"""Every noun of this library and every optional ability of one, as protocols; the legend of shapes and of time.

The nouns come first. An optional ability is a protocol named ``Has...``; ``isinstance`` tells who has it.

Shapes: ``b`` batch rows, ``m`` noise rows, ``n`` images, ``c h w`` image axes, ``d`` coordinates of a row,
``k`` candidates, ``f`` features; ``*dims`` stands for any number of axes.

Time: ``t`` lies in [0, 1]; 0 is data, 1 is noise. ``x`` is data in model space, ``raw`` data as stored
(images: uint8, 0..255), ``x_t`` the noisy input of a net.
"""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from immiscible_diffusion.share import Share

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    # The tests load jaxtyping first, and every call is checked; a user's import needs torch alone.
    from jaxtyping import Bool, Float, Int, UInt8
else:

    class _Unchecked:
        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Bool = Float = Int = UInt8 = _Unchecked

__all__ = [
    "Batch",
    "Bool",
    "Choice",
    "Codec",
    "Condition",
    "Coupling",
    "Features",
    "Float",
    "Generators",
    "HasAutoencoder",
    "HasCaptionNumbers",
    "HasCaptions",
    "HasChoice",
    "HasClassNames",
    "HasClip",
    "HasDenseCondition",
    "HasFingerprint",
    "HasFitting",
    "HasFlip",
    "HasFreshNoise",
    "HasLeastRows",
    "HasListing",
    "HasMemory",
    "HasMoments",
    "HasNullCondition",
    "HasOriginal",
    "HasPictures",
    "HasPreparation",
    "HasPrompts",
    "HasRandomAccess",
    "HasRange",
    "HasRowByRow",
    "HasRowNames",
    "HasShares",
    "HasStockParts",
    "HasStockSampling",
    "HasTeacher",
    "HasTimes",
    "HasTrainingRows",
    "HasWindow",
    "Int",
    "Method",
    "Metric",
    "Net",
    "NetDescription",
    "Prior",
    "Schedule",
    "Source",
    "StockSampling",
    "TimeScale",
    "UInt8",
]

Net = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A net maps (x_t (b, *dims), t (b,), cond) to its prediction, (b, *dims)."""

Condition = Literal["nothing", "labels", "text", "dense"]
"""What a net is conditioned on: nothing; class labels, (b,); hidden states of captions, (b, l, f); or a dense condition
that enters beside x_t, (b, width, ...)."""

Generators = torch.Generator | Sequence[torch.Generator] | None
"""One generator for a batch, or one an image, so that an image does not depend on its batch; None: the global one."""

TimeScale = Literal["levels", "log_sigma"]
"""What a diffusers model gets for the time t: 1000 t, or 250 ln(sigma)."""


class Batch(NamedTuple):
    """What a source yields: the data as stored, their condition (labels, (b,)) or None, and their row numbers, (b,).

    ``mask`` is True where the encoded data are real and False where they are padding; it broadcasts over them, such as
    (b, horizon, 1). None: everywhere real.
    """

    raw: Tensor
    cond: Tensor | None
    rows: Tensor | None = None
    mask: Tensor | None = None


class Choice(NamedTuple):
    """Noise, (b, *dims), and the training rows chosen for it.

    ``places`` are their numbers among the training rows, (b,), 0 .. rows - 1; ``mirrored`` tells of which the mirror
    image is meant, (b,); ``x`` is what the choice knows of them in model space, (b, *dims).
    """

    noise: Tensor
    places: Tensor
    mirrored: Tensor
    x: Tensor


@runtime_checkable
class Prior(Protocol):
    """The distribution that sampling starts from."""

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return starting noise of this shape, (n, *dims), float32, on the generator's device."""
        ...


@runtime_checkable
class Coupling(Protocol):
    """A drop-in for ``torch.randn_like`` that pairs each datum with a nearby noise."""

    def __call__(
        self,
        x: Tensor,
        *,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
        index: Tensor | None = None,
        step: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return noise paired with x row by row, (b, *dims); the rows of x keep their order.

        ``cond`` is the data's condition, ``index`` the number of each row in its data set, ``step`` the training
        step; most couplings need none of them. ``mask`` is the mask of ``Batch``, given where a batch has one: padding
        has no say in the pairs.
        """
        ...

    def prior(self, data: Iterable[Tensor]) -> Prior:
        """Return the distribution that sampling must start from, given batches (b, *dims) of the data."""
        ...


@runtime_checkable
class Method(Protocol):
    """Loss and sampling of one family of models, which must agree on time, prediction and scale."""

    def loss(
        self,
        net: Net,
        x: Tensor,
        noise: Tensor,
        cond: Tensor | None = None,
        *,
        teacher: Net | None = None,
        progress: float = 0.0,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of each row, (b,).

        ``generator`` draws the rows' times; a method that ``HasTimes`` is handed ``times`` in its place.
        ``mask`` is the mask of ``Batch``, given where a batch has one: a row's loss is the mean over its real places.
        """
        ...

    def sample(
        self,
        net: Net,
        noise: Tensor,
        cond: Tensor | None = None,
        *,
        steps: int,
        generator: Generators = None,
    ) -> Tensor:
        """Return data generated from the noise in this many steps, (n, *dims).

        Several generators come only to a method that ``HasFreshNoise``.
        """
        ...


@runtime_checkable
class Codec(Protocol):
    """The way between data as stored and model space."""

    def encode(self, raw: Tensor) -> Tensor:
        """Return raw data in model space, (b, *dims), float32."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Return model-space data as stored, uint8 for images."""
        ...


@runtime_checkable
class Source(Protocol):
    """Where data come from. Batches depend on the arguments alone, so that resuming is exact."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one raw datum, (c, h, w) for images."""
        ...

    @property
    def rows(self) -> int:
        """How many rows training sees in an epoch."""
        ...

    @property
    def classes(self) -> int | None:
        """How many classes the labels have, or None without labels."""
        ...

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield training batches for ever, from batch number ``start`` on."""
        ...

    def held_out(self) -> Batch:
        """Return real data that training never sees, to measure samples against."""
        ...


@runtime_checkable
class Features(Protocol):
    """The network whose features a metric compares."""

    def __call__(self, raw: Tensor) -> Tensor:
        """Return the features of images, (n, f), float32."""
        ...


@runtime_checkable
class Metric(Protocol):
    """A comparison of real and generated data in feature space."""

    @property
    def better(self) -> Literal["lower", "higher"]:
        """Which way is better: ``lower`` of a distance, ``higher`` of a score."""
        ...

    @property
    def least(self) -> int:
        """The fewest rows a side that can be compared."""
        ...

    def __call__(self, real: Tensor, generated: Tensor) -> float:
        """Return one number for features (n, f) and (m, f)."""
        ...


@runtime_checkable
class Schedule(Protocol):
    """The times that are trained and sampled, and the shares of data and noise in x_t at each of them."""

    def draw(self, b: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Return random training times, (b,), float32."""
        ...

    def times(self, steps: int) -> Tensor:
        """Return the times at which sampling evaluates the net, falling, (steps,), float32."""
        ...

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at these times, each (b,)."""
        ...


@runtime_checkable
class NetDescription(Protocol):
    """The frozen dataclass that describes a net: its options, and how it is built, written and read."""

    def condition(self, classes: int | None) -> Condition:
        """Return the kind of condition of the net for data with this number of classes, or without labels (None)."""
        ...

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        """Return the net for data of this shape, (c, h, w) for images, with weights from the global generator."""
        ...

    def save(self, net: nn.Module, folder: Path) -> None:
        """Write the weights of a net that ``build`` or ``load`` made, and all else that ``load`` needs, into a folder.

        The folder exists and holds nothing of the net's.
        """
        ...

    def load(self, folder: Path, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        """Return the net that ``save`` wrote; ValueError where a file is missing, damaged or does not fit."""
        ...


@runtime_checkable
class HasMemory(Protocol):
    """A coupling that keeps tensors between batches. The loop saves them with the training state and restores them."""

    def memory(self) -> dict[str, Tensor]:
        """Return the tensors that the coupling keeps, without a copy; empty before the first batch."""
        ...

    def remember(self, memory: dict[str, Tensor]) -> None:
        """Restore the tensors of ``memory()``; an empty dict makes the coupling forget."""
        ...


@runtime_checkable
class HasWindow(Protocol):
    """A coupling that pairs several batches as one pool. The training loop reads so many ahead and joins them."""

    @property
    def window(self) -> int:
        """How many batches are one pool."""
        ...


@runtime_checkable
class HasPreparation(Protocol):
    """A coupling over a whole data set, which must be prepared with it before the first step."""

    def prepare(
        self, source: "Source", codec: "Codec", device: torch.device | None = None
    ) -> Generator[float, None, Coupling]:
        """Yield the share of the work that is done, in 0..1, and return the coupling that is ready.

        Everything that may be refused is refused before the first yield. What was made is kept: where it is there,
        nothing is yielded. Closed in between, the next call goes on.
        """
        ...


@runtime_checkable
class HasChoice(Protocol):
    """A coupling that draws noise first and chooses the data for it, from a source that ``HasTrainingRows``."""

    def choose(self, b: int, generator: torch.Generator | None = None) -> Choice:
        """Return so many noises and the rows of data that they are paired with."""
        ...


@runtime_checkable
class HasRowByRow(Protocol):
    """A coupling that says whether a row's noise depends on that row of the data alone."""

    @property
    def row_by_row(self) -> bool:
        """Whether several processes may each hand over zeros for the others' rows."""
        ...


@runtime_checkable
class HasCostMatrix(Protocol):
    """A coupling that computes the cost of every datum with every noise of a batch."""

    @property
    def cost(self) -> Literal["l2", "dot", "l1", "cosine"]:
        """How data and noise are compared."""
        ...

    @property
    def precision(self) -> Literal["fp32", "fp16", "bf16"]:
        """In which the costs are computed."""
        ...


@runtime_checkable
class HasCaptions(Protocol):
    """A source of images with one or more captions each."""

    def captions(self, rows: Int[Tensor, " b"]) -> Sequence[Sequence[str]]:
        """Return the captions of these rows: one or more each, or for every row none."""
        ...


@runtime_checkable
class HasCaptionNumbers(Protocol):
    """A source whose condition is the number of a caption."""

    def caption_texts(self, numbers: Int[Tensor, " b"]) -> list[str]:
        """Return the captions of these numbers."""
        ...


@runtime_checkable
class HasClassNames(Protocol):
    """A source that can name its classes."""

    @property
    def class_names(self) -> Sequence[str] | None:
        """The classes' names in the order of their labels, or None where they have none."""
        ...


@runtime_checkable
class HasListing(Protocol):
    """A source that can give a digest of its files, to notice that they changed."""

    def listing_digest(self) -> str | None:
        """Return a SHA-256 of the names, sizes and labels of all rows; None where no files are read.

        Nothing is decoded, and the same files in another folder have the same digest.
        """
        ...


@runtime_checkable
class HasPictures(Protocol):
    """A source whose condition can be shown as pictures."""

    def pictures(self, n: int) -> list[Tensor]:
        """Return two batches, each (n, c, h, w): the known part of the first n held-out images, and the images."""
        ...


@runtime_checkable
class HasOriginal(Protocol):
    """A source that shows another source's data under a condition of its own."""

    @property
    def original(self) -> Source:
        """The other source. Samples are compared with its data, in features fitted to it and its labels."""
        ...

    def held_out_conditions(self, rows: int) -> Tensor:
        """Return the conditions of the first held-out rows, (rows, *dims), or of all where there are fewer."""
        ...


@runtime_checkable
class HasRandomAccess(Source, Protocol):
    """A source of images whose rows can be read by number.

    Numbers run from 0 through training and held-out rows together; ``held_out().rows`` are the held-out ones.
    """

    def take(self, rows: Int[Tensor, " b"]) -> Batch:
        """Return these rows in this order, uint8 (b, c, h, w), without flips; ``rows`` as in ``Batch.rows``.

        Images that cannot be read may be missing from it. A number beyond the last is a ValueError or IndexError.
        """
        ...


@runtime_checkable
class HasTrainingRows(Protocol):
    """A source that can give any of its training rows by number, as the rows of its batches are."""

    def training_rows(
        self, places: Int[Tensor, " b"], mirrored: Bool[Tensor, " b"], generator: torch.Generator | None = None
    ) -> Batch:
        """Return these training rows in this order, with their conditions.

        Args:
            places: their numbers among the training rows, 0 .. rows - 1.
            mirrored: which of them are to be mirrored, where the source mirrors at random.
            generator: draws what is random about a row, such as its posterior; without one, the posterior's mean.
        """
        ...


@runtime_checkable
class HasShares(Source, Protocol):
    """A source that reads one process's rows of every batch alone."""

    def share_batches(self, size: int, seed: int, start: int, share: Share) -> Iterator[Batch]:
        """Yield the rows of this share of each of the batches that ``batches`` yields."""
        ...


@runtime_checkable
class HasRowNames(Protocol):
    """A source whose rows have names for messages, such as the paths of files."""

    def row_name(self, row: int) -> str:
        """Return the name of the row of this number."""
        ...


@runtime_checkable
class HasMoments(Protocol):
    """A codec that turns images into the moments of a posterior."""

    def moments(self, images: UInt8[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b z y x"], Tensor | None]:
        """Return mean and standard deviation, None where there is no posterior."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return the values that determine the moments, as JSON values."""
        ...


@runtime_checkable
class HasRange(Protocol):
    """A codec that knows how far its data reach."""

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest value that ``encode`` can give."""
        ...


@runtime_checkable
class HasClip(Protocol):
    """A method whose sampling clips its estimates of the data."""

    @property
    def clip(self) -> float:
        """The largest absolute value that an estimate keeps; 0 clips none."""
        ...


@runtime_checkable
class HasAutoencoder(Protocol):
    """A codec whose autoencoder is written into every export."""

    def save(self, folder: Path) -> str:
        """Write ``vae/`` into the folder; return why diffusers' pipelines cannot use it, or the empty text."""
        ...

    def load(self, folder: Path) -> Codec:
        """Return the same codec with the ``vae/`` of the folder, where the folder has one."""
        ...


@runtime_checkable
class HasDenseCondition(Protocol):
    """The description of a net whose condition can be dense."""

    def condition_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the dense condition of one datum of this shape."""
        ...


@runtime_checkable
class HasPrompts(NetDescription, Protocol):
    """The description of a net that attends to texts: captions, or a prompt for each class."""

    @property
    def text(self) -> str:
        """The folder or hub name of the text encoder; empty where the net attends to learned tokens instead."""
        ...

    @property
    def revision(self) -> str:
        """The hub's branch, tag or commit of the text encoder; its main branch if empty."""
        ...

    @property
    def prompts(self) -> tuple[str, ...]:
        """One text a class; empty takes the source's class names."""
        ...


@runtime_checkable
class HasNullCondition(Protocol):
    """A net that was trained with a condition that is dropped at random, as classifier-free guidance needs it."""

    conditional: bool

    def null(self, cond: Tensor) -> Tensor:
        """Return the null condition of each row, in the form of ``cond``."""
        ...


@runtime_checkable
class HasTeacher(Protocol):
    """A method that compares the net with a teacher: a second average of its weights, beside the one to sample from."""

    def teacher_decay(self, progress: float) -> float:
        """Return the average's decay at this share of training, in [0, 1); 0 from the start on means no teacher."""
        ...


@runtime_checkable
class HasTimes(Protocol):
    """A method whose times can be drawn for a whole batch and handed to ``loss`` part by part, as ``times=``.

    So the times do not depend on the number of parts or processes.
    """

    def draw_times(
        self, b: int, *, progress: float, generator: torch.Generator | None, device: torch.device | str
    ) -> Tensor:
        """Return the times of b rows, (b, ...), which only this method need understand."""
        ...


@runtime_checkable
class HasFreshNoise(Protocol):
    """A method whose sampling can add fresh noise, and takes a generator for each image to draw it from."""

    def stochastic(self, steps: int) -> bool:
        """Return whether sampling in this many steps adds fresh noise."""
        ...


@runtime_checkable
class HasLeastRows(Metric, Protocol):
    """A metric that needs more than one row a side."""

    @property
    def least(self) -> int:
        """The fewest real rows, and the fewest generated ones, that can be compared."""
        ...


@runtime_checkable
class HasFingerprint(Protocol):
    """A feature network with a fingerprint of its weights, so that its features can be cached."""

    @property
    def fingerprint(self) -> str:
        """A text that is equal where the features are."""
        ...


@runtime_checkable
class HasFitting(Protocol):
    """Features that must be fitted to the data before use."""

    def fitted(self, source: Source, codec: Codec) -> Features:
        """Return the features fitted to the source's training images; the codec decodes other kinds of data to images.

        The same data and options give the same features, which are kept in the cache.
        """
        ...


@runtime_checkable
class HasFlip(Protocol):
    """A source that can show training images mirrored at random."""

    @property
    def flip(self) -> bool:
        """Whether it does."""
        ...


@dataclass(frozen=True)
class StockSampling:
    """How stock diffusers samples from a model that a method trained, for exports and their model cards.

    Args:
        scheduler: the name of diffusers' scheduler; empty where none would be right, for the reason ``why_none``.
        options: what the scheduler is made with.
        why_none: see ``scheduler``.
        differs: the method's own sampler, where the scheduler's is another; empty where they draw the same images.
        agrees: at how many sampling steps they draw the same images, in words.
        time: how diffusers' loop counts time.
        steps: the number of sampling steps that the model card shows.
        set_timesteps: the arguments of ``scheduler.set_timesteps`` as Python; empty for ``steps`` alone.
        begin: x at the first step as Python, made of ``noise`` and ``scheduler``.
        net_x: the net's input at a step as Python, made of ``scheduler``, ``x`` and ``t``.
        net_t: the net's time at a step as Python, made of ``t``.
        step: keyword arguments of ``scheduler.step``.
    """

    scheduler: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    why_none: str = ""
    differs: str = ""
    agrees: str = "any number of steps"
    time: TimeScale = "levels"
    steps: int = 10
    set_timesteps: str = ""
    begin: str = "noise"
    net_x: str = "x"
    net_t: str = "t"
    step: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class HasStockSampling(Protocol):
    """A method that knows how stock diffusers samples from its models."""

    def stock_sampling(self) -> StockSampling:
        """Return diffusers' scheduler and how it is used, or why there is none."""
        ...


@runtime_checkable
class HasStockParts(Protocol):
    """The description of a net that ``save`` writes as parts of a diffusers pipeline."""

    @property
    def time(self) -> TimeScale:
        """What the diffusers model gets for the time."""
        ...

    def stock_parts(self) -> dict[str, tuple[str, str]]:
        """Return library and class of each folder that ``save`` writes, such as ``unet``; the denoising net's first."""
        ...
