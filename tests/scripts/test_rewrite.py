"""A rewritten script differs in the draw alone, and every line keeps its number."""

import ast

import pytest

from immiscible_diffusion.scripts.draws import find_draws
from immiscible_diffusion.scripts.rewrite import diff, rewrite

CALLS = {
    "torch.randn_like(x)": "immiscible_like(x)",
    "torch.randn_like(x, device=d, dtype=t)": "immiscible_like(x, device=d, dtype=t)",
    "torch.randn_like(input=x)": "immiscible_like(x)",
    "torch.randn(x.shape)": "immiscible_randn(x)",
    "torch.randn(*x.shape, device=d)": "immiscible_randn(x, device=d)",
    "torch.randn(x.size(), generator=g)": "immiscible_randn(x, generator=g)",
    "torch.randn((*x.shape,))": "immiscible_randn(x)",
    "torch.randn(size=batch['x'].shape)": "immiscible_randn(batch['x'])",
    "torch.empty_like(x).normal_()": "immiscible_like(x)",
    "torch.randn_like(é).to('ü')": "immiscible_like(é).to('ü')",
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_is_replaced_where_it_stands(call: str) -> None:
    before = f"import torch\ns = 'ß'; noise = {call}  # why\nprint(noise)\n"
    assert rewrite(before, find_draws(ast.parse(before))) == before.replace(call, CALLS[call])


def test_lines_and_comments_of_a_long_call_stay() -> None:
    before = "import torch\nnoise = torch.randn(\n    # sizes\n    x\n    .shape,\n    device=d,  # here\n)\nlast = 1\n"
    after = rewrite(before, find_draws(ast.parse(before)))
    assert (
        after == "import torch\nnoise = immiscible_randn(\n    # sizes\n    x\n,\n    device=d,  # here\n)\nlast = 1\n"
    )
    assert ast.dump(ast.parse(after)) == ast.dump(
        ast.parse("import torch\nnoise = immiscible_randn(x, device=d)\nlast = 1")
    )


def test_two_draws_in_one_line() -> None:
    before = "import torch\na, b = torch.randn_like(x), torch.randn(y.shape)"
    assert rewrite(before, find_draws(ast.parse(before))).endswith("a, b = immiscible_like(x), immiscible_randn(y)")


def test_the_diff_names_the_lines() -> None:
    before = "import torch\n\nnoise = torch.randn_like(x)"
    after = rewrite(before, find_draws(ast.parse(before)))
    assert diff(before, after, "train.py").splitlines() == [
        "--- train.py",
        "+++ train.py",
        "@@ -3 +3 @@",
        "-noise = torch.randn_like(x)",
        "+noise = immiscible_like(x)",
    ]


def test_options_that_a_coupling_lacks_are_not_replaced() -> None:
    (draw,) = find_draws(ast.parse("import torch\nnoise = torch.randn_like(x, names=n)"))
    assert draw.edits == ()
