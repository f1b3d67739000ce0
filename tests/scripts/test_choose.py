"""Which draw is the training noise, in scripts written here in the shapes of the hosts that people use."""

import ast
import textwrap

import pytest

from immiscible_diffusion.scripts.choose import Decision, decide
from immiscible_diffusion.scripts.draws import find_draws


def decided(source: str, *at: int) -> Decision:
    return decide(find_draws(ast.parse(textwrap.dedent(source))), at)


def chosen(source: str, *at: int) -> list[int]:
    return [draw.line for draw in decided(source, *at).chosen]


# Each line that must be replaced ends in `# here`.
HOSTS = {
    "diffusers, with offset, perturbation and previews": """
        import torch
        def log_validation(pipeline, latents):
            start = torch.randn_like(latents)
            return pipeline(start)
        def main(args):
            for batch in loader:
                latents = vae.encode(batch["image"]).latent_dist.sample()
                noise = torch.randn_like(latents)  # here
                if args.noise_offset:
                    noise += args.noise_offset * torch.randn((len(latents), latents.shape[1], 1, 1))
                if args.input_perturbation:
                    new_noise = noise + args.input_perturbation * torch.randn_like(noise)
                x_t = scheduler.add_noise(latents, noise, t)
        """,
    "minDiffusion, a model named after its sampler": """
        import torch
        class DDPM(nn.Module):
            def forward(self, x):
                eps = torch.randn_like(x)  # here
                return self.criterion(eps, self.eps_model(self.sqrtab[t] * x + self.sqrtmab[t] * eps))
            def sample(self, n, size):
                z = torch.randn_like(x)
        class DDPMScheduler:
            def step(self, sample):
                variance = torch.randn_like(sample)
        """,
    "two branches of one noise": """
        import torch
        def main(args):
            if args.offset_noise:
                noise = torch.randn_like(x) + 0.1 * torch.randn(x.shape[0], x.shape[1], 1, 1)  # here
            else:
                noise = torch.randn_like(x)  # here
        """,
    "DPO, pairs share noise": """
        import torch
        noise = torch.randn_like(latents).chunk(2)[0].repeat(2, 1, 1, 1)  # here
        """,
    "the shape, dtype and device": """
        import torch
        noise = torch.randn(clean.shape, dtype=weight_dtype, device=clean.device)  # here
        """,
    "the shape in a variable": """
        import torch
        def loss(x):
            shape = x.shape
            noise = torch.randn(shape, device=x.device)  # here
        """,
    "a name of the function": """
        from torch import randn_like as gauss
        eps = gauss(x0)  # here
        """,
    "randn_tensor": """
        from diffusers.utils.torch_utils import randn_tensor
        noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)  # here
        """,
    "filled in place": """
        import torch
        noise = torch.empty_like(x).normal_()  # here
        """,
    "TorchCFM": """
        import torch
        for step in range(total):
            x1 = next(datalooper).to(device)
            x0 = torch.randn_like(x1)  # here
            t, xt, ut = FM.sample_location_and_conditional_flow(x0, x1)
        """,
    "minRF": """
        import torch
        class RF:
            def forward(self, x, cond):
                nt = torch.randn((b,)).to(x.device)
                t = torch.sigmoid(nt)
                z1 = torch.randn_like(x)  # here
                return (1 - t) * x + t * z1
            @torch.no_grad()
            def sample(self, z, cond):
                return z + torch.randn_like(z)
        """,
    "denoising-diffusion-pytorch": """
        import torch
        class GaussianDiffusion:
            def p_sample(self, x):
                noise = torch.randn_like(x) if t > 0 else 0.
            def q_sample(self, x_start, t, noise=None):
                noise = default(noise, lambda: torch.randn_like(x_start))
            def p_losses(self, x_start, t, noise=None):
                noise = default(noise, lambda: torch.randn_like(x_start))  # here
        """,
    "EDM2, scaled by sigma": """
        import torch
        def __call__(self, net, images):
            rnd_normal = torch.randn([images.shape[0], 1, 1, 1], device=images.device)
            sigma = (rnd_normal * self.P_std + self.P_mean).exp()
            noise = torch.randn_like(images) * sigma  # here
        """,
    "k-diffusion": """
        import torch
        def demo():
            x = torch.randn([n, 3, size, size]) * sigma_max
        def main():
            for batch in train_dl:
                reals = batch[0]
                noise = torch.randn_like(reals)  # here
        """,
    "smalldiffusion": """
        import torch
        def generate_train_sample(x0, schedule):
            eps = torch.randn_like(x0)  # here
            return x0 + sigma * eps, eps
        """,
    "REPA, the posterior drawn by hand": """
        import torch as th
        def sample_posterior(moments):
            mean, std = th.chunk(moments, 2, dim=1)
            return mean + std * th.randn_like(mean)
        def interpolate_loss(images):
            noises = th.randn_like(images)  # here
        """,
    "a posterior inline, then the noise": """
        import torch
        z = mean + std * torch.randn_like(mean)
        noise = torch.randn_like(z)  # here
        """,
    "validation beside training": """
        import torch
        for batch in train_loader:
            noise = torch.randn_like(batch["x"])  # here
        for batch in val_loader:
            noise = torch.randn_like(batch["x"])
        """,
    "evaluation in a branch": """
        import torch
        def main():
            noise = torch.randn_like(x)  # here
            if step % args.eval_every == 0:
                noise = torch.randn_like(x)
        """,
    "evaluation without gradients": """
        import torch
        def main():
            noise = torch.randn_like(x)  # here
            with torch.no_grad():
                fixed = torch.randn_like(y)
        """,
    "perturbation in a variable": """
        import torch
        def noisy(latents):
            noise = torch.randn_like(latents)  # here
            xi = torch.randn_like(latents)
            return latents + sigma * (noise + args.ip_noise_gamma * xi)
        """,
    "several noises, one of which is called so": """
        import torch
        def main():
            noise = torch.randn_like(latents) * sigma_data  # here
            z_fake = torch.randn_like(latents)
        """,
    "a keyword": """
        import torch
        loss = diffusion(x, t, noise=torch.randn_like(x))  # here
        """,
    "a random conditioning image": """
        import torch
        image = image + torch.randn_like(image) * image_noise_sigma
        noise = torch.randn_like(video)  # here
        """,
    "toy data drawn by torch": """
        import torch
        x = torch.randn(64, 2)
        noise = torch.randn_like(x)  # here
        """,
}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_the_training_noise_is_chosen_and_nothing_else(host: str) -> None:
    lines = textwrap.dedent(HOSTS[host]).splitlines()
    expected = [i for i, line in enumerate(lines, 1) if line.endswith("# here")]
    assert expected
    assert chosen(HOSTS[host]) == expected


REFUSED = {
    "three losses": """
        import torch
        class VPLoss:
            def __call__(self, y):
                n = torch.randn_like(y) * sigma
        class EDMLoss:
            def __call__(self, y):
                n = torch.randn_like(y) * sigma
        """,
    "two noises in one step": """
        import torch
        def step(video, audio):
            v = torch.randn_like(video)
            a = torch.randn_like(audio)
        """,
    "two noises in one step, the later called so": """
        import torch
        def step(x):
            n = torch.randn_like(x)
            noise = torch.randn_like(x)
        """,
    "one noise drawn twice": """
        import torch
        def step(x):
            noise = torch.randn_like(x)
            noise = torch.randn_like(x)
        """,
    "one branch whose sizes are written out": """
        import torch
        def step(x):
            if x is None:
                noise = torch.randn(4, 3, 8, 8)
            else:
                noise = torch.randn_like(x)
        """,
    "added to the data at once": """
        import torch
        x_t = x + sigma * torch.randn_like(x)
        """,
    "sizes written out": """
        import torch
        noise = torch.randn(b, c, h, w)
        """,
    "a part of the data": """
        import torch
        noise = torch.randn_like(x[:, :1])
        """,
    "row by row": """
        import torch
        for chunk in torch.chunk(latents, len(latents)):
            noise_chunk = torch.randn(chunk.shape, generator=generator)
        """,
    "of times": """
        import torch
        u = torch.randn_like(sigma)
        """,
    "a random target": """
        import torch
        target = torch.randn_like(output)
        """,
    "a shape that changes": """
        import torch
        shape = x.shape
        shape = (4, 4)
        noise = torch.randn(shape)
        """,
    "a sign": """
        import torch
        z = (torch.randn_like(x) < 0) * 2.0 - 1
        """,
    "sampling alone": """
        import torch
        def sample(x):
            noise = torch.randn_like(x)
        """,
}


@pytest.mark.parametrize("script", REFUSED)
def test_doubt_is_a_refusal(script: str) -> None:
    assert decided(REFUSED[script]).kind == "refused"


def test_jax_has_no_torch_noise() -> None:
    assert decided("import jax\nnoise = jax.random.normal(key, x.shape)").kind == "no torch noise"
    assert decided("noise = rnd.randn_like(x)").kind == "no torch noise"


def test_a_named_line_is_taken_whatever_it_is() -> None:
    assert chosen(REFUSED["sampling alone"], 4) == [4]
    assert chosen(REFUSED["three losses"], 5, 8, 5) == [5, 8]


@pytest.mark.parametrize(
    ("line", "message"), [(2, r"no call .* there are \[3\]"), (3, "does not name the data whose shape")]
)
def test_a_named_line_without_a_draw_is_refused(line: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decided(REFUSED["sizes written out"], line)


def test_every_other_draw_has_its_reason() -> None:
    decision = decided(HOSTS["diffusers, with offset, perturbation and previews"])
    assert [(draw.line, reason) for draw, reason in decision.others] == [
        (4, "log_validation is no training step"),
        (11, "its sizes are written out"),
        (13, "it is of the shape of another noise: a perturbation"),
    ]


def test_a_row_of_a_data_set_is_no_batch() -> None:
    """Pairing there would take the channels of one image for rows."""
    source = """
        import torch
        class TrainRows:
            def __getitem__(self, i):
                x = self.images[i]
                noise = torch.randn_like(x)
                return x, noise
        """
    ((draw, reason),) = decided(source).others
    assert (draw.line, reason) == (6, "__getitem__ is no training step")
    assert chosen(source.replace("__getitem__", "pairs")) == [6]  # the control
