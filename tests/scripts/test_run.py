"""``immiscible run``: real scripts, in this process and under the launchers that people use."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from immiscible_diffusion.cli import run
from immiscible_diffusion.scripts.execute import VARIABLE

LOOP = """\
import sys
import torch
from torch import nn

def main():
    torch.manual_seed(0)
    net = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        x = torch.rand(32, 4)
        noise = torch.randn_like(x)
        x_t = (x + noise) / 2
        (net(x_t) - (noise - x)).square().mean().backward()
        optimizer.step()
    torch.save({"x": x, "noise": noise, "argv": sys.argv, "file": __file__, "path": sys.path[0]}, sys.argv[-1])

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv(VARIABLE, raising=False)
    path = tmp_path / "train.py"
    path.write_text(LOOP)
    before = sys.path[:], sys.argv, sys.modules["__main__"]
    yield path
    assert before == (sys.path[:], sys.argv, sys.modules["__main__"])


def paired(file: Path) -> bool:
    """Return whether an exact assignment leaves saved noise where it is."""
    import torch
    from scipy.optimize import linear_sum_assignment

    saved = torch.load(file)
    rows, columns = linear_sum_assignment(torch.cdist(saved["x"], saved["noise"]))
    return bool((rows == columns).all())


def test_the_noise_of_an_unmodified_script_is_paired(
    script: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    assert run(["run", str(script), "--coupling", "mine", str(tmp_path / "out.pt")]) == 0
    said = capfd.readouterr().err
    assert "-        noise = torch.randn_like(x)\n+        noise = immiscible_like(x)" in said
    assert f"{script}:11: noise is paired with 32 rows of (4,)" in said
    saved = torch.load(tmp_path / "out.pt")
    assert saved["argv"] == [str(script), "--coupling", "mine", str(tmp_path / "out.pt")]
    assert (saved["file"], saved["path"]) == (str(script), str(tmp_path))
    assert paired(tmp_path / "out.pt")
    assert run(["run", "--coupling", "independent", str(script), str(tmp_path / "plain.pt")]) == 0
    assert not paired(tmp_path / "plain.pt")
    assert script.read_text() == LOOP


def test_dry_prints_the_diff_and_runs_nothing(script: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["run", "--dry", str(script), str(tmp_path / "out.pt")]) == 0
    assert "+        noise = immiscible_like(x)" in capfd.readouterr().out
    assert not (tmp_path / "out.pt").exists()


def test_a_refusal_names_the_lines(script: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script.write_text(
        LOOP.replace("        x_t", "        eps = torch.randn_like(x)\n        x_t").replace("noise", "n")
    )
    assert run(["run", str(script)]) == 2
    said = capfd.readouterr().err
    assert "--at LINE" in said
    assert "line 11: torch.randn_like(x)\n  line 12: torch.randn_like(x)" in said
    assert run(["run", "--dry", "--at", "12", str(script)]) == 0
    assert "+        eps = immiscible_like(x)" in capfd.readouterr().out


def test_a_refusal_with_reasons_says_how_to_choose(script: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script.write_text(LOOP.replace("def main", "def sample"))
    assert run(["run", str(script)]) == 2
    assert "sample is no training step\nif one of these is, choose it with --at LINE" in capfd.readouterr().err
    script.write_text(LOOP.replace("torch.randn_like(x)", "torch.randn(32, 4)"))
    assert run(["run", str(script)]) == 2
    assert "--at LINE" not in capfd.readouterr().err  # nothing that --at could replace


def test_the_draw_of_another_module_is_named_and_replaced(
    script: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "transport.py").write_text("import torch\n\ndef sample(x1):\n    return x1, torch.randn_like(x1)\n")
    script.write_text(
        LOOP.replace("import sys", "import sys\nfrom transport import sample").replace(
            "noise = torch.randn_like(x)", "_, noise = sample(x)"
        )
    )
    assert run(["run", str(script)]) == 2
    assert "transport.py:4: torch.randn_like(x1)" in capfd.readouterr().err
    assert run(["run", "--at", "transport.py:4", str(script), str(tmp_path / "out.pt")]) == 0
    assert paired(tmp_path / "out.pt")
    sys.modules.pop("transport")
    assert run(["run", "--at", "nowhere.py:4", str(script)]) == 2
    assert "no such file" in capfd.readouterr().err


def test_noise_from_elsewhere_stops_at_the_first_step(script: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script.write_text(
        LOOP.replace("noise = torch.randn_like(x)\n", "noise = torch.randn(32, 4)\n")
        + ("\ndef unused(x):\n    noise = torch.randn_like(x)\n")
    )
    assert run(["run", str(script)]) == 1
    said = capfd.readouterr().err
    assert "RuntimeError: the first optimizer step ended" in said
    assert "cli/scripts.py" not in said, "the traceback begins in the script"


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("sys.exit('done')", 1, "done\n"),
        ("sys.exit(3)", 3, ""),
        ("raise ValueError('mine')", 1, "Traceback"),
        ("", 0, "drew no noise"),
    ],
)
def test_the_end_of_a_script_is_its_own(
    script: Path, end: str, code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    script.write_text(f"import sys\nimport torch\n{end}\ndef f(x):\n    noise = torch.randn_like(x)\n")
    assert run(["run", str(script)]) == code
    assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "cannot read the script nowhere.py"),
        (["--at", "x", "SCRIPT"], "write LINE of the script"),
        (["--coupling", "nothing", "SCRIPT"], "no coupling named 'nothing'"),
        (["--coupling", "conditional", "SCRIPT"], "hands over its data alone"),
        (["--at", "1", "SCRIPT"], "no call that draws normal noise is on that line"),
    ],
)  # fmt: skip
def test_mistakes_get_one_message(
    script: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", *(str(script) if word == "SCRIPT" else word for word in arguments)]) == 2
    assert message in " ".join(capfd.readouterr().err.split())


def test_what_is_no_python_is_refused(script: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script.write_text("def (")
    assert run(["run", str(script)]) == 2
    assert "is not Python" in capfd.readouterr().err


RANKS = "import os, torch.distributed as dist\ndist.init_process_group('gloo')\n" + LOOP.replace(
    "sys.argv[-1])", "sys.argv[-1] + os.environ['RANK'])"
).replace("manual_seed(0)", "manual_seed(dist.get_rank())")


@pytest.mark.slow
def test_under_torchrun_every_rank_pairs(script: Path, tmp_path: Path) -> None:
    script.write_text(RANKS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "immiscible_diffusion", "run", str(script), str(tmp_path / "out")]
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert paired(tmp_path / "out0")
    assert paired(tmp_path / "out1")
    assert done.stderr.count("noise is paired with") == 1, "one process speaks for all"


@pytest.mark.slow
def test_under_accelerate_launch(script: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m"]
    command = ["immiscible_diffusion", "run", str(script), str(tmp_path / "out.pt")]
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert paired(tmp_path / "out.pt")


SPAWNED = LOOP.replace("def main():", "def main(_=0):").replace(
    "    main()\n", "    import torch.multiprocessing as mp\n    mp.spawn(main, nprocs=1)\n"
)


@pytest.mark.slow
def test_processes_that_a_script_spawns_pair_too(script: Path, tmp_path: Path) -> None:
    script.write_text(SPAWNED)
    command = [sys.executable, "-m", "immiscible_diffusion", "run", str(script), str(tmp_path / "out.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert paired(tmp_path / "out.pt")


@pytest.mark.slow
def test_a_script_that_starts_itself_again_as_lightning_does(script: Path, tmp_path: Path) -> None:
    script.write_text(LOOP.replace("    main()\n", (
        "    import __main__, os, subprocess\n"
        "    if 'AGAIN' in os.environ:\n"
        "        main()\n"
        "    else:\n"
        "        command = [sys.executable, '-m', __main__.__spec__.name, *sys.argv[1:]]\n"
        "        subprocess.run(command, env={**os.environ, 'AGAIN': '1'}, check=True)\n"
    )))  # fmt: skip
    command = [sys.executable, "-m", "immiscible_diffusion", "run", str(script), str(tmp_path / "out.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert paired(tmp_path / "out.pt")
