"""A folder of your images: train by flow matching with independent and with assigned noise, and compare samples.

    python examples/image_folder.py FOLDER [--size 32] [--steps 2000] [--out samples]

Sub-folders of FOLDER, if any, are classes. Writes `independent.png` and `assignment.png`: each row of a grid has the
same number of sampling steps (1, 2, 4, 8), each column starts from the same noise, in both pictures.
"""

import argparse
from pathlib import Path

import torch

from immiscible_diffusion import (
    Assignment,
    Denoising,
    Images,
    Independent,
    Pixels,
    Straight,
    Train,
    Trained,
    UNet,
    fit,
    generate,
    new_state,
)
from immiscible_diffusion.runs.pictures import save_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=2000, help="training steps of each of the two")
    parser.add_argument("--batch", type=int, default=64, help="images a step, which are paired with each other")
    parser.add_argument("--out", type=Path, default=Path("samples"))
    options = parser.parse_args()

    photos = Images(str(options.folder), size=options.size, held_out_rows=1, flip=True, on_bad="skip")
    config = Train(steps=options.steps, batch=min(options.batch, photos.rows))
    method, codec, shape = Denoising(predict="velocity", schedule=Straight()), Pixels(), photos.shape
    for name, coupling in {"independent": Independent(), "assignment": Assignment()}.items():
        state = new_state(UNet(channels=(32, 64)).build(shape, None), config)  # the same weights for both
        for trained in fit(state, photos, codec, coupling, method, config):
            if trained.step % 100 == 0:
                print(f"{name}: step {trained.step} of {config.steps}")
        model = Trained(state.ema, method, codec, coupling.prior([]), shape, name)
        rows = [images for steps in (1, 2, 4, 8) for images in generate(model, 8, steps=steps)]
        options.out.mkdir(parents=True, exist_ok=True)
        save_grid(torch.cat(rows), options.out / f"{name}.png")
    print(f"Look at {options.out / 'independent.png'} and {options.out / 'assignment.png'}")


if __name__ == "__main__":
    main()
