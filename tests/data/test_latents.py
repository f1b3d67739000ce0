import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from encodable import Blur, CaptionedPictures, Pictures
from immiscible_diffusion.data import latents as latents_module
from immiscible_diffusion.data.latent_files import encode
from immiscible_diffusion.data.latent_files.stored import FORMAT
from immiscible_diffusion.data.latents import Latents
from immiscible_diffusion.registry import describe, make
from immiscible_diffusion.types import Batch, HasRandomAccess, Source

pytestmark = pytest.mark.medium


def stored(folder: Path, source: HasRandomAccess | None = None, codec: Any = None, **options: Any) -> Latents:
    given = {"flip": True, "shard_rows": 8, "batch": 5, "dtype": "fp32", **options}
    list(encode(source or Pictures(), codec or Blur(), folder, **given))
    return Latents(str(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latents")
    stored(path)
    return path


def epochs(source: Latents, count: int, size: int = 6, seed: int = 0) -> list[Batch]:
    return list(itertools.islice(source.batches(size, seed), count * (source.rows // size)))


def by_row(batches: list[Batch]) -> dict[int, list[Tensor]]:
    """Return row number -> its latents in the order of the epochs."""
    rows: dict[int, list[Tensor]] = {}
    for batch in batches:
        assert batch.rows is not None
        for row, z in zip(batch.rows.tolist(), batch.raw, strict=True):
            rows.setdefault(row, []).append(z)
    return rows


@pytest.mark.slow
def test_draws_have_the_posteriors_mean_and_deviation(folder: Path) -> None:
    source, count = Latents(str(folder)), 400
    drawn = by_row(epochs(source, count))
    assert sorted(drawn) == [row for row in range(40) if row % 4]
    draws = torch.stack([torch.stack(drawn[row]) for row in sorted(drawn)])  # (rows, epochs, 4, 2, 2)
    mean, std = Blur().moments(torch.stack([Pictures().image(row) for row in sorted(drawn)]))
    assert std is not None
    eps = (draws - mean[:, None]) / std[:, None]
    n = eps.numel()
    assert abs(float(eps.mean())) < 5 / n**0.5
    assert abs(float(eps.var()) - 1) < 5 * (2 / n) ** 0.5
    # each coordinate of each row by itself: 480 means of 400 draws, and their deviations
    assert float(eps.mean(1).abs().max()) < 5 / count**0.5
    assert float((eps.std(1) - 1).abs().max()) < 5 / (2 * count) ** 0.5
    # nothing is shared between rows, epochs or coordinates
    flat = eps.reshape(30 * count, 16)
    assert float((torch.corrcoef(flat.T) - torch.eye(16)).abs().max()) < 5 / (30 * count) ** 0.5
    assert float((torch.corrcoef(eps.transpose(1, 2).reshape(30, -1)) - torch.eye(30)).abs().max()) < 0.07


def test_labels_are_those_of_their_rows(folder: Path) -> None:
    for batch in epochs(Latents(str(folder)), 2):
        assert batch.rows is not None
        assert batch.cond is not None
        assert torch.equal(batch.cond, batch.rows % 5)
        assert batch.raw.dtype == torch.float32
        assert batch.raw.shape == (6, 4, 2, 2)


def test_batches_depend_on_seed_and_number_alone(folder: Path) -> None:
    source = Latents(str(folder), flip=True)
    whole = list(itertools.islice(source.batches(7, 3), 11))
    for start in (0, 1, 4, 9):
        again = itertools.islice(Latents(str(folder), flip=True).batches(7, 3, start), 11 - start)
        for a, b in zip(whole[start:], again, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None)
    assert not torch.equal(whole[0].raw, next(source.batches(7, 4)).raw)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    next(source.batches(7, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rows_draw_does_not_depend_on_the_batch_size(folder: Path) -> None:
    source = Latents(str(folder), flip=True)
    small, large = (by_row(epochs(source, 2, size)) for size in (5, 15))
    assert all(torch.equal(a, b) for row in small for a, b in zip(small[row], large[row], strict=True))


def test_flips_show_the_mirror_image_in_half_of_the_epochs(tmp_path: Path) -> None:
    plain = stored(tmp_path, codec=Blur(posterior=False))
    count = 60
    seen = by_row(epochs(Latents(str(tmp_path), flip=True), count))
    mirrored = 0
    for row, latents in seen.items():
        image = Pictures().image(row)[None]
        here, mirror = (Blur().moments(picture)[0][0] for picture in (image, image.flip(-1)))
        sides = [torch.allclose(z, mirror, atol=1e-5) for z in latents]
        assert all(side or torch.allclose(z, here, atol=1e-5) for z, side in zip(latents, sides, strict=True))
        assert 0 < sum(sides) < count
        mirrored += sum(sides)
    n = 30 * count
    assert abs(mirrored - n / 2) < 5 * (n / 4) ** 0.5
    for row, latents in by_row(epochs(plain, 3)).items():  # without a posterior a latent is the mean, always
        mean = Blur().moments(Pictures().image(row)[None])[0][0]
        assert all(torch.allclose(z, mean, atol=1e-5) for z in latents)


def test_flips_leave_the_draws_alone(folder: Path) -> None:
    plain, flipped = (by_row(epochs(Latents(str(folder), flip=flip), 20)) for flip in (False, True))
    equal = [torch.equal(a, b) for row in plain for a, b in zip(plain[row], flipped[row], strict=True)]
    assert 0.35 < sum(equal) / len(equal) < 0.65


def test_flips_that_were_not_encoded_are_refused(tmp_path: Path) -> None:
    stored(tmp_path, flip=False)
    next(Latents(str(tmp_path)).batches(2, 0))
    with pytest.raises(ValueError, match="encoded without mirror images"):
        next(Latents(str(tmp_path), flip=True).batches(2, 0))


def test_an_epoch_can_be_read_twice(folder: Path) -> None:
    source = Latents(str(folder))
    first, second = (torch.stack([batch.raw for batch in epochs(source, 1)]) for _ in range(2))
    assert torch.equal(first, second)
    held = source.held_out()
    held.raw.zero_()
    assert int(source.held_out().raw.max()) == 255


def test_held_out_data_are_the_images(folder: Path) -> None:
    held, real = Latents(str(folder)).held_out(), Pictures().held_out()
    assert held.rows is not None
    assert held.cond is not None
    assert torch.equal(held.raw, real.raw)
    assert torch.equal(held.rows, torch.arange(0, 40, 4))
    assert torch.equal(held.cond, held.rows % 5)


def test_captions_are_those_of_their_rows(tmp_path: Path) -> None:
    pictures = CaptionedPictures(labels=False)
    source = stored(tmp_path, pictures)
    assert source.classes is None
    texts: dict[int, set[str]] = {}
    for batch in epochs(source, 30):
        assert batch.cond is not None
        assert batch.rows is not None
        for row, text in zip(batch.rows.tolist(), source.caption_texts(batch.cond), strict=True):
            texts.setdefault(row, set()).add(text)
    assert texts == {row: set(pictures.captions(torch.tensor([row]))[0]) for row in range(40) if row % 4}
    held = source.held_out()
    assert held.cond is not None
    assert source.caption_texts(held.cond) == [f"picture {row}, caption 0 \N{SNOWMAN}" for row in range(0, 40, 4)]
    with pytest.raises(ValueError, match=r"no caption -1; .* has \d\d"):
        source.caption_texts(torch.tensor([-1]))


def test_neither_labels_nor_captions_is_no_condition(tmp_path: Path) -> None:
    source = stored(tmp_path, Pictures(labels=False))
    assert next(source.batches(3, 0)).cond is None
    assert source.held_out().cond is None
    with pytest.raises(ValueError, match=r"no caption 0; .* has 0"):
        source.caption_texts(torch.tensor([0]))


def test_it_says_what_it_is(folder: Path) -> None:
    source = Latents(str(folder))
    assert (source.shape, source.rows, source.classes) == ((4, 2, 2), 30, 5)
    assert source.encoder == Blur().fingerprint()
    assert isinstance(source, Source)
    assert make("source", describe("source", source)) == source
    with pytest.raises(ValueError, match="batch is 31; these data have 30"):
        next(source.batches(31, 0))


def test_latents_stay_in_the_file(tmp_path: Path) -> None:
    source = stored(tmp_path, Pictures(count=1200, side=64), flip=False, shard_rows=900, batch=300)
    assert (tmp_path / "shard-00000.safetensors").stat().st_size > 7e6
    if not Path("/proc/self/smaps").exists():
        pytest.skip("the system does not tell what is mapped")

    def copied() -> int:
        """Return how many bytes of the mapped shard are copies in memory, not pages that the system can drop."""
        lines = Path("/proc/self/smaps").read_text().split("\n")
        at = [i for i, line in enumerate(lines) if line.endswith(f"{tmp_path.name}/shard-00000.safetensors")]
        anonymous = [next(line for line in lines[i:] if line.startswith("Anonymous:")) for i in at]
        assert anonymous
        return 1024 * sum(int(line.split()[1]) for line in anonymous)

    for batch in itertools.islice(source.batches(100, 0), 9):
        batch.raw.zero_()  # what is handed out is the caller's own
    assert copied() == 0
    latents_module._checked(tmp_path, (tmp_path / "manifest.json").stat().st_mtime_ns).open(0)("mean")[:900].zero_()
    assert copied() > 3e6  # what a latent changed in place would leave


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncate", r"shard-00002\.safetensors has \d+ bytes, not \d+"),
        ("remove", r"shard-00002\.safetensors is missing"),
        ("header", r"shard-00002\.safetensors is damaged"),
        ("shape", r"shard-00002\.safetensors holds .*, not "),
        ("held out", r"held-out\.safetensors has 3 bytes"),
        ("no manifest", "holds no stored latents: it has no manifest.json"),
        ("no json", r"cannot read .*manifest\.json"),
        ("list", r"has format None; this version reads format 1"),
        ("version", rf"has format {FORMAT + 1}; this version reads format {FORMAT}: encode the images again"),
        ("unfinished", "holds 3 of 4 shards: encode again"),
        ("outside", r"manifest\.json is damaged: .*is no name of a shard"),
        ("type", r"manifest\.json is damaged: .*rows is '30'"),
        ("bool", r"manifest\.json is damaged: .*rows is True"),
        ("negative", r"manifest\.json is damaged: .*below 1"),
        ("unknown", r"manifest\.json is damaged: .*colour is"),
        ("lacking", r"manifest\.json is damaged: .*shape"),
        ("twice", r"manifest\.json is damaged: .*listed twice"),
        ("too many", r"manifest\.json is damaged: .*is none of its shards"),
    ],
)
def test_damage_is_one_error_that_names_the_file(folder: Path, tmp_path: Path, damage: str, message: str) -> None:
    path = tmp_path / "damaged"
    shutil.copytree(folder, path)
    shard, manifest = path / "shard-00002.safetensors", path / "manifest.json"
    fields = json.loads(manifest.read_text())
    changes: dict[str, Any] = {
        "version": {"format": FORMAT + 1},
        "unfinished": {"shards": fields["shards"][:3]},
        "outside": {"shards": [{**fields["shards"][0], "file": "../shard-00000.safetensors"}, *fields["shards"][1:]]},
        "type": {"rows": "30"},
        "bool": {"rows": True},
        "negative": {"shape": [4, -2, 2]},
        "unknown": {"colour": "red"},
        "twice": {"shards": [fields["shards"][0]] * 4},
        "too many": {"shards": [*fields["shards"][:3], {**fields["shards"][3], "file": "shard-00009.safetensors"}]},
    }
    if damage in changes:
        manifest.write_text(json.dumps(fields | changes[damage]))
    elif damage == "lacking":
        manifest.write_text(json.dumps({key: value for key, value in fields.items() if key != "shape"}))
    elif damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:-9])
    elif damage == "header":
        content = shard.read_bytes()
        shard.write_bytes(b"\xff" * 8 + content[8:])
    elif damage == "shape":
        tensors, size = load_file(shard), shard.stat().st_size
        tensors["mean"] = tensors["mean"].reshape(8, 2, 4, 2)
        save_file(tensors, shard)
        assert shard.stat().st_size == size
    elif damage == "held out":
        (path / "held-out.safetensors").write_bytes(b"...")
    elif damage == "remove":
        shard.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text({"no json": "{", "list": "[]"}[damage])
    with pytest.raises(ValueError, match=message):
        next(Latents(str(path)).batches(2, 0))
    with pytest.raises(ValueError, match=message):
        Latents(str(path)).held_out()


def test_verify_sees_one_corrupted_byte(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    shutil.copytree(folder, path)
    assert Latents(str(path)).verify() == 5
    shard = path / "shard-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    next(Latents(str(path)).batches(2, 0))  # sizes and headers alone are looked at when training starts
    with pytest.raises(ValueError, match=r"shard-00003\.safetensors is damaged: its SHA-256 is not the manifest's"):
        Latents(str(path)).verify()


def test_another_encoding_into_the_same_folder_is_seen(tmp_path: Path) -> None:
    first = next(stored(tmp_path / "latents").batches(4, 0)).raw
    shutil.rmtree(tmp_path / "latents")
    second = next(stored(tmp_path / "latents", Pictures(salt=7)).batches(4, 0)).raw
    assert not torch.equal(first, second)


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="latents need path"):
        Latents()
    with pytest.raises(ValueError, match="holds no stored latents"):
        _ = Latents(str(tmp_path / "nowhere")).rows
    assert dataclasses.replace(Latents("x"), flip=True) != Latents("x")
