"""Text as a condition: the folders of Stable Diffusion, their frozen text encoder, and captions on the way to a net."""

import dataclasses
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from immiscible_diffusion.types import Batch, Float, Int, Source

__all__ = ["Captioned", "TextEncoder", "conditioned", "pipeline_folder", "text_encoder", "with_prompts", "with_states"]

_WEIGHTS = "diffusion_pytorch_model"
_FILES = {
    "unet": [
        "config.json",
        f"{_WEIGHTS}.safetensors",
        f"{_WEIGHTS}.safetensors.index.json",
        f"{_WEIGHTS}-*.safetensors",
    ],
    "text_encoder": ["config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors"],
    "tokenizer": ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"],
}
"""What is fetched of a pipeline on the hub: safetensors and JSON alone."""

_TEXTS_AT_ONCE = 64
_loading = threading.Lock()
N = TypeVar("N")


class TextEncoder:
    """A frozen CLIP text encoder with its tokenizer, as Stable Diffusion uses them.

    ``length`` is the number of tokens that every text is padded or cut to, ``width`` that of a hidden state.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.length = min(int(tokenizer.model_max_length), int(model.config.max_position_embeddings))
        self.width = int(model.config.hidden_size)
        self._model, self._tokenizer = model, tokenizer
        tokenizer.model_max_length = self.length

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "b l f"]:
        """Return the last hidden states of texts, (b, length, width), float32; the empty text is the null condition."""
        device = next(self._model.parameters()).device
        parts = [torch.empty(0, self.length, self.width, device=device)]
        with torch.autocast(device.type, enabled=False):
            for i in range(0, len(texts), _TEXTS_AT_ONCE):
                tokens = self._tokenizer(
                    list(texts[i : i + _TEXTS_AT_ONCE]),
                    padding="max_length",
                    max_length=self.length,
                    truncation=True,
                    return_tensors="pt",
                )
                parts.append(self._model(tokens.input_ids.to(device))[0].float())
        return torch.cat(parts)

    def save(self, folder: Path) -> None:
        """Write ``text_encoder/`` and ``tokenizer/`` into a pipeline's folder."""
        self._model.save_pretrained(folder / "text_encoder")
        self._tokenizer.save_pretrained(folder / "tokenizer")


def pipeline_folder(path: str, revision: str, *parts: str) -> Path:
    """Return the local folder of a pipeline with these sub-folders, fetched from the hub if need be.

    Args:
        path: a folder, or a name on the hub.
        revision: the hub's branch, tag or commit; its main branch if empty.
        parts: of ``unet``, ``text_encoder`` and ``tokenizer``.

    Raises:
        ValueError: there is none, or one of its parts is missing.
    """
    found = Path(path)
    if not found.is_dir():
        if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
            raise ValueError(f"no folder {path}, and it is no name on the hub, OWNER/NAME")
        found = _fetched(path, revision, parts)
    for part in parts:
        if not (found / part).is_dir():
            raise ValueError(f"{found} has no {part}/; it must be a folder as Stable Diffusion's pipeline has it")
    return found


def text_encoder(path: str, revision: str = "", device: str = "cpu") -> TextEncoder:
    """Return the text encoder of a pipeline, read once for each device.

    Args:
        path: a folder with ``text_encoder/`` and ``tokenizer/``, or a name on the hub.
        revision: the hub's branch, tag or commit; its main branch if empty.
        device: where to compute.

    Raises:
        ValueError: there is none, or its files are damaged or do not fit each other.
    """
    folder = pipeline_folder(path, revision, "text_encoder", "tokenizer")
    with _loading:  # a background thread may prepare batches
        return _load(folder, device)


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


def _fetched(name: str, revision: str, parts: tuple[str, ...]) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ImportError("a pipeline on the hub needs diffusers: pip install 'immiscible-diffusion[nets]'") from error
    wanted = [f"{part}/{file}" for part in parts for file in _FILES[part]]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ValueError(f"there is no folder {name}, and the hub does not give it: {error}") from error


@cache
def _load(folder: Path, device: str) -> TextEncoder:
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise ImportError("a text encoder needs transformers: pip install 'immiscible-diffusion[text]'") from error
    try:
        with torch.random.fork_rng(devices=[]):  # weights may be initialised before they are loaded
            loader: Any = CLIPTextModel
            model, about = loader.from_pretrained(
                folder / "text_encoder",
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:  # damage meets transformers wherever it happens to be
        raise ValueError(f"cannot load the text encoder in {folder}: {error}") from error
    if about["missing_keys"]:  # which would stay at random values
        missing = sorted(about["missing_keys"])
        raise ValueError(f"the text encoder in {folder} lacks {len(missing)} tensors: {missing[:3]}")
    return TextEncoder(model.eval().requires_grad_(False).to(device), tokenizer)
