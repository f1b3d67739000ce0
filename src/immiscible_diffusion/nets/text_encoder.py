"""The frozen text encoder of a Stable Diffusion pipeline, from a local folder or the hub."""

import threading
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.extras import local_folder, needs, read_model
from immiscible_diffusion.types import Float

__all__ = ["TextEncoder", "pipeline_folder", "text_encoder"]

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


class TextEncoder:
    """A frozen CLIP text encoder with its tokenizer, as Stable Diffusion uses them.

    ``length`` is the number of tokens that every text is padded or cut to, ``width`` the length of a hidden state.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.length = min(int(tokenizer.model_max_length), int(model.config.max_position_embeddings))
        self.width = int(model.config.hidden_size)
        self._model, self._tokenizer, self._warned = model, tokenizer, False
        tokenizer.model_max_length = self.length

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "b l f"]:
        """Return the last hidden states of texts, (b, length, width), float32; the empty text is the null condition.

        The first time that texts are longer than ``length`` tokens and are cut, a warning says how many.
        """
        if not self._warned:
            self._warn_of_long(texts)
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

    def _warn_of_long(self, texts: Sequence[str]) -> None:
        long = [text for text in texts if len(text.encode()) > self.length - 2]  # a token is a byte or more
        tokens = self._tokenizer(long, verbose=False)["input_ids"] if long else []
        if cut := [text for text, numbers in zip(long, tokens, strict=True) if len(numbers) > self.length]:
            self._warned = True
            warnings.warn(
                f"{len(cut)} of {len(texts)} texts have more than {self.length} tokens, all that this encoder reads, "
                f"and are cut, such as {cut[0][:60]!r}: shorten them, or let what matters come first",
                stacklevel=3,
            )

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
    folder = local_folder(path, revision, [f"{part}/{file}" for part in parts for file in _FILES[part]])
    for part in parts:
        if not (folder / part).is_dir():
            raise ValueError(f"{folder} has no {part}/; it must be a folder as Stable Diffusion's pipeline has it")
    return folder


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


@cache
def _load(folder: Path, device: str) -> TextEncoder:
    with needs("text", "a text encoder needs transformers"):
        from transformers import CLIPTextModel, CLIPTokenizer
    with torch.random.fork_rng(devices=[]):  # weights may be initialised before they are loaded
        model = read_model(CLIPTextModel, folder / "text_encoder", "the text encoder", dtype=torch.float32)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:  # damage meets transformers wherever it happens to be
        raise ValueError(f"cannot load the tokenizer in {folder / 'tokenizer'}: {error}") from error
    return TextEncoder(model.eval().requires_grad_(False).to(device), tokenizer)
