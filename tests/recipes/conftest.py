"""torchvision of a registry, built for CUDA, beside a CPU build of torch: only its compiled operators are missing."""

import importlib.util
import sys

import torch

_OPERATORS: list[torch.library.Library] = []


def pytest_configure() -> None:
    """Declare the operators that torchvision's import refers to, where its library cannot be loaded."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _OPERATORS.append(library)
