"""Where data sets are searched and how they are downloaded, with a server on this machine."""

import functools
import gc
import hashlib
import http.server
import io
import re
import sys
import tarfile
import threading
from dataclasses import replace

import dataset_files as files
import numpy as np
import pytest

from kfc_numba.datasets import DatasetError, DatasetNotFoundError, catalog, download, load
from kfc_numba.datasets.download import Remote, fetch

# pooch leaves the connection of a refused answer to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


SYSTEM_FOLDERS = {name: entry.layout.system for name, entry in catalog._ENTRIES.items()}


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Nothing of this machine is found: no environment, no system folder, an empty cache."""
    monkeypatch.delenv("KFC_NUMBA_DATA", raising=False)
    for name, entry in catalog._ENTRIES.items():
        system = (str(tmp_path / "system"),) if entry.layout.system else ()
        isolated = replace(
            entry,
            layout=replace(entry.layout, system=system),
            remote=replace(entry.remote, addresses=("http://127.0.0.1:1/",)),
        )
        monkeypatch.setitem(catalog._ENTRIES, name, isolated)
    cache = tmp_path / "cache"
    monkeypatch.setattr("pooch.os_cache", lambda project: cache / project)
    return cache / "kfc_numba"


def write_marked(folder, mark):
    """Fashion-MNIST files whose first training label is `mark`."""
    arrays = files.mnist_arrays()
    arrays["y_train"][0] = mark
    files.write_mnist(folder, arrays)


def loaded_mark(name="fashion-mnist", *arguments, **options):
    return int(load(name, *arguments, **options).y_train[0])


# ---------------------------------------------------------------------------------- lookup


@pytest.mark.parametrize("below", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_folder_itself_or_a_usual_name_below_it(tmp_path, monkeypatch, by, below):
    arrays = files.write_mnist(tmp_path / "data" / below)
    if by == "environment":
        monkeypatch.setenv("KFC_NUMBA_DATA", str(tmp_path / "data"))
        data = load("mnist")
    else:
        data = load("mnist", tmp_path / "data")
    np.testing.assert_array_equal(data.x_test[..., 0], arrays["x_test"])


def test_order_of_places(tmp_path, monkeypatch, places):
    write_marked(places / "fashion-mnist", 4)
    assert loaded_mark() == 4
    write_marked(tmp_path / "system", 3)
    assert loaded_mark() == 3
    write_marked(tmp_path / "environment" / "FashionMNIST" / "raw", 2)
    monkeypatch.setenv("KFC_NUMBA_DATA", str(tmp_path / "environment"))
    assert loaded_mark() == 2
    write_marked(tmp_path / "environment" / "fashion-mnist", 5)
    assert loaded_mark() == 5
    write_marked(tmp_path / "argument", 1)
    assert loaded_mark("fashion-mnist", str(tmp_path / "argument")) == 1
    # An argument is an order: nothing else is taken in its place.
    empty = tmp_path / "empty"
    empty.mkdir()
    searched = f"searched: {empty}/fashion-mnist, {empty}/FashionMNIST/raw, {empty})"
    with pytest.raises(DatasetNotFoundError, match=re.escape(searched)):
        load("fashion-mnist", empty)
    # A folder of data sets need not hold this one, and an empty variable is none.
    monkeypatch.setenv("KFC_NUMBA_DATA", str(empty))
    assert loaded_mark() == 3
    monkeypatch.setenv("KFC_NUMBA_DATA", "")
    monkeypatch.chdir(tmp_path / "argument")
    assert loaded_mark() == 3


def test_folder_of_an_operating_systems_package(tmp_path, monkeypatch):
    """Debian's package, as a folder made here: its files, at its path below another root."""
    debian = "/usr/share/datasets/fashion-mnist"
    for name, folders in SYSTEM_FOLDERS.items():
        assert folders == ((debian,) if name == "fashion-mnist" else ()), name
    entry = catalog._ENTRIES["fashion-mnist"]
    system = (str(tmp_path / "none"), f"{tmp_path}{debian}")
    monkeypatch.setitem(
        catalog._ENTRIES,
        "fashion-mnist",
        replace(entry, layout=replace(entry.layout, system=system)),
    )
    with pytest.raises(DatasetNotFoundError, match=re.escape(f"searched: {', '.join(system)}, ")):
        load("fashion-mnist")
    write_marked(tmp_path / debian[1:], 7)
    assert loaded_mark() == 7
    # The other sets do not look there.
    with pytest.raises(DatasetNotFoundError, match="'mnist' not found"):
        load("mnist")


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_marked(tmp_path / "data", 6)
    assert loaded_mark("fashion-mnist", "~/data") == 6
    monkeypatch.setenv("KFC_NUMBA_DATA", "~/data")
    assert loaded_mark() == 6


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(DatasetNotFoundError, match=r"'svhn' not found: train_32x32\.mat, test_32"):
        load("svhn")
    with pytest.raises(DatasetNotFoundError, match=r"set KFC_NUMBA_DATA, or allow the download"):
        load("cifar-10")
    for download_too in (False, True):
        with pytest.raises(DatasetNotFoundError, match=r"folder is '.*/typo', which does not ex"):
            load("mnist", tmp_path / "typo", download=download_too)
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"folder is '.*/file', which is not a folder"):
        load("mnist", tmp_path / "file")
    monkeypatch.setenv("KFC_NUMBA_DATA", str(tmp_path / "typo"))
    with pytest.raises(DatasetNotFoundError, match=r"KFC_NUMBA_DATA is '.*/typo', which does not"):
        load("mnist")


def test_incomplete_folder_names_the_missing_files(tmp_path):
    write_marked(tmp_path / "data" / "fashion-mnist", 1)
    for kind in ("images-idx3", "labels-idx1"):
        (tmp_path / "data" / "fashion-mnist" / f"t10k-{kind}-ubyte.gz").unlink()
    missing = "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"
    with pytest.raises(DatasetNotFoundError, match=f"incomplete: .*fashion-mnist lacks {missing}"):
        load("fashion-mnist", tmp_path / "data")


def test_damaged_file_is_an_error_even_where_another_copy_exists(tmp_path, monkeypatch):
    write_marked(tmp_path / "system", 3)
    write_marked(tmp_path / "own", 2)
    damaged = tmp_path / "own" / "train-images-idx3-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    monkeypatch.setenv("KFC_NUMBA_DATA", str(tmp_path / "own"))
    with pytest.raises(DatasetError, match=re.escape(str(damaged))):
        load("fashion-mnist", download=True)


# -------------------------------------------------------------------------------- download


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        self.server.requested.append(self.path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Folder that is served, its address, and the paths asked for so far."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.requested = []
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/", running.requested
        running.shutdown()
        thread.join()
    gc.collect()


def md5_of(folder):
    return {
        path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())
    }


def test_download_once_and_find_it_later(server, places, monkeypatch, tmp_path):
    folder, address, requested = server
    arrays = files.write_mnist(folder)
    remote = Remote((address + "gone/", address), md5_of(folder))
    monkeypatch.setitem(
        catalog._ENTRIES, "mnist", replace(catalog._ENTRIES["mnist"], remote=remote)
    )
    with pytest.raises(DatasetNotFoundError):
        load("mnist")
    assert requested == []
    data = load("mnist", download=True)
    np.testing.assert_array_equal(data.x_train[..., 0], arrays["x_train"])
    np.testing.assert_array_equal(data.y_test, arrays["y_test"])
    assert md5_of(places / "mnist") == remote.md5
    # The first address had none of the four files, the second all of them.
    assert sum(path.startswith("/gone/") and "idx" in path for path in requested) >= 4
    requested.clear()
    assert load("mnist").name == load("mnist", download=True).name == "mnist"
    assert requested == []
    (tmp_path / "other").mkdir()
    assert load("mnist", tmp_path / "other", download=True).name == "mnist"
    assert requested == []


def test_download_of_other_bytes_is_refused_and_leaves_nothing(server, places):
    folder, address, _ = server
    (folder / "train_32x32.mat").write_bytes(b"not what was published")
    remote = Remote((address,), {"train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373"})
    with pytest.raises(DatasetError, match=r"'svhn': train_32x32\.mat could not be downloaded .*h"):
        fetch("svhn", remote, "svhn")
    assert list((places / "svhn").iterdir()) == []


def test_unreachable_address_is_named():
    with pytest.raises(DatasetError, match=r"could not be downloaded \(http://127\.0\.0\.1:1/"):
        load("svhn", download=True)


def test_cache_that_cannot_be_written(places):
    places.parent.mkdir()
    places.touch()
    with pytest.raises(DatasetError, match=f"'svhn' cannot be stored in {places / 'svhn'}"):
        fetch("svhn", catalog._ENTRIES["svhn"].remote, "svhn")


def archive(folder, entries):
    """A tar.gz of (path, content or link target) pairs."""
    with tarfile.open(folder / "set.tar.gz", "w:gz") as tar:
        for path, content in entries:
            entry = tarfile.TarInfo(path)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


MEMBERS = ("set/one.bin", "set/two.bin")


def test_archive_gives_its_members_and_nothing_else(server, places):
    folder, address, _ = server
    evil = [("../evil", b"x"), ("/evil", b"x"), ("set/../../evil", b"x"), ("set/link", "/etc")]
    archive(folder, [*evil, ("set/one.bin", b"1"), ("set/three", b"3"), ("set/two.bin", b"22")])
    target = fetch("set", Remote((address,), md5_of(folder), MEMBERS), "set")
    assert target == places / "set"
    found = {path.name: path.read_bytes() for path in target.iterdir()}
    assert found == {"one.bin": b"1", "two.bin": b"22"}
    assert [path.name for path in places.rglob("*evil*")] == []


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (("set/2.bin", b"22"), r"lacks set/two\.bin"),
        (("set/two.bin", "/etc/hostname"), r"lacks set/two\.bin"),
    ],
)
def test_archive_without_a_member_leaves_nothing(server, places, second, message):
    folder, address, _ = server
    archive(folder, [("set/one.bin", b"1"), second])
    with pytest.raises(DatasetError, match=message):
        fetch("set", Remote((address,), md5_of(folder), MEMBERS), "set")
    assert list((places / "set").iterdir()) == []


def test_damaged_archive_leaves_nothing(server, places):
    folder, address, _ = server
    archive(folder, [("set/one.bin", bytes(range(256)) * 400), ("set/two.bin", b"2")])
    path = folder / "set.tar.gz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (whole[: len(whole) // 2], whole[:40], b"plain text", b"", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"set\.tar\.gz"):
            fetch("set", Remote((address,), md5_of(folder), MEMBERS), "set")
        assert list((places / "set").iterdir()) == []


def test_without_pooch_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"'mnist' needs pooch.*data.*kfc_numba\[data\]"):
        load("mnist", download=True)
    with pytest.raises(DatasetNotFoundError, match="'mnist' not found"):
        load("mnist")
    write_marked(tmp_path / "data", 8)
    assert loaded_mark("mnist", tmp_path / "data", download=True) == 8
    assert download.cache_folder() is None


def test_every_set_has_checksums_for_the_files_it_needs():
    for name, entry in catalog._ENTRIES.items():
        remote = entry.remote
        assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in remote.md5.values()), name
        delivered = [path.rpartition("/")[2] for path in remote.members or remote.md5]
        for spellings in entry.layout.files:
            assert set(spellings) & set(delivered), (name, spellings)
