"""Finding and reading sets by name: every format on miniatures, custom and official, and every kind of damage."""

import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import common.data.catalog as catalog
from common.data import DATASETS, Dataset, dataset_info, licence_table, load, locate
from common.data.location import _reachable
from common.errors import UserError
from tests.miniatures import (
    WRITERS,
    draw_images,
    python2_pickle,
    write_checksums,
    write_cifar10,
    write_cifar100,
    write_mnist,
    write_stl10,
    write_svhn,
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test may depend on the hub, on the machine's own caches or on a DATA_DIR that is set."""
    import huggingface_hub.constants

    _reachable.cache_clear()
    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def fails(text: str, name: str, data_dir: Path | None, split: str = "official") -> str:
    with pytest.raises(UserError, match=text) as caught:
        load(name, split, data_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestFormats:
    @pytest.mark.parametrize("layout", ["binary", "python"])
    def test_cifar10(self, tmp_path: Path, layout: str) -> None:
        write_cifar10(tmp_path, 20, seed=3, layout=layout)
        data = load("cifar10", data_dir=tmp_path)
        batches = [draw_images(20, 32, 32, 3, 300 + number) for number in range(1, 7)]
        assert np.array_equal(data.train.images, np.concatenate([images for images, _ in batches[:5]]))
        assert np.array_equal(data.train.labels, np.concatenate([labels for _, labels in batches[:5]]))
        assert np.array_equal(data.test.images, batches[5][0]) and np.array_equal(data.test.labels, batches[5][1])
        assert data.train.images.dtype == np.uint8 and data.train.labels.dtype == np.int64
        assert data.train.images.flags.c_contiguous and data.class_names[3] == "cat"
        assert (data.unlabeled, data.extra, data.folds) == (None, None, None)

    @pytest.mark.parametrize("layout", ["binary", "python"])
    def test_cifar10_holdout_needs_no_test_batch(self, tmp_path: Path, layout: str) -> None:
        write_cifar10(tmp_path, 20, seed=3, layout=layout, test=False)
        data = load("cifar10", "holdout", tmp_path)
        assert len(data.train.images) == 80
        assert np.array_equal(data.test.images, draw_images(20, 32, 32, 3, 305)[0])
        assert data.label.endswith("holdout of the training set (train 1-4, test 5)")
        fails(
            r"has no test_batch.* use split=holdout, a holdout of the training set \(train 1-4, test 5\)",
            "cifar10",
            tmp_path,
        )

    @pytest.mark.parametrize("layout", ["binary", "python"])
    def test_cifar100_reads_the_fine_labels(self, tmp_path: Path, layout: str) -> None:
        write_cifar100(tmp_path, 200, layout=layout)
        data = load("cifar100", data_dir=tmp_path)
        images, labels = draw_images(200, 32, 32, 3, 1, classes=100)
        assert np.array_equal(data.test.images, images) and np.array_equal(data.test.labels, labels)
        assert len(data.class_names) == 100 and data.class_names[99] == "worm" and data.class_names[52] == "oak_tree"

    def test_svhn(self, tmp_path: Path) -> None:
        write_svhn(tmp_path, 60)
        data = load("svhn", data_dir=tmp_path)
        images, labels = draw_images(60, 32, 32, 3, 0)
        assert np.array_equal(data.train.images, images) and np.array_equal(data.train.labels, labels)
        assert data.extra is None and 0 in data.test.labels and data.test.labels.max() == 9
        extra = load("svhn", "extra", tmp_path)
        assert extra.extra is not None and len(extra.extra.images) == 120
        assert extra.fingerprint != data.fingerprint

    def test_svhn_without_extra(self, tmp_path: Path) -> None:
        write_svhn(tmp_path, 30, extra=False)
        assert len(load("svhn", data_dir=tmp_path).train.images) == 30
        fails(r"has no extra_32x32.mat, which svhn with split=extra needs", "svhn", tmp_path, "extra")

    def test_stl10(self, tmp_path: Path) -> None:
        write_stl10(tmp_path)
        data = load("stl10", data_dir=tmp_path)
        images, labels = draw_images(20, 96, 96, 3, 0)
        assert np.array_equal(data.train.images, images) and np.array_equal(data.train.labels, labels)
        assert data.unlabeled is not None and np.array_equal(data.unlabeled.images, draw_images(15, 96, 96, 3, 2)[0])
        assert (data.unlabeled.labels == -1).all()
        assert data.folds is not None and data.folds.shape == (10, 5) and data.folds.max() < 20

    @pytest.mark.parametrize("gzipped", [True, False])
    def test_mnist(self, tmp_path: Path, gzipped: bool) -> None:
        write_mnist(tmp_path, 60, gzipped=gzipped)
        data = load("mnist", data_dir=tmp_path)
        images, labels = draw_images(60, 28, 28, 1, 1)
        assert np.array_equal(data.test.images, images) and np.array_equal(data.test.labels, labels)

    def test_digits(self) -> None:
        data = load("digits")
        assert data.train.images.shape == (1797, 8, 8, 1) and data.train.images.max() == 16
        assert data.test.images.shape == (0, 8, 8, 1) and len(data.test.labels) == 0
        assert (data.name, data.label, data.fingerprint) == ("digits", "digits", "digits-87ff0c9e40dc7e2c")


def pack(folder: Path, inner: str, archive: Path) -> None:
    """Put a folder's data files into an archive beside which only SHA256SUMS stays."""
    files = [path for path in folder.iterdir() if path.name != "SHA256SUMS"]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as target:
            for path in files:
                target.write(path, f"{inner}/{path.name}")
    else:
        with tarfile.open(archive, "w:gz" if archive.name.endswith("gz") else "w") as target:
            for path in files:
                target.add(path, f"{inner}/{path.name}")
    (folder / "SHA256SUMS").rename(archive.parent / "SHA256SUMS")
    for path in files:
        path.unlink()
    folder.rmdir()


class TestPlaces:
    def same(self, data: Dataset, root: Path) -> None:
        assert np.array_equal(load("cifar10", data_dir=root).train.images, data.train.images)

    def test_inner_folder_may_be_missing_or_direct(self, tmp_path: Path) -> None:
        folder = write_cifar10(tmp_path, 10)
        data = load("cifar10", data_dir=tmp_path)
        folder.rename(tmp_path / "flat")
        (tmp_path / "cifar10").rmdir()
        (tmp_path / "flat").rename(tmp_path / "cifar10")
        self.same(data, tmp_path)
        (tmp_path / "cifar10").rename(tmp_path / "cifar-10-batches-bin")
        self.same(data, tmp_path)

    def test_checksums_may_lie_in_the_set_folder(self, tmp_path: Path) -> None:
        folder = write_cifar10(tmp_path, 10)
        (folder / "SHA256SUMS").rename(tmp_path / "cifar10" / "SHA256SUMS")
        assert load("cifar10", data_dir=tmp_path).name == "custom"

    @pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar", ".zip"])
    def test_archives(self, tmp_path: Path, suffix: str) -> None:
        folder = write_cifar10(tmp_path, 10, layout="python")
        data = load("cifar10", data_dir=tmp_path)
        pack(folder, "cifar-10-batches-py", tmp_path / "cifar10" / f"cifar-10-python{suffix}")
        self.same(data, tmp_path)
        assert {path.name for path in (tmp_path / "cifar10").iterdir()} == {"SHA256SUMS", f"cifar-10-python{suffix}"}

    def test_environment_variable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_mnist(tmp_path, 20)
        monkeypatch.setenv("DATA_DIR", str(tmp_path))
        assert len(load("mnist").train.images) == 20
        monkeypatch.setenv("DATA_DIR", "")
        fails("DATA_DIR is not set", "mnist", None)

    def test_custom_is_never_called_official(self, tmp_path: Path) -> None:
        for name, writer in WRITERS.items():
            writer(tmp_path)
            data, location = load(name, data_dir=tmp_path), locate(name, tmp_path)
            assert data.name == location.kind == "custom"
            assert data.label == location.label == f"custom (in the format of {DATASETS[name].title})"
            assert data.fingerprint == location.fingerprint != catalog.official_fingerprint(DATASETS[name], "official")


class TestLocate:
    def test_reads_no_data(self, tmp_path: Path) -> None:
        folder = write_cifar10(tmp_path, 10)
        before = locate("cifar10", tmp_path)
        for path in folder.glob("*.bin"):
            path.write_bytes(b"")
        assert locate("cifar10", tmp_path) == before

    def test_fingerprint_follows_the_expected_content(self, tmp_path: Path) -> None:
        folder = write_cifar10(tmp_path, 10, seed=0)
        first = locate("cifar10", tmp_path).fingerprint
        assert locate("cifar10", tmp_path, "holdout").fingerprint != first
        write_cifar10(tmp_path, 10, seed=1)
        assert locate("cifar10", tmp_path).fingerprint != first
        (folder / "SHA256SUMS").unlink()
        official = locate("cifar10", tmp_path)
        assert official.kind == "directory" and official.label == "CIFAR-10"
        assert official.fingerprint == catalog.official_fingerprint(DATASETS["cifar10"], "official")
        assert locate("digits").fingerprint == "digits-87ff0c9e40dc7e2c"

    def test_both_layouts_of_the_official_content_share_a_fingerprint(self, tmp_path: Path) -> None:
        prints = []
        for layout in ("binary", "python"):
            folder = write_cifar10(tmp_path / layout, 10, layout=layout)
            (folder / "SHA256SUMS").unlink()
            prints.append(locate("cifar10", tmp_path / layout).fingerprint)
        assert prints[0] == prints[1]

    def test_imports_no_torch(self) -> None:
        code = "import sys, common.data as d; d.locate('digits'); print('torch' in sys.modules, 'scipy' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False", "False"]

    def test_unknown_names_and_splits(self, tmp_path: Path) -> None:
        fails("unknown data set 'cifar': choose one of digits, mnist, cifar10, cifar100, svhn, stl10", "cifar", None)
        fails("mnist has no split 'holdout': choose one of official", "mnist", None, "holdout")
        fails(r"DATA_DIR .*/nowhere does not exist", "cifar10", tmp_path / "nowhere")
        fails(r"DATA_DIR .*/nowhere does not exist", "digits", tmp_path / "nowhere")

    @pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "svhn", "stl10"])
    def test_without_data_and_network_one_quick_line_names_three_ways(self, name: str, tmp_path: Path) -> None:
        started = time.monotonic()
        text = fails(rf"^{name} was not found .*\(1\) .*DATA_DIR.*\(2\) .*Hugging Face.*\(3\) .*quick", name, tmp_path)
        assert time.monotonic() - started < 5
        assert f"DATA_DIR {tmp_path} has no {name}/" in text

    def test_a_silent_network_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import socket

        with socket.socket() as listener:  # accepts connections, never answers
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
            monkeypatch.setattr("common.data.location.HUB_SECONDS", 0.3)
            started = time.monotonic()
            fails("was not found", "cifar10", None)
            assert time.monotonic() - started < 3


OFFICIAL_STATE = "does not have the expected md5"
CUSTOM_STATE = "does not have the expected sha256"


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


class TestDamage:
    FILES = (
        ("mnist", "train-labels-idx1-ubyte.gz"),
        ("cifar10", "data_batch_3.bin"),
        ("cifar100", "test.bin"),
        ("svhn", "test_32x32.mat"),
        ("stl10", "fold_indices.txt"),
    )

    @pytest.mark.parametrize(("name", "file"), FILES)
    def test_against_the_checksums(self, tmp_path: Path, name: str, file: str) -> None:
        path = WRITERS[name](tmp_path) / file
        content = path.read_bytes()
        path.write_bytes(b"")
        fails(rf"{file} (is empty|is not a whole gzip file)", name, tmp_path)
        path.write_bytes(content[:-7])
        fails(rf"{file} (does not have the expected sha256|is not a whole gzip file)", name, tmp_path)
        path.write_bytes(content)
        flip_bit(path)
        fails(rf"{file} (does not have the expected sha256|is not a whole gzip file)", name, tmp_path)
        path.unlink()
        fails(rf"has no {file.removesuffix('.gz')}", name, tmp_path)

    @pytest.mark.parametrize(("name", "file"), FILES)
    def test_wrong_format_with_fitting_checksums(self, tmp_path: Path, name: str, file: str) -> None:
        folder = WRITERS[name](tmp_path)
        for wrong in (b"not an image file at all", b"\x00" * 1000):
            (folder / file).write_bytes(gzip.compress(wrong) if file.endswith("gz") else wrong)
            write_checksums(folder)
            fails(rf"{file.removesuffix('.gz')} is damaged or in the wrong format", name, tmp_path)

    def test_without_own_checksums_the_official_ones_hold(self, tmp_path: Path) -> None:
        for name, writer in WRITERS.items():
            (writer(tmp_path) / "SHA256SUMS").unlink()
            fails(r"does not have the expected (md5|sha256) \(truncated or altered\)", name, tmp_path)

    def test_official_content_is_accepted_by_its_checksum(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = write_mnist(tmp_path, 20)
        (folder / "SHA256SUMS").unlink()
        layout = DATASETS["mnist"].layouts[0]
        parts = {
            role: tuple(
                replace(
                    file,
                    digest="md5:" + hashlib.md5(gzip.decompress((folder / f"{file.name}.gz").read_bytes())).hexdigest(),
                )
                for file in files
            )
            for role, files in layout.parts.items()
        }
        monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], layouts=(replace(layout, parts=parts),)))
        data = load("mnist", data_dir=tmp_path)
        assert (data.name, data.label) == ("mnist", "MNIST")

    @pytest.mark.parametrize("text", ["", "hello\n", "0123  data_batch_1.bin\n", "\xff\xfe"])
    def test_bad_checksum_files(self, tmp_path: Path, text: str) -> None:
        folder = write_cifar10(tmp_path, 10)
        (folder / "SHA256SUMS").write_bytes(text.encode("latin1"))
        with pytest.raises(UserError, match=r"SHA256SUMS (is empty|is not text|has a line)"):
            locate("cifar10", tmp_path)

    def test_unlisted_file(self, tmp_path: Path) -> None:
        folder = write_cifar10(tmp_path, 10)
        lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
        (folder / "SHA256SUMS").write_text("".join(lines[1:]))
        fails(r"data_batch_1.bin is not listed in SHA256SUMS", "cifar10", tmp_path)

    @pytest.mark.parametrize("label", [10, -1])
    def test_labels_out_of_range(self, tmp_path: Path, label: int) -> None:
        folder = write_cifar10(tmp_path, 10, layout="python")
        content = python2_pickle(np.zeros((2, 3072), np.uint8), [1, label], "labels")
        (folder / "data_batch_2").write_bytes(content)
        write_checksums(folder)
        fails(r"data_batch_2 is damaged or in the wrong format \(labels from", "cifar10", tmp_path)

    def test_a_pickle_that_tries_to_execute(self, tmp_path: Path) -> None:
        folder, proof = write_cifar10(tmp_path, 10, layout="python"), tmp_path / "proof"
        (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch " + str(proof).encode() + b"'\ntR.")
        write_checksums(folder)
        fails(r"data_batch_1 is not a plain array file \(it names os.system\)", "cifar10", tmp_path)
        assert not proof.exists()

    def test_a_pickle_of_another_shape(self, tmp_path: Path) -> None:
        folder = write_cifar10(tmp_path, 10, layout="python")
        for content in (b"].", b"}.", python2_pickle(np.zeros((2, 3072), np.uint8), [1], "labels")):
            (folder / "test_batch").write_bytes(content)
            write_checksums(folder)
            fails("test_batch is damaged or in the wrong format", "cifar10", tmp_path)


class TestArchives:
    def archive(self, tmp_path: Path, suffix: str = ".tar") -> Path:
        folder = write_cifar10(tmp_path, 10)
        path = tmp_path / "cifar10" / f"cifar-10-binary{suffix}"
        pack(folder, "cifar-10-batches-bin", path)
        return path

    @pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
    def test_truncated_and_foreign(self, tmp_path: Path, suffix: str) -> None:
        path = self.archive(tmp_path, suffix)
        content = path.read_bytes()
        for wrong in (b"", b"no archive", content[: len(content) // 2]):
            path.write_bytes(wrong)
            fails(rf"cifar-10-binary{suffix} is not a whole archive", "cifar10", tmp_path)

    def test_member_missing_or_altered(self, tmp_path: Path) -> None:
        path = self.archive(tmp_path, ".zip")
        with zipfile.ZipFile(path, "w") as target:
            target.writestr("cifar-10-batches-bin/data_batch_1.bin", b"x")
        fails("has no file data_batch_2.bin", "cifar10", tmp_path)
        with zipfile.ZipFile(path, "w") as target:
            for number in range(1, 6):
                target.writestr(f"cifar-10-batches-bin/data_batch_{number}.bin", b"x")
            target.writestr("test_batch.bin", b"x")
        fails("cifar-10-binary.zip:data_batch_1.bin does not have the expected sha256", "cifar10", tmp_path)

    @pytest.mark.parametrize("name", ["../escape.bin", "/absolute.bin", "a/../../b.bin"])
    @pytest.mark.parametrize("suffix", [".tar", ".zip"])
    def test_paths_outside_are_refused(self, tmp_path: Path, name: str, suffix: str) -> None:
        path = self.archive(tmp_path, suffix)
        if suffix == ".zip":
            with zipfile.ZipFile(path, "a") as target:
                target.writestr(name, b"x")
        else:
            with tarfile.open(path, "a") as target:
                member = tarfile.TarInfo(name)
                member.size = 1
                target.addfile(member, io.BytesIO(b"x"))
        fails("holds a file outside its own folder", "cifar10", tmp_path)
        assert not list(tmp_path.rglob("escape.bin"))

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
    def test_links_and_devices_are_refused(self, tmp_path: Path, kind: bytes) -> None:
        path, secret = self.archive(tmp_path), tmp_path / "secret"
        secret.write_bytes(b"secret")
        with tarfile.open(path, "w") as target:
            member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
            member.type, member.linkname = kind, str(secret)
            target.addfile(member)
        fails("data_batch_1.bin is a link or a device", "cifar10", tmp_path)

    def test_zip_links_are_refused(self, tmp_path: Path) -> None:
        path = self.archive(tmp_path, ".zip")
        with zipfile.ZipFile(path, "w") as target:
            member = zipfile.ZipInfo("cifar-10-batches-bin/data_batch_1.bin")
            member.external_attr = 0o120777 << 16
            target.writestr(member, "/etc/hostname")
        fails("data_batch_1.bin is a link or a device", "cifar10", tmp_path)

    def test_a_bomb_is_not_unpacked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("common.data.files.LIMIT", 1 << 20)
        (write_mnist(tmp_path, 10) / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(2 << 20)))
        fails("train-images-idx3-ubyte.gz unpacks to more than", "mnist", tmp_path)


class TestHub:
    def fill_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int = 50) -> Path:
        """A Hugging Face cache that holds a miniature under the pinned revision, and its checksums in the table."""
        import pyarrow as pa
        import pyarrow.parquet as pq
        from PIL import Image

        info = DATASETS[name]
        assert info.hub is not None
        folder = (
            tmp_path / "hub" / f"datasets--{info.hub.repository.replace('/', '--')}" / "snapshots" / info.hub.revision
        )
        parts = {}
        for number, (role, files) in enumerate(info.hub.parts.items()):
            images, labels = (
                draw_images(count, 28, 28, 1, number) if name == "mnist" else draw_images(count, 32, 32, 3, number)
            )
            cells = []
            for image in images:
                buffer = io.BytesIO()
                Image.fromarray(image.squeeze()).save(buffer, "PNG")
                cells.append({"bytes": buffer.getvalue(), "path": None})
            table = pa.table({info.hub.image_column: cells, info.hub.label_column: labels})
            path = folder / files[0].path
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)
            parts[role] = (replace(files[0], sha256=hashlib.sha256(path.read_bytes()).hexdigest()),)
        monkeypatch.setitem(DATASETS, name, replace(info, hub=replace(info.hub, parts=parts)))
        return folder

    @pytest.mark.parametrize("name", ["mnist", "cifar10"])
    def test_the_cache_is_used_without_network(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        self.fill_cache(tmp_path, monkeypatch, name)
        assert locate(name).kind == "hub"
        data = load(name)
        shape = (28, 28, 1) if name == "mnist" else (32, 32, 3)
        images, labels = draw_images(50, *shape, 0)
        assert np.array_equal(data.train.images, images) and np.array_equal(data.train.labels, labels)
        assert np.array_equal(data.test.images, draw_images(50, *shape, 1)[0])
        assert data.name == name and data.label == DATASETS[name].title

    def test_holdout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fill_cache(tmp_path, monkeypatch, "cifar10")
        data = load("cifar10", "holdout")
        images = draw_images(50, 32, 32, 3, 0)[0]
        assert np.array_equal(data.train.images, images[:40]) and np.array_equal(data.test.images, images[40:])

    def test_files_come_before_the_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fill_cache(tmp_path, monkeypatch, "mnist")
        write_mnist(tmp_path, 20)
        assert len(load("mnist", data_dir=tmp_path).train.images) == 20

    def test_altered_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = self.fill_cache(tmp_path, monkeypatch, "mnist")
        flip_bit(folder / "mnist/test-00000-of-00001.parquet")
        fails(r"test-00000-of-00001.parquet is truncated or altered", "mnist", None)


def test_the_table_is_complete() -> None:
    for name, info in DATASETS.items():
        assert info.name == name and info.licence and info.redistributable and info.source and info.contents
        for layout in info.layouts:
            assert {role for roles in info.splits.values() for role in roles} <= set(layout.parts)
        if info.hub:
            assert len(info.hub.revision) == 40 and set(info.hub.revision) <= set("0123456789abcdef")
        assert dataset_info(name) is info
    table = licence_table().splitlines()
    assert len(table) == 2 + len(DATASETS) and all(row.count("|") == 6 for row in table)
