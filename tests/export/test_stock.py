"""Stock diffusers draws from our exports what we draw, with this package hidden; `make stock` shows it without it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stock import make

pytestmark = pytest.mark.medium

TESTS = Path(__file__).parents[1]
HIDDEN = "import sys; sys.modules['immiscible_diffusion'] = None; sys.argv[0] = 'x'; "


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    with pytest.warns(UserWarning, match=r"method\.clip is 0\.4; data in model space reach from -1 to 1"):
        assert "ddim" in make(folder)
    return folder


def checked(folder: Path, before: str = HIDDEN) -> "subprocess.CompletedProcess[str]":
    program = f"{before}sys.path.insert(0, {str(TESTS)!r}); import stock; from pathlib import Path; "
    program += f"print(*stock.check(Path({str(folder)!r})), sep='\\n')"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_model_cards_draw_our_images(made: Path) -> None:
    done = checked(made)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3


@pytest.mark.slow
def test_a_card_of_another_model_is_noticed(made: Path) -> None:
    """Control: the same check, with the package in sight, and of a scheduler that was trained with other levels."""
    visible = checked(made, "import sys; ")
    assert visible.returncode != 0
    assert "nothing is shown" in visible.stderr
    config = made / "ddim" / "scheduler" / "scheduler_config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"beta_end": 0.05}))
    try:
        assert "AssertionError: ddim" in checked(made).stderr
    finally:
        config.write_text(before)
