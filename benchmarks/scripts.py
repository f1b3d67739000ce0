"""What `immiscible run` decides for training scripts of other projects, beside which lines are right."""

import ast
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from immiscible_diffusion.scripts.choose import decide
from immiscible_diffusion.scripts.draws import find_draws
from immiscible_diffusion.scripts.rewrite import rewrite

__all__ = ["HOSTS", "bench_scripts", "decision_counts", "scripts_line"]

_KINDS = ["rewritten", "refused", "no torch noise"]
_TEXT = re.compile(r"^\s*noise = torch\.randn")
"""The line of diffusers' scripts that draws the training noise, by its text alone."""

HOSTS: dict[str, dict[str, Sequence[int] | None]] = {
    "diffusers": {"examples/**/*train*.py": None},
    "conditional-flow-matching": {
        "examples/images/cifar10/train_cifar10.py": [143],
        "examples/images/cifar10/train_cifar10_ddp.py": [168],
    },
    "minRF": {"rf.py": [20], "advanced/main_t2i.py": [153]},
    "SiT": {"train.py": [], "transport/transport.py": [109]},
    "LightningDiT": {"train.py": [], "transport/transport.py": [142]},
    "REPA": {"train.py": [], "loss.py": [69]},
    "DiT": {"train.py": [], "diffusion/gaussian_diffusion.py": [730]},
    "improved-diffusion": {"improved_diffusion/gaussian_diffusion.py": [693]},
    "denoising-diffusion-pytorch": {
        "denoising_diffusion_pytorch/denoising_diffusion_pytorch.py": [791],
        "denoising_diffusion_pytorch/denoising_diffusion_pytorch_1d.py": [706],
        "denoising_diffusion_pytorch/elucidated_diffusion.py": [258],
        "denoising_diffusion_pytorch/learned_gaussian_diffusion.py": [125],
        "denoising_diffusion_pytorch/v_param_continuous_time_gaussian_diffusion.py": [169],
    },
    "rectified-flow-pytorch": {
        "rectified_flow_pytorch/rectified_flow.py": [441],
        "rectified_flow_pytorch/mean_flow.py": [240],
    },
    "flow_matching": {
        "examples/image/training/train_loop.py": [91],
        "examples/image/training/eval_loop.py": [],
    },
    "smalldiffusion": {"src/smalldiffusion/diffusion.py": [102]},
    "k-diffusion": {"train.py": [452], "k_diffusion/sampling.py": []},
    "edm": {"training/loss.py": [31, 56, 77], "generate.py": []},
    "edm2": {"training/training_loop.py": [38], "generate_images.py": []},
    "diffusion_policy": {
        "diffusion_policy/policy/diffusion_unet_lowdim_policy.py": [218],
        "diffusion_policy/policy/diffusion_unet_image_policy.py": [225],
        "diffusion_policy/policy/diffusion_transformer_lowdim_policy.py": [201],
    },
    "sd-scripts": {
        "library/train_util.py": [6075],
        "flux_train.py": [626],
        "flux_train_network.py": [327],
        "sd3_train.py": [810],
        "train_control_net.py": [461],
        "library/flux_train_utils.py": [],
    },
    "musubi-tuner": {
        "src/musubi_tuner/training/trainer_base.py": [2039],
        "src/musubi_tuner/hv_train.py": [1032],
        "src/musubi_tuner/qwen_image_train.py": [610],
        "src/musubi_tuner/wan/utils/fm_solvers.py": [],
    },
    "SimpleTuner": {"simpletuner/helpers/models/common.py": [5938]},
    "OneTrainer": {"modules/modelSetup/mixin/ModelSetupNoiseMixin.py": [86]},
    "ai-toolkit": {"jobs/process/BaseSDTrainProcess.py": [], "toolkit/models/base_model.py": [796]},
    "diffusion-pipe": {"models/sdxl.py": [552], "models/flux.py": [369], "models/wan/vae2_1.py": []},
}
"""Repository -> files -> the lines of the training noise as read by a person; None: the lines that ``_TEXT`` finds.

The lines are those of the commits in the record. Each may be replaced or left to ``--at``; no other may be replaced.
"""


def bench_scripts(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the decision for every script of ``HOSTS`` whose repository is a clone in a folder, by its name.

    Raises:
        ValueError: no repository is there.
    """
    clones = {name: folder / name for name in HOSTS if (folder / name).is_dir()}
    if not clones:
        raise ValueError(f"{folder} holds no clone of {list(HOSTS)}")
    for name, clone in clones.items():
        commit = _git(clone, "rev-parse", "HEAD").strip()
        files = _git(clone, "ls-tree", "-r", "--name-only", "HEAD").splitlines()
        for pattern, lines in HOSTS[name].items():
            for file in sorted(file for file in files if _fits(file, pattern)):
                source = _git(clone, "show", f"HEAD:{file}")
                yield {"repository": name, "commit": commit, "file": file, **_decision(source, lines)}


def _fits(file: str, pattern: str) -> bool:
    """Return whether a path has the pattern's folder and name; ``**`` is any folder below."""
    (folder, _, name), (folders, _, names) = file.rpartition("/"), pattern.rpartition("/")
    return fnmatch(folder, folders) and fnmatch(name, names)


def _decision(source: str, lines: Sequence[int] | None) -> dict[str, Any]:
    """Return the decision for a script, and whether only right lines are replaced, all of them or none."""
    if lines is None:
        lines = [i for i, line in enumerate(source.splitlines(), 1) if _TEXT.match(line)]
    decision = decide(find_draws(ast.parse(source)))
    changed = rewrite(source, decision.chosen)
    ast.parse(changed)
    replaced = sorted(draw.line for draw in decision.chosen)
    return {
        "decision": decision.kind,
        "replaced": replaced,
        "text": [changed.splitlines()[line - 1].strip() for line in replaced],
        "candidates": [draw.line for draw in decision.open],
        "training_noise": list(lines),
        "right": (not replaced or replaced == list(lines)) and changed.count("\n") == source.count("\n"),
    }


def decision_counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return how many scripts of diffusers, and of all others, were decided how, and how many replaced a wrong line."""
    parts = {
        "diffusers": [row for row in rows if row["repository"] == "diffusers"],
        "others": [row for row in rows if row["repository"] != "diffusers"],
    }
    return {
        name: {
            "scripts": len(part),
            **{kind: sum(row["decision"] == kind for row in part) for kind in _KINDS},
            "wrong": sum(not row["right"] for row in part),
        }
        for name, part in parts.items()
    }


def scripts_line(row: dict[str, Any]) -> str:
    """Return a row in one line for a terminal."""
    mark = "" if row["right"] else "WRONG "
    return f"{mark}{row['repository']}/{row['file']}: {row['decision']} {row['replaced'] or row['candidates']}"


def _git(clone: Path, *arguments: str) -> str:
    return subprocess.run(  # noqa: S603
        ["git", "-C", str(clone), *arguments],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    ).stdout
