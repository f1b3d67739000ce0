"""Exports in an environment without this package: stock diffusers draws what `immiscible sample` drew, for one seed.

``python tests/stock.py make FOLDER`` trains and exports small models and samples from them, with this package;
``python tests/stock.py check FOLDER`` runs the Python of their model cards and compares, without it. `make stock` does
the second in an environment that holds torch, diffusers and transformers alone.
"""

import re
import sys
from pathlib import Path
from typing import Any

SHARED = Path(__file__).parents[2] / "shared" / "data"
LEVELS = 1
"""How far pixels may lie apart, of 255: two programs round to eight bits."""


def make(folder: Path) -> list[str]:
    """Export a model for every stock pipeline, each with the first image of seed 0; return their names."""
    import torch

    from immiscible_diffusion.codecs import VAE, Pixels
    from immiscible_diffusion.couplings import Nearest
    from immiscible_diffusion.export.model import save_export
    from immiscible_diffusion.methods import Consistency, Denoising
    from immiscible_diffusion.nets import Dit, UNet, UNetCondition
    from immiscible_diffusion.priors import StandardNormal
    from immiscible_diffusion.runs.write_samples import SamplingOptions, write_samples
    from immiscible_diffusion.sample import Trained
    from immiscible_diffusion.schedules import Betas

    plain, latent = (3, 8, 8), (4, 8, 8)
    betas = Betas("scaled_linear", 1000, 0.00085, 0.012)
    matched = Nearest(8, "dot").prior([torch.randn(64, *latent, generator=torch.Generator().manual_seed(1)) + 1])
    models: dict[str, tuple[Any, ...]] = {
        "ddim": (
            UNet((8, 16)), None, Denoising(Betas(), "eps"), Pixels(), StandardNormal(), plain, SamplingOptions(10)
        ),
        "ddim-clipped": (
            UNet((8, 16)), None, Denoising(Betas(), "eps", clip=0.4), Pixels(), StandardNormal(), plain,
            SamplingOptions(10)
        ),
        "dpmpp": (
            UNet((8, 16)), None, Denoising(Betas(), "v", "dpmpp"), Pixels(), StandardNormal(), plain,
            SamplingOptions(10)
        ),
        "consistency": (
            UNet((8, 16), time="log_sigma"), None, Consistency(), Pixels(), StandardNormal(), plain, SamplingOptions(1)
        ),
    }  # fmt: skip
    if (SHARED / "taesd").is_dir():
        from tiny_pipeline import text_parts

        text = str(text_parts(folder / "text", SHARED / "clip-tokenizer"))
        prompted = UNetCondition((16, 32), text=text, prompts=("a cat", "a dog"), conditional=True)
        vae = VAE(str(SHARED / "taesd"))
        choice = SamplingOptions(20, labels=(0,), guidance=7.5)
        models["stable-diffusion"] = prompted, 2, Denoising(betas, "eps"), vae, StandardNormal(), latent, choice
        models["stable-diffusion-nearest"] = prompted, 2, Denoising(betas, "eps"), vae, matched, latent, choice
        guided = SamplingOptions(20, labels=(0,), guidance=4.0)
        models["dit"] = (
            Dit(depth=2, conditional=True),
            2,
            Denoising(betas, "eps"),
            vae,
            StandardNormal(),
            latent,
            guided,
        )
    for name, (described, classes, method, codec, prior, shape, choice) in models.items():
        torch.manual_seed(0)
        net = described.build(shape, classes).eval().requires_grad_(False)
        for weight in net.parameters():  # an untrained net predicts next to nothing, whatever it is given
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)), alpha=0.02)
        model = Trained(net, method, codec, prior, shape, "independent")
        save_export(model, folder / name, net=described, classes=classes, about={"steps": 0})
        list(write_samples(folder / name, folder / f"{name}-samples", 1, choice, workers=1, device="cpu"))
    return list(models)


def check(folder: Path) -> list[str]:
    """Run what the model cards say and return a line a model: how far its image is from ours, in levels of 255.

    Raises:
        AssertionError: this package can be imported, a card has no example, or an image differs.
    """
    import numpy as np
    import torch

    try:
        import immiscible_diffusion  # noqa: F401
    except ImportError:
        pass
    else:
        raise AssertionError("the package is there: nothing is shown about an environment without it")
    lines = []
    for card in sorted(folder.glob("*/README.md")):
        ours = np.load(card.parent.parent / f"{card.parent.name}-samples" / "samples.npz")["arr_0"][0]
        text = card.read_text(encoding="utf-8").replace("FOLDER", str(card.parent))
        blocks = re.findall(r"^(\S[^\n]*):\n\n```python\n(.*?)```", text, re.M | re.S)
        scope: dict[str, Any] = {}
        for said, code in blocks:
            if said.startswith("The noise of that start"):
                exec(compile(code, str(card), "exec"), scope)  # noqa: S102
        pipelines = [(said, code) for said, code in blocks if "Pipeline" in code]
        assert pipelines, f"{card} shows no stock pipeline"
        for said, code in pipelines:
            with torch.no_grad():
                exec(compile(code, str(card), "exec"), scope)  # noqa: S102
            image = scope["image"] if "image = " in code else scope["images"][0]
            difference = int(np.abs(np.asarray(image).astype(int) - ours.astype(int)).max())
            lines.append(f"{card.parent.name}, {said}: {difference}")
            assert difference <= LEVELS, lines[-1]
            assert int(ours.max()) - int(ours.min()) > 20, f"{card.parent.name}: a flat picture shows nothing"
    return lines


if __name__ == "__main__":
    sys.stdout.write("\n".join({"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))) + "\n")
