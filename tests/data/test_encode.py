import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import pictures
from encodable import Blur, CaptionedPictures, Pictures, fail_at_three_die_at_five
from immiscible_diffusion import MLP, Assignment, Denoising, Straight, Train, Trained, fit, generate, new_state
from immiscible_diffusion.codecs.vae import VAE
from immiscible_diffusion.data.images import Images
from immiscible_diffusion.data.latent_files import Progress, encode
from immiscible_diffusion.data.latent_files.stored import read_manifest
from immiscible_diffusion.data.latents import Latents
from immiscible_diffusion.priors import StandardNormal
from immiscible_diffusion.processes import results
from immiscible_diffusion.types import Batch, HasRandomAccess

pytestmark = pytest.mark.medium

OPTIONS: dict[str, Any] = {"flip": True, "shard_rows": 8, "batch": 3}


def encoded(folder: Path, source: HasRandomAccess | None = None, codec: Any = None, **options: Any) -> list[Progress]:
    return list(encode(source or Pictures(), codec or Blur(), folder, **{**OPTIONS, **options}))


def rows_of(batch: Batch) -> list[int]:
    assert batch.rows is not None
    return list(batch.rows.tolist())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def test_moments_labels_and_held_out_images_are_those_of_the_source(tmp_path: Path) -> None:
    source = Pictures()
    assert encoded(tmp_path, source) == [Progress(0, 30), Progress(8, 30), Progress(16, 30), Progress(24, 30), (30, 30)]
    training = [row for row in range(40) if row % 4]
    for number in range(4):
        stored = load_file(tmp_path / f"shard-{number:05d}.safetensors")
        rows = torch.tensor(training[8 * number : 8 * number + 8])
        assert torch.equal(stored["rows"], rows)
        assert torch.equal(stored["labels"], rows % 5)
        images = torch.stack([source.image(int(row)) for row in rows])
        for side, shown in (("", images), ("_flipped", images.flip(-1))):
            for name, moment in zip(("mean", "std"), Blur().moments(shown), strict=True):
                assert moment is not None
                # the closest fp16: half of its spacing, 2^-10 of the power of two below
                torch.testing.assert_close(stored[name + side].float(), moment, rtol=2**-11, atol=2**-25)
                assert not torch.equal(stored[name + side].float(), moment)
        assert not torch.equal(stored["mean"], stored["mean_flipped"])
    held = load_file(tmp_path / "held-out.safetensors")
    assert held["rows"].tolist() == list(range(0, 40, 4))
    assert torch.equal(held["images"], source.held_out().raw)


def test_fp32_is_exact_and_an_encoder_without_posterior_stores_means_alone(tmp_path: Path) -> None:
    encoded(tmp_path, codec=Blur(posterior=False), dtype="fp32", flip=False, batch=8)
    stored = load_file(tmp_path / "shard-00001.safetensors")
    assert set(stored) == {"rows", "labels", "mean"}
    images = torch.stack([Pictures().image(int(row)) for row in stored["rows"]])
    torch.testing.assert_close(stored["mean"], Blur().moments(images)[0], rtol=0, atol=1e-6)
    assert read_manifest(tmp_path).posterior is False


@pytest.mark.parametrize("which", ["000", "005", "008"])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_an_image_beyond_fp16_is_named(tmp_path: Path, which: str, batch: int) -> None:
    files = {
        f"train/{i:03d}.png": pictures.encoded(255 if f"{i:03d}" == which else 110 + i, size=(8, 8)) for i in range(9)
    }
    path = pictures.folder(tmp_path / "set", files | {f"test/{i}.png": pictures.encoded(190 + i) for i in range(2)})
    images = Images(str(path), size=8, held_out_split="test", held_out_rows=0)
    with pytest.raises(ValueError, match=rf"^{path}/train/{which}.png: a moment is \d.*, above fp16's 65504"):
        list(encode(images, Blur(gain=1e4), tmp_path / "latents", batch=batch))
    done = list(encode(images, Blur(gain=1e3), tmp_path / "small", batch=batch))  # control
    assert done[-1].rows == 9


def test_a_moment_beyond_fp16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="above fp16's 65504: store dtype fp32"):
        encoded(tmp_path / "half", codec=Blur(gain=1e5))
    encoded(tmp_path / "full", codec=Blur(gain=1e5), dtype="fp32")


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    encoded(tmp_path)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert encoded(tmp_path) == [Progress(30, 30)]
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


def test_an_encoding_that_was_left_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    encoded(tmp_path / "whole")
    for left_after in range(4):
        folder = tmp_path / f"left-{left_after}"
        steps = encode(Pictures(), Blur(), folder, **OPTIONS)
        for _ in range(1 + left_after):
            next(steps)
        with pytest.raises(ValueError, match="another process is working in"):
            encoded(folder)
        steps.close()  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=f"holds {left_after} of 4 shards: encode again"):
            Latents(str(folder)).held_out()
        (folder / ".shard-00003.safetensors.1.part").write_bytes(b"of a killed process")
        assert encoded(folder)[0].rows == 8 * left_after
        assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_workers_write_the_same_bytes(tmp_path: Path, workers: int) -> None:
    encoded(tmp_path / "here")
    assert len(encoded(tmp_path / "elsewhere", workers=workers)) == 5
    assert contents(tmp_path / "elsewhere") == contents(tmp_path / "here")
    encoded(tmp_path / "other", batch=4)
    assert contents(tmp_path / "other") != contents(tmp_path / "here")


@pytest.mark.slow
def test_a_worker_that_fails_or_dies_is_an_error_and_the_others_end() -> None:
    with pytest.raises(ValueError, match="three"):
        list(results(fail_at_three_die_at_five, [(1,), (2,), (3,), (4,)], 1))
    with pytest.raises(RuntimeError, match="a worker ended with exit code -9"):
        list(results(fail_at_three_die_at_five, [(1,), (5,)], 1))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": Pictures(salt=1)}, "another source, whose images differ"),
        ({"source": Pictures(count=44)}, "rows = 30, not 33"),
        ({"source": Pictures(side=16)}, r"image_shape = \[3, 8, 8\], not \[3, 16, 16\]"),
        ({"source": Pictures(labels=False)}, "classes = 5, not None"),
        ({"source": CaptionedPictures()}, "captions = False, not True"),
        ({"codec": Blur(gain=2.0)}, "encoder = "),
        ({"flip": False}, "flip = True, not False"),
        ({"shard_rows": 9}, "shard_rows = 8, not 9"),
        ({"batch": 4}, "batch = 3, not 4"),
        ({"dtype": "fp32"}, "dtype = fp16, not fp32"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_source_encoder_or_option_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str, finished: bool
) -> None:
    steps = encode(Pictures(), Blur(), tmp_path, **OPTIONS)
    for _ in range(5 if finished else 2):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message):
        encoded(tmp_path, **change)
    assert contents(tmp_path) == before


def test_how_a_source_is_read_is_no_other_source(tmp_path: Path) -> None:
    encoded(tmp_path)
    assert encoded(tmp_path, Pictures(pause=1e-6)) == [Progress(30, 30)]


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(ValueError, match=r"holds other files, 'thesis\.tex' for one"):
        encoded(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.tex"]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("damage", ["remove", "truncate", "flip a bit"])
def test_a_damaged_file_is_made_again_with_a_warning(tmp_path: Path, damage: str, finished: bool) -> None:
    encoded(tmp_path / "whole")
    folder = tmp_path / "damaged"
    steps = encode(Pictures(), Blur(), folder, **OPTIONS)
    for _ in range(5 if finished else 4):
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    for name in ("shard-00001.safetensors", "held-out.safetensors"):
        path = folder / name
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content if damage == "flip a bit" else content[:-7])
        if damage == "remove":
            path.unlink()
    if finished and damage == "flip a bit":  # a second call looks at sizes and headers; verify reads all
        assert encoded(folder) == [Progress(30, 30)]
        with pytest.raises(ValueError, match=r"shard-00001.safetensors is damaged: its SHA-256"):
            Latents(str(folder)).verify()
        return
    with pytest.warns(UserWarning, match="it is made again") as warned:
        encoded(folder)
    assert len(warned) == 2
    assert contents(folder) == contents(tmp_path / "whole")
    assert Latents(str(folder)).verify() == 5


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_full_disk_leaves_no_part_of_a_shard_and_a_restart_completes(tmp_path: Path) -> None:
    import resource

    source, options = Pictures(side=16), {"shard_rows": 30}  # a shard is the largest file
    encoded(tmp_path / "whole", source, **options)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "whole" / "shard-00000.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            encoded(tmp_path / "full", source, **options)
        assert set(contents(tmp_path / "full")) == {"manifest.json", "held-out.safetensors"}
        assert read_manifest(tmp_path / "full").shards == ()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    encoded(tmp_path / "full", source, **options)
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


_KILLED = """
    import os, random, signal, sys, time
    from pathlib import Path
    from encodable import Blur, Pictures
    from immiscible_diffusion.data.latent_files import encode

    def begun(folder):
        child = os.fork()
        if not child:
            source = Pictures(count=100, pause=0.004)
            list(encode(source, Blur(), folder, flip=True, shard_rows=8, batch=3))
            os._exit(0)
        return child

    def lives(child):  # until it is waited for, or killed
        return not os.WIFEXITED(os.waitpid(child, 0)[1])

    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    start = time.perf_counter()
    assert not lives(begun(folder / "whole"))
    usual, draws, trials = time.perf_counter() - start, random.Random(0), 1
    while kills:
        child = begun(folder / f"killed-{trials}")
        time.sleep(draws.random() * usual / 2)
        os.kill(child, signal.SIGKILL)
        if lives(child):
            kills -= 1
        else:
            trials += 1  # it had come to its end
    for i in range(trials):
        assert not lives(begun(folder / f"killed-{i + 1}"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_files_end_the_same(tmp_path: Path, kills: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", textwrap.dedent(_KILLED), str(tmp_path), str(kills)]
    subprocess.run(program, env=environment, check=True)
    killed = sorted(tmp_path.glob("killed-*"))
    assert len(contents(tmp_path / "whole")) == 12
    assert killed
    assert all(contents(folder) == contents(tmp_path / "whole") for folder in killed)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_workers_end_with_their_killed_parent(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from encodable import *; from immiscible_diffusion.data.latent_files import encode\n"
        "if __name__ == '__main__':\n"
        "    for _ in encode(Pictures(400, pause=0.05), Blur(), Path(sys.argv[1]), shard_rows=8, batch=3, workers=2):\n"
        "        print(flush=True)\n"
    )
    script, folder = tmp_path / "script.py", tmp_path / "out"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, script, folder], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout
        for _ in range(3):  # the start and two shards
            process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        process.kill()
    for pid in workers:
        deadline = time.monotonic() + 10
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.kill(pid, 0)
                time.sleep(0.05)
            pytest.fail(f"worker {pid} outlives its parent")
    shards = len(read_manifest(folder).shards)
    assert 2 <= shards < 38
    again = list(encode(Pictures(400), Blur(), folder, shard_rows=8, batch=3))
    assert again[0] == Progress(8 * shards, 300)
    list(encode(Pictures(400), Blur(), tmp_path / "whole", shard_rows=8, batch=3))
    assert contents(folder) == contents(tmp_path / "whole")


@dataclasses.dataclass(frozen=True)
class _Wrong(Pictures):
    """Pictures with one broken promise."""

    wrong: str = ""

    def take(self, rows: torch.Tensor) -> Any:
        batch = super().take(rows)
        return {
            "order": batch._replace(raw=batch.raw.flip(0), rows=rows.flip(0)),
            "dtype": batch._replace(raw=batch.raw.float()),
            "shape": batch._replace(raw=batch.raw[:, :1]),
            "labels": batch._replace(cond=None),
            "numbers": batch._replace(rows=rows + 100),
        }[self.wrong]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("order", "was asked for rows"),
        ("dtype", "gave torch.float32"),
        ("shape", r"not uint8 \(10, 3, 8, 8\)"),
        ("labels", "5 classes and gave labels None"),
        ("numbers", r"must be numbered 0 \.\. 39"),
    ],
)
def test_a_source_that_breaks_its_promise_is_named(tmp_path: Path, wrong: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoded(tmp_path, _Wrong(wrong=wrong))


def test_unreadable_rows_are_left_out(tmp_path: Path) -> None:
    encoded(tmp_path, Pictures(bad=(3, 5, 6, 7, 9)))  # a batch of bad ones among them
    source = Latents(str(tmp_path))
    assert source.rows == 25
    rows = {int(row) for batch in itertools.islice(source.batches(5, 0), 5) for row in rows_of(batch)}
    assert rows == {row for row in range(40) if row % 4} - {3, 5, 6, 7, 9}
    assert encoded(tmp_path, Pictures(bad=(3, 5, 6, 7, 9))) == [Progress(30, 30)]
    with pytest.raises(ValueError, match="no held-out image may be unreadable"):
        encoded(tmp_path / "held", Pictures(bad=(8,)))
    with pytest.raises(ValueError, match="none of the 8 images of rows 1 to 10 can be read"):
        encoded(
            tmp_path / "shard", Pictures(bad=tuple(range(1, 11, 4)) + tuple(range(2, 11, 4)) + tuple(range(3, 11, 4)))
        )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("option", [{"shard_rows": 0}, {"batch": 0}, {"workers": -1}, {"dtype": "int8"}])
def test_options_out_of_range_are_named(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))}.* must be"):
        encoded(tmp_path / "new", **option)
    assert not (tmp_path / "new").exists()


def test_the_manifest_says_what_is_there(tmp_path: Path) -> None:
    encoded(tmp_path)
    fields = json.loads((tmp_path / "manifest.json").read_text())
    assert (fields["rows"], fields["held_out_rows"], fields["shape"], fields["classes"]) == (30, 10, [4, 2, 2], 5)
    assert fields["encoder"] == Blur().fingerprint()
    assert fields["source"]["use"] == "encodable:Pictures"
    assert [shard["rows"] for shard in fields["shards"]] == [8, 8, 8, 6]
    assert len({shard["content_sha256"] for shard in fields["shards"]}) == 4


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small AutoencoderKL with random weights that halves the sides once."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=3,
        )
    folder = tmp_path_factory.mktemp("kl")
    model.save_pretrained(folder)
    return folder


def test_the_whole_way_from_images_to_images(tmp_path: Path, kl: Path) -> None:
    pictures, codec = Pictures(), VAE(str(kl))
    encoded(tmp_path, pictures, codec, dtype="fp32")
    source = Latents(str(tmp_path))
    assert source.encoder == codec.fingerprint()
    batch = next(source.batches(6, 0))
    mean, std = codec.moments(pictures.take(torch.tensor(rows_of(batch))).raw)
    assert std is not None
    eps = (batch.raw - mean) / std
    assert 0.8 < float(eps.std()) < 1.2
    assert abs(float(eps.mean())) < 0.2  # 288 draws
    assert torch.equal(codec.encode(batch.raw), batch.raw * 0.18215)

    config = Train(steps=2, batch=6, warmup=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = new_state(MLP(width=8, depth=1).build(source.shape, source.classes), config)
    method = Denoising(Straight(), "velocity")
    assert [current.step for current in fit(state, source, codec, Assignment(), method, config)] == [1, 2]
    trained = Trained(state.ema, method, codec, StandardNormal(), source.shape)
    images = torch.cat(list(generate(trained, 3, steps=2)))
    assert images.dtype == torch.uint8
    assert images.shape == source.held_out().raw[:3].shape


@pytest.mark.slow
def test_an_autoencoder_gives_the_same_bytes_in_other_processes(
    tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    source, codec = Pictures(count=48, side=32), VAE(str(shared_data("taesd")))
    encoded(tmp_path / "here", source, codec)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # what the caller computes with makes no difference, and is left as it was
    try:
        encoded(tmp_path / "threads", source, codec)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    encoded(tmp_path / "two", source, codec, workers=2)
    assert contents(tmp_path / "threads") == contents(tmp_path / "here")
    assert contents(tmp_path / "two") == contents(tmp_path / "here")
    assert "std" not in load_file(tmp_path / "two" / "shard-00000.safetensors")


@pytest.mark.filterwarnings("ignore:.* classes of .* have no training row")
@pytest.mark.parametrize(
    ("name", "options"), [("cifar10", {"split": "test"}), ("flickr8k-400", {"caption": "captions"})]
)
def test_real_images_with_labels_or_captions(
    tmp_path: Path, shared_data: Callable[[str], Path], name: str, options: dict[str, Any]
) -> None:
    images = Images(str(shared_data(name)), size=16, limit=24, held_out_rows=4, **options)
    encoded(tmp_path, images)
    source = Latents(str(tmp_path))
    assert torch.equal(source.held_out().raw, images.held_out().raw)
    batch = next(source.batches(20, 0))
    assert batch.cond is not None
    rows = torch.tensor(rows_of(batch))
    if images.classes is not None:
        labels = images.take(rows).cond
        assert labels is not None
        assert torch.equal(batch.cond, labels)
    else:
        pairs = zip(source.caption_texts(batch.cond), images.captions(rows), strict=True)
        assert all(text in texts for text, texts in pairs)
    mean, std = Blur().moments(images.take(rows).raw)
    assert std is not None
    assert 0.8 < float(((batch.raw - mean) / std).std()) < 1.2  # 1,280 draws
