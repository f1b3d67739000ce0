"""Stable Diffusion latents from local weights: fine-tune the U-Net on a folder of images, with paired noise.

    python examples/stable_diffusion.py WEIGHTS FOLDER --prompt "a photo of my cat" --out fine-tuned

WEIGHTS is a folder in diffusers' layout (`unet/`, `vae/`, `text_encoder/`, `tokenizer/`, `scheduler/`). One line
differs from diffusers' own training scripts. `DiffusionPipeline.from_pretrained("fine-tuned")` loads the result.
"""

import argparse
from itertools import islice

import torch
from diffusers import DDPMScheduler, DiffusionPipeline

from immiscible_diffusion import Images, Nearest, Pixels, couple


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("folder")
    parser.add_argument("--prompt", default="", help="one text for all images")
    parser.add_argument("--size", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", default="fine-tuned")
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = DiffusionPipeline.from_pretrained(options.weights).to(device)
    vae, unet, scheduler = pipeline.vae, pipeline.unet, DDPMScheduler.from_config(pipeline.scheduler.config)
    token = pipeline.tokenizer(options.prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        text = pipeline.text_encoder(token.to(device))[0]
    # Few rows have few noises to exchange: below 16, the nearest of 16 fresh noises is the better pairing.
    paired = couple if options.batch >= 16 else Nearest(16, cost="dot")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5)
    images = Images(options.folder, size=options.size, held_out_rows=1, flip=True)
    unet.train()
    for step, batch in enumerate(islice(images.batches(options.batch, seed=0), options.steps), 1):
        with torch.no_grad():
            encoded = vae.encode(Pixels().encode(batch.raw).to(device))
            x = encoded.latent_dist.sample() if "latent_dist" in encoded else encoded.latents
            x = x * vae.config.scaling_factor
        noise = paired(x)  # was torch.randn_like(x)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (len(x),), device=device)
        target = noise if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(x, noise, t)
        guess = unet(scheduler.add_noise(x, noise, t), t, text.expand(len(x), -1, -1)).sample
        loss = (guess.float() - target.float()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == options.steps:
            print(f"step {step} of {options.steps}: loss {loss.item():.4f}")
    pipeline.save_pretrained(options.out)


if __name__ == "__main__":
    main()
