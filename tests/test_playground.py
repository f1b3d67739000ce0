"""The playground page in a real browser: its values, its keyboard, its speed and its layout."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from browser import BROWSER, Page, opened

PLAYGROUND = Path(__file__).parents[1] / "docs" / "playground" / "index.html"
pytestmark = [
    pytest.mark.medium,
    pytest.mark.skipif(not BROWSER, reason="needs chromium or google-chrome, which this machine has not"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(tmp_path_factory.mktemp("profile")) as shown:
        yield shown


def open_computed(page: Page, width: int = 1200, *, dark: bool = False) -> None:
    page.open(PLAYGROUND, width=width, dark=dark)
    page.wait("document.body.dataset.state === 'done'")


def table(page: Page) -> dict[str, list[float]]:
    """Return the numbers of each coupling, once they are computed."""
    page.wait("document.body.dataset.state === 'done'")
    rows = page.evaluate("[...document.querySelectorAll('#numbers tr')].map(row => row.innerText.split('\\t'))")
    return {row[0]: [float(cell) for cell in row[1:]] for row in rows}


def choose(page: Page, **settings: int) -> dict[str, list[float]]:
    """Move sliders to positions and return the numbers that follow."""
    for name, value in settings.items():
        page.evaluate(
            f"(slider => {{ slider.value = {value}; slider.dispatchEvent(new Event('input', "
            f"{{bubbles: true}})) }})(document.getElementById('{name}'))"
        )
    return table(page)


def test_its_assignment_is_the_exact_one(page: Page) -> None:
    page.open(PLAYGROUND)
    generator = np.random.default_rng(0)
    for n, whole in ((1, False), (2, False), (9, True), (40, False), (40, True), (130, False)):
        cost = generator.integers(0, 5, (n, n)).astype(float) if whole else generator.random((n, n))
        flat = json.dumps(cost.ravel().tolist())
        column = page.evaluate(f"[...makePairing().assign(Float64Array.from({flat}), {n})]")
        assert sorted(column) == list(range(n))
        least = cost[linear_sum_assignment(cost)].sum()
        assert cost[np.arange(n), column].sum() == pytest.approx(least, rel=1e-12)
        assert n < 9 or np.trace(cost) > 1.1 * least  # control: another permutation costs more


def test_its_field_is_the_mean_of_the_data_given_the_place(page: Page) -> None:
    """With noise = 2 x a place tells the datum; with independent noise the guess at t = 1 is the mean of all data."""
    page.open(PLAYGROUND)
    script = """(() => {{
      const [pairing, field] = [makePairing(), makeField()];
      const uniform = pairing.uniforms(1);
      const points = pairing.normals(20000, uniform);
      const noise = {noise};
      const learned = field.learn(points, noise, 20000);
      return [field.guess(learned, 0.8, -0.5, 0.5), field.guess(learned, 0.8, -0.5, 1)];
    }})()"""
    half, end = page.evaluate(script.format(noise="points.map(value => 2 * value)"))
    assert half == pytest.approx([0.8 / 1.5, -0.5 / 1.5], abs=0.03)
    assert end == pytest.approx([0.4, -0.25], abs=0.03)
    half, end = page.evaluate(script.format(noise="pairing.normals(20000, uniform)"))
    assert half == pytest.approx([0.8, -0.5], abs=0.12)  # E[x | (x + n) / 2] = x_t for normal data
    assert end == pytest.approx([0, 0], abs=0.12)


def test_its_numbers_say_what_pairing_does(page: Page) -> None:
    open_computed(page)
    four = table(page)
    assert four["assignment"][0] < 0.5 * four["independent"][0]  # pair distance
    assert four["assignment"][1] < 1.1 < four["independent"][1]  # path over straight line
    assert four["assignment"][2] < 0.3 * four["independent"][2]  # error at 4 steps
    one = choose(page, steps=0)
    assert one["independent"][2] > 2 * four["independent"][2]
    assert choose(page, steps=9)["independent"][2] == 0  # 100 steps are the reference
    alone = choose(page, batch=0)
    assert alone["assignment"][0] == pytest.approx(alone["independent"][0], rel=0.02)
    assert choose(page, k=0)["nearest of k"][0] == pytest.approx(alone["independent"][0], rel=0.02)
    assert "nothing to exchange" in page.evaluate("document.getElementById('words').textContent")


def test_it_is_used_by_keyboard_alone(page: Page) -> None:
    open_computed(page)
    visited = []
    for _ in range(9):
        page.press("Tab")
        visited.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        if visited[-1] == "coupling":
            page.press("ArrowRight")
    assert visited == ["home", "theme", "coupling", "data", "batch", "k", "steps", "again", "play"]
    numbers = table(page)
    words = page.evaluate("document.getElementById('words').textContent")
    assert words.startswith("Nearest of 8:")
    assert f"Pairs are {numbers['nearest of k'][0]:.2f} apart" in words
    page.press(" ")
    assert page.evaluate("document.getElementById('play').textContent") == "Play"
    page.press("Tab")
    page.press("Home")
    page.wait("document.getElementById('time-value').textContent === 't = 1.00'")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, False), (1200, True), (390, True)])
def test_it_fits_its_window_and_draws_fast_enough(page: Page, width: int, dark: bool) -> None:
    page.faults.clear()
    open_computed(page, width, dark=dark)
    assert page.too_wide() == 0
    assert page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    painted = """[...document.querySelectorAll('canvas')].map(canvas => {
      const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
      return new Set(new Uint32Array(pixels.buffer)).size;
    })"""
    assert min(page.evaluate(painted)) > 50  # colours, blends of lines and dots
    page.wait("document.getElementById('speed').textContent !== ''")
    milliseconds = float(page.evaluate("document.getElementById('speed').textContent.match(/([\\d.]+) ms/)[1]"))
    assert milliseconds < 1000 / 30
    assert page.faults == []  # no error and no request to the network
    page.evaluate(
        "document.querySelector('main').append(Object.assign(document.createElement('div'), "
        "{style: 'width: 3000px', textContent: 'wide'}))"
    )
    assert page.too_wide() > 0  # control
