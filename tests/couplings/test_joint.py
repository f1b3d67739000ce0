"""Assignment over processes against one process that holds the joined batch, and over an accumulation window.

The tests start four processes once and look at what they wrote.
"""

import copy
import importlib
import json
import os
import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from immiscible_diffusion.couplings import Flipped, Rotated, Warmup, assign
from immiscible_diffusion.couplings._joint_costs import _whole, cost_rows
from immiscible_diffusion.couplings._seeded_noise import normal_rows, row_seeds
from immiscible_diffusion.couplings.joint import Joint, assign_across
from immiscible_diffusion.couplings.windowed import assign_window
from immiscible_diffusion.processes import results
from immiscible_diffusion.registry import describe, make
from immiscible_diffusion.streams import stream
from immiscible_diffusion.types import Coupling

pytestmark = pytest.mark.medium

COSTS = ["l2", "dot", "l1", "cosine"]


def ending(b: int, d: int) -> Tensor:
    """Return the mask of rows that end after 1, 2, 3 ... places."""
    return torch.arange(d) <= torch.arange(b)[:, None] % d


def cut(x: Tensor, sizes: list[int]) -> list[Tensor]:
    return list(torch.split(x, sizes))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(b: int, *dims: int, seed: int = 0) -> Tensor:
    """Return rows as far from white noise as images are: smooth, off centre, and of different lengths."""
    return randn(b, *dims, seed=seed).cumsum(-1) * torch.linspace(0.05, 1, b).reshape(b, *[1] * len(dims)) + 0.5


# What each of four processes does. Sizes are the rows of the members of a group, in the order of its ranks.

MEMBERS = {"all": [0, 1, 2, 3], "pair": [0, 1], "later": [1, 3], "one": [2]}
CASES: dict[str, tuple[str, list[int], tuple[int, ...], dict[str, Any]]] = {
    "even": ("all", [8, 8, 8, 8], (3, 8, 8), {}),
    "even, of two": ("pair", [16, 16], (3, 8, 8), {}),
    "even, of the second and the fourth": ("later", [16, 16], (3, 8, 8), {}),
    "of one": ("one", [9], (3, 8, 8), {}),
    "uneven": ("all", [11, 3, 1, 6], (3, 8, 8), {}),
    "uneven, of two": ("pair", [5, 12], (192,), {}),
    "one row each": ("all", [1, 1, 1, 1], (40,), {}),
    "one row each, of two": ("pair", [1, 1], (2,), {}),
    "one number a row": ("all", [7, 7, 7, 5], (), {}),
    "rows of more than one part": ("all", [5, 6, 7, 8], (9001,), {}),
    "float64": ("all", [4, 5, 6, 7], (30,), {"dtype": torch.float64}),
    "bfloat16": ("all", [4, 5, 6, 7], (30,), {"dtype": torch.bfloat16}),
    **{f"{cost} in fp16": ("all", [9, 8, 7, 3], (3, 8, 8), {"cost": cost}) for cost in COSTS},
    **{f"{cost} in fp32": ("all", [9, 8, 7, 3], (3, 8, 8), {"cost": cost, "precision": "fp32"}) for cost in COSTS},
}


def options_of(case: str) -> tuple[Tensor, dict[str, Any]]:
    """Return the joined batch of a case and the options of the call."""
    _, sizes, dims, options = CASES[case]
    kept = {key: value for key, value in options.items() if key != "dtype"}
    return images(sum(sizes), *dims).to(options.get("dtype", torch.float32)), {"seed": 5, "step": 11, **kept}


def measured(call: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Return a call's result and the bytes that it handed to torch's collectives, counted from outside."""
    count, originals = 0, {name: getattr(dist, name) for name in ("send", "all_gather")}

    def counting(name: str, position: int) -> Any:
        def replacement(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += args[position].nbytes
            return originals[name](*args, **options)

        return replacement

    refused = {name: lambda *_, **__: pytest.fail("another collective") for name in ("broadcast", "all_reduce")}
    originals |= {name: getattr(dist, name) for name in refused}
    try:
        for name, replacement in {"send": counting("send", 0), "all_gather": counting("all_gather", 1)}.items():
            setattr(dist, name, replacement)
        for name, refusal in refused.items():
            setattr(dist, name, refusal)
        return call(), count
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def message_of(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def process(rank: int, folder: Path) -> None:
    """Carry out every case as one of four processes, and write what came."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=4)
    groups: dict[str, Any] = {name: dist.new_group(members) for name, members in MEMBERS.items()} | {"all": None}
    paired, traffic, said = {}, {}, {}
    for case, (name, sizes, _, _) in CASES.items():
        if rank in MEMBERS[name]:
            x, options = options_of(case)
            mine = cut(x, sizes)[MEMBERS[name].index(rank)]
            counts: Counter[str] = Counter()
            paired[case], outside = measured(
                lambda: assign_across(mine, group=groups[name], traffic=counts, **options)  # noqa: B023
            )
            traffic[case] = {**counts, "outside": outside}
    couple, x, plan = Joint(seed=3), images(20, 6), [6, 1, 9, 4]
    mine = cut(x, plan)[rank]
    paired["coupling"] = couple(mine, step=4)
    paired["coupling, generator"] = couple(mine, None, stream(0, 0, "noise"), step=4)
    torch.manual_seed(8)
    paired["coupling, global generator"] = couple(mine)
    paired["coupling, masked"] = couple(mine, step=4, mask=cut(ending(20, 6), plan)[rank])
    said["bad mask"] = message_of(lambda: couple(mine, step=4, mask=mine > 0 if rank < 3 else mine))
    bad = mine.clone()
    bad[0, 0] = torch.nan if rank == 2 else bad[0, 0]
    said["nan"] = message_of(lambda: couple(bad, step=4))
    said["empty"] = message_of(lambda: couple(mine[: 0 if rank == 1 else None], step=4))
    torch.manual_seed(8 + rank)
    paired["seeds apart"] = couple(mine)
    paired["seeds apart, again"] = couple(mine)
    paired["generators apart"] = couple(mine, None, stream(0, rank, "noise"), step=4)
    said["seed"] = message_of(lambda: assign_across(mine, seed=int(rank == 3), step=4))
    said["a step here alone"] = message_of(lambda: couple(mine, step=4 if rank == 3 else None))
    said["step"] = message_of(lambda: couple(mine, step=4 + (rank == 1)))
    said["row length"] = message_of(lambda: couple(mine[:, : 6 - (rank == 2)], step=4))
    said["options"] = message_of(lambda: Joint(cost="dot" if rank == 3 else "l2")(mine, step=4))
    said["not a member"] = message_of(lambda: assign_across(mine, seed=0, step=0, group=groups["one"])) * (rank != 2)
    for step, (name, data) in enumerate((("same data", x[:5]), ("other data", mine)), 5):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            paired[name] = couple(data, step=step)
            said[name] = " ".join(str(each.message) for each in caught)
    torch.save(paired, folder / f"{rank}.pt")
    (folder / f"{rank}.json").write_text(json.dumps({"traffic": traffic, "said": said}), encoding="utf-8")
    dist.destroy_process_group()


CONTRACT = importlib.import_module("couplings.test_contract")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Start four processes; return for each what it was paired with, sent and said."""
    folder = tmp_path_factory.mktemp("processes")
    list(results(process, [(rank, folder) for rank in range(4)], 4))
    return [
        {
            "paired": torch.load(folder / f"{rank}.pt", weights_only=True),
            **json.loads((folder / f"{rank}.json").read_text()),
        }
        for rank in range(4)
    ]


@pytest.mark.parametrize("case", CASES)
def test_processes_get_what_one_process_gives_the_joined_batch(case: str, written: list[dict[str, Any]]) -> None:
    name, sizes, _, _ = CASES[case]
    x, options = options_of(case)
    shares = [written[rank]["paired"][case] for rank in MEMBERS[name]]
    assert [len(share) for share in shares] == sizes
    assert torch.equal(torch.cat(shares), assign_across(x, **options))


def test_processes_on_their_own_or_at_another_step_differ(written: list[dict[str, Any]]) -> None:
    """Control of the equality above."""
    x, options = options_of("even")
    shares = [written[rank]["paired"]["even"] for rank in range(4)]
    alone = [assign_across(part, **options) for part in cut(x, [8] * 4)]
    assert not torch.equal(torch.cat(shares), torch.cat(alone))
    assert not torch.equal(torch.cat(shares), assign_across(x, **{**options, "step": 12}))


@pytest.mark.parametrize("case", CASES)
def test_no_process_sends_more_than_two_bytes_a_cost(case: str, written: list[dict[str, Any]]) -> None:
    """Noise would be 768 bytes a row of (3, 8, 8) data, here 2 n. The header is 56 bytes and 8 a row."""
    name, sizes, _, options = CASES[case]
    n, width = sum(sizes), 4 if options.get("precision") == "fp32" else 2
    assert len(sizes) == len(MEMBERS[name])
    for place, rank in enumerate(MEMBERS[name]):
        sent, b = written[rank]["traffic"][case], sizes[place]
        assert sent["outside"] == sum(count for what, count in sent.items() if what != "outside")
        if len(sizes) == 1:
            assert sent == {"outside": 0}
        elif place == 0:
            assert sent == {"header": 56, "result": 4 * (n - b), "outside": 56 + 4 * (n - b)}
        else:
            assert sent["costs"] == b * n * width
            assert sent["header"] == 56 + 8 * b


def test_the_coupling_is_the_function_over_all_processes(written: list[dict[str, Any]]) -> None:
    x = images(20, 6)
    drawn = int(torch.randint(2**63 - 1, (1,), generator=stream(0, 0, "noise")))
    drawn_globally = int(torch.randint(2**63 - 1, (1,), generator=torch.Generator().manual_seed(8)))
    for name, seed, step in (
        ("coupling", 3, 4),
        ("coupling, generator", drawn, 4),
        ("coupling, global generator", drawn_globally, 0),
        ("seeds apart", drawn_globally, 0),
        ("generators apart", drawn, 4),
    ):
        shares = torch.cat([each["paired"][name] for each in written])
        assert torch.equal(shares, assign_across(x, seed=seed, step=step))
    assert not torch.equal(*(torch.cat([each["paired"][name] for each in written]) for name in AGAIN))
    assert torch.equal(Joint(seed=3)(x, step=4), torch.cat([each["paired"]["coupling"] for each in written]))
    masked = torch.cat([each["paired"]["coupling, masked"] for each in written])
    assert torch.equal(Joint(seed=3)(x, step=4, mask=ending(20, 6)), masked)
    assert not torch.equal(Joint(seed=3)(x, step=4), masked)


AGAIN = "seeds apart", "seeds apart, again"
SAID: dict[str, tuple[str, list[str]]] = {
    "nan": ("process 2 refused its data", ["", "", "x holds NaN or infinity, first in row 0", ""]),
    "empty": ("process 1 refused its data", ["", "x has shape (0, 6); it must be", "", ""]),
    "seed": ("process 3 has seed ", [""] * 4),
    "step": ("process 1 has step 5, process 0 4; every process must call it once at every step", [""] * 4),
    "a step here alone": ("whether a step is given, must be the same everywhere", [""] * 4),
    "row length": ("process 2 has row length 5, process 0 6; rows must be alike", [""] * 4),
    "options": ("process 3 has a digest of cost and precision of ", [""] * 4),
    "not a member": ("this process is not in the group that it was given", ["", "", "", ""]),
    "bad mask": ("process 3 refused its data", ["", "", "", "mask is a torch.float32 tensor (4, 6)"]),
    "same data": ("two processes hold the same data", [""] * 4),
}


@pytest.mark.parametrize("what", SAID)
def test_every_process_says_what_is_wrong(what: str, written: list[dict[str, Any]]) -> None:
    common, own = SAID[what]
    for rank, each in enumerate(written):
        expected = own[rank] or common
        if (what, rank) != ("not a member", 2):
            assert expected in each["said"][what]


def test_good_data_raise_no_warning(written: list[dict[str, Any]]) -> None:
    assert [each["said"]["other data"] for each in written] == [""] * 4


# One process.


def shapes_agree(costs_of: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Return whether the rows of a batch cost the same, bit for bit, however the batch is cut."""
    whole = costs_of(x)
    plans = [[1] * len(x), [len(x) - 1, 1], [5, 1, len(x) - 6]]
    return all(torch.equal(whole, torch.cat([costs_of(part) for part in cut(x, plan)])) for plan in plans)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("d", [64, *(pytest.param(d, marks=pytest.mark.slow) for d in (1, 3, 3072, 5000))])
def test_costs_do_not_depend_on_the_shape_of_the_batch(d: int, cost: Any, precision: Any) -> None:
    x = images(20, d)
    assert shapes_agree(lambda part: cost_rows(part, 0, 0, 37, cost, precision)[0], x)
    assert shapes_agree(lambda part: cost_rows(part, 0, 0, 37, cost, precision)[1], x)


def test_floating_products_fail_the_check_of_the_shape() -> None:
    noise = randn(37, 3072, seed=1)
    assert not shapes_agree(lambda part: part @ noise.T, images(20, 3072))


def test_products_are_exact_in_any_order() -> None:
    """The rows are whole, and their products in float32 are those in int64; not so for rows five times as long."""
    for d in (1, 7, 1000, 4096):
        for x in (images(64, d), randn(64, d), randn(64, d) ** 9, 1e-30 * randn(64, d), torch.ones(64, d)):
            whole, unit = _whole(x, "fp16")
            assert torch.equal(whole, whole.round())
            assert whole.abs().max() <= 2048
            assert torch.linalg.vector_norm(whole.double(), dim=1).max() <= 2**11.5 + 32
            error = (whole.double() * unit[:, None] - x.double()).norm(dim=1) / x.double().norm(dim=1)
            assert error.max() < 0.02
    whole = _whole(randn(64, 4096), "fp16")[0]
    exact = (whole.long() @ whole.long().T).double()
    assert torch.equal((whole @ whole.T).double(), exact)
    longer = 5 * whole
    assert not torch.equal((longer @ longer.T).double(), (longer.long() @ longer.long().T).double())


def table(x: Tensor, noise: Tensor, cost: str) -> Any:
    """Return the cost of every pair, (b, m), in float64, less a constant per row where x may be long.

    |x - n| - |x| is written as (|n|^2 - 2 x.n) / (|x - n| + |x|); by L1, x beyond the noise only adds a constant.
    """
    data, other = (rows.flatten(1).double().numpy() for rows in (x, noise))
    if cost == "l1":
        return cdist(data.clip(-10, 10), other, "cityblock")
    product, length = data @ other.T, np.linalg.norm(data, axis=1)[:, None]
    if cost == "dot":
        return -product
    if cost == "cosine":
        return -product / np.where(length > 0, length, 1) / np.linalg.norm(other, axis=1)
    return ((other**2).sum(1) - 2 * product) / (cdist(data, other) + length)


def excess(x: Tensor, paired: Tensor, noise: Tensor, cost: str) -> float:
    """Return how much of what the best pairing gains over a random one is lost; noise rows are told by their values."""
    costs = table(x, noise, cost)
    places = {tuple(row): j for j, row in enumerate(noise.flatten(1).tolist())}
    index = [places[tuple(row)] for row in paired.flatten(1).tolist()]
    assert sorted(index) == list(range(len(x)))
    least = costs[linear_sum_assignment(costs)].sum()
    return float((costs[range(len(x)), index].sum() - least) / (costs.mean(1).sum() - least))


DATA: dict[str, Callable[[int, int], Tensor]] = {
    "normal": randn,
    "images": images,
    "off centre": lambda b, d: randn(b, d) + 3,
    "short": lambda b, d: 1e-6 * randn(b, d),
    "long": lambda b, d: 1e20 * randn(b, d),
    "of all lengths": lambda b, d: randn(b, d) * torch.logspace(-2, 2, b)[:, None],
    "peaked": lambda b, d: randn(b, d) ** 5,
}


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("d", [2, 192])
@pytest.mark.parametrize("data", sorted({*DATA} - {"some zero"}))
def test_the_pairing_is_next_to_the_optimum(data: str, d: int, cost: Any, precision: Any) -> None:
    """Costs of whole numbers up to 2^11 lose a share of 1e-3 at most, as fp16 does; of 2^26, float32's rounding."""
    x = DATA[data](96, d)
    noise = normal_rows(row_seeds(7, 2, torch.arange(96)), d)
    paired = assign_across(x, seed=7, step=2, cost=cost, precision=precision)
    assert excess(x, paired, noise, cost) < (1e-3 if precision == "fp16" else 2e-5)
    assert excess(x, noise, noise, cost) > 0.1
    assert excess(x.roll(1, 0), paired, noise, cost) > 0.1


@pytest.mark.parametrize("cost", COSTS)
def test_rows_of_zeros_take_what_others_leave(cost: Any) -> None:
    x = randn(48, 10) * (torch.arange(48) % 3 > 0)[:, None]
    noise = normal_rows(row_seeds(0, 0, torch.arange(48)), 10)
    paired = assign_across(x, seed=0, step=0, cost=cost, precision="fp32")
    assert excess(x, paired, noise, cost) < 2e-5
    assert torch.equal(assign_across(0 * x, seed=0, step=0, cost=cost).sort(0).values, noise.sort(0).values)


def test_noise_is_a_function_of_seed_step_and_row() -> None:
    x = randn(12, 5)
    rows = {tuple(row) for row in normal_rows(row_seeds(3, 9, torch.arange(12)), 5).tolist()}
    assert {tuple(row) for row in assign_across(x, seed=3, step=9).tolist()} == rows
    assert {tuple(row) for row in assign_across(-x, seed=3, step=9).tolist()} == rows
    assert not rows & {tuple(row) for row in assign_across(x, seed=3, step=8).tolist()}
    assert not rows & {tuple(row) for row in assign_across(x, seed=4, step=9).tolist()}


def test_one_process_needs_no_process_group_and_sends_nothing() -> None:
    traffic: Counter[str] = Counter()
    assert not dist.is_initialized()
    assert assign_across(randn(4, 3), seed=0, step=0, traffic=traffic).shape == (4, 3)
    assert not traffic


def test_the_coupling_is_told_its_noise_by_generator_or_step() -> None:
    x, couple = randn(6, 4), Joint(seed=2)
    state = torch.get_rng_state()
    assert torch.equal(couple(x, step=1), couple(x, step=1))
    assert torch.equal(couple(x, None, stream(0, 0, "noise")), couple(x, None, stream(0, 0, "noise")))
    assert torch.equal(torch.get_rng_state(), state)
    drawn = [couple(x, step=1), couple(x, step=2), couple(x, None, stream(0, 0, "noise")), Joint(seed=1)(x, step=1)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn += [couple(x), couple(x)]
        torch.manual_seed(0)
        assert torch.equal(couple(x), drawn[-2])
    assert len({tuple(noise.flatten().tolist()) for noise in drawn}) == len(drawn)


def test_a_step_that_stands_still_is_told_once() -> None:
    x, other = randn(2, 6, 4)

    def told(call: Callable[[Joint], object]) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(Joint())
        return [str(each.message) for each in caught]

    (message,) = told(lambda couple: [couple(each, step=7) for each in (x, other, x)])
    assert "joint was called at step 7 again, with other data" in message
    assert "leave step= away" in message
    assert told(lambda couple: [couple(each, step=7) for each in (x, x)]) == []
    assert told(lambda couple: [couple(each, step=step) for step, each in enumerate((x, other))]) == []
    assert told(lambda couple: [couple(each) for each in (x, other)]) == []
    assert told(lambda couple: [couple(each, None, stream(0, 0, "noise"), step=7) for each in (x, other)]) == []


def test_the_coupling_is_its_own_configuration() -> None:
    couple = Joint(cost="dot", precision="fp32", seed=4)
    plain = describe("coupling", couple)
    assert plain == {"use": "joint", "cost": "dot", "precision": "fp32", "seed": 4}
    assert make("coupling", plain) == couple
    assert isinstance(couple, Coupling)


def test_a_copy_has_the_options_and_no_process_group() -> None:
    x = randn(5, 3)
    couple = Joint(cost="dot", precision="fp32", seed=4)
    world = Group()
    couple._groups[world] = world
    with pytest.raises(TypeError):
        copy.deepcopy(couple._groups)  # control: what a plain copy would meet
    for other in (copy.copy(couple), copy.deepcopy(couple), pickle.loads(pickle.dumps(couple))):  # noqa: S301
        assert other == couple
        assert other is not couple
        assert len(other._groups) == 0
        assert torch.equal(other(x, step=1), couple(x, step=1))
    wrapped = Flipped(couple)
    assert pickle.loads(pickle.dumps(wrapped)) == copy.deepcopy(wrapped) == wrapped  # noqa: S301


class Group:
    """Stand for a process group: it can be neither copied nor pickled."""

    def __reduce__(self) -> str:
        raise TypeError("a process group belongs to its process")


@pytest.mark.parametrize("couple", [Joint(), Joint(cost="l1", precision="fp32")])
@pytest.mark.parametrize("batch", CONTRACT.BATCHES)
def test_the_contract_holds(batch: str, couple: Any) -> None:
    x = CONTRACT.BATCHES[batch]()
    CONTRACT.honours(couple, x)
    CONTRACT.honours(couple, x, torch.arange(len(x)) % 2)


@pytest.mark.slow
def test_the_rest_of_the_contract_holds() -> None:
    for name in (
        "test_each_row_follows_its_own_datum",
        "test_the_docstring_tells_marginal_and_cost",
        "test_the_prior_samples_rows_of_the_data",
    ):
        getattr(CONTRACT, name)("joint")
    for bad in (torch.nan, torch.inf):
        CONTRACT.test_a_value_that_is_not_finite_is_refused("joint", bad)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bad", [torch.ones(3, 2, dtype=torch.long), torch.ones(0, 2), torch.tensor(1.0), None])
def test_what_is_no_floating_batch_is_refused(bad: Any) -> None:
    CONTRACT.test_what_is_no_floating_batch_is_refused("joint", bad)


@pytest.mark.usefixtures("unchecked")
def test_misuse_is_named() -> None:
    x = randn(3, 2)
    for call, message in (
        (lambda: Joint(cost="l3"), "no cost named 'l3'"),  # type: ignore[arg-type]
        (lambda: Joint(precision="bf16"), r"no precision named 'bf16'; there are \['fp16', 'fp32'\]"),  # type: ignore[arg-type]
        (lambda: assign_across(x.long(), seed=0, step=0), "x is a torch.int64 tensor"),
        (lambda: assign_across(x / 0, seed=0, step=0), "x holds NaN or infinity, first in row 0"),
        (lambda: assign_window([]), "xs holds no micro-batch; a window needs at least one"),
        (lambda: assign_window([x, x.long()]), r"xs\[1\] is a torch.int64 tensor"),
        (lambda: assign_window([x, x.double()]), r"xs\[1\] has rows \(2, torch.float64.*; micro-batches may differ"),
        (lambda: assign_window([x, x[:, :1]]), r"xs\[1\] has rows \(1, torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("sizes", [[5], [4, 4, 4], [1, 7, 2]])
def test_a_window_is_one_assignment(sizes: list[int]) -> None:
    xs = cut(randn(sum(sizes), 3, 4), sizes)
    noises = assign_window(xs, cost="dot", generator=stream(0, 0, "noise"))
    drawn = torch.randn(sum(sizes), 3, 4, generator=stream(0, 0, "noise"))
    assert [noise.shape for noise in noises] == [x.shape for x in xs]
    assert torch.equal(torch.cat(noises), assign(torch.cat(xs), drawn, cost="dot"))
    apart = torch.cat([assign(x, noise, cost="dot") for x, noise in zip(xs, cut(drawn, sizes), strict=True)])
    assert torch.equal(torch.cat(noises), apart) == (len(sizes) == 1)
    labels, mask = cut(torch.arange(sum(sizes)) % 2, sizes), cut(randn(sum(sizes), 3, 1) > 0, sizes)
    whole = assign(torch.cat(xs), drawn, labels=torch.cat(labels), mask=torch.cat(mask))
    assert torch.equal(torch.cat(assign_window(xs, generator=stream(0, 0, "noise"), labels=labels, mask=mask)), whole)


@pytest.mark.filterwarnings("ignore:warmup depends on the training step")
@pytest.mark.parametrize(
    "wrap", [Flipped, Rotated, lambda couple: Warmup(couple, 1)], ids=["flipped", "rotated", "warmup"]
)
def test_a_wrapped_joint_without_a_step_has_fresh_noise_at_every_call(wrap: Callable[[Coupling], Coupling]) -> None:
    couple, x = wrap(Joint()), randn(8, 4)
    first, second = (couple(x).sort(0).values for _ in range(2))  # of one x, so that no warning would tell either
    assert not torch.equal(first.abs(), second.abs())
    again = [couple(x, step=3) for _ in range(2)]
    assert isinstance(couple, Flipped) or torch.equal(*again)  # the control: a step that stands still
