"""Photos against references: torchvision's data sets, PIL's pixels, torchvision's crops; downloads, files and disks
that are not what they should be."""
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Mirror
from PIL import Image
from torch import nn
from torchvision import transforms
from torchvision.datasets import Imagenette, OxfordIIITPet, utils
from torchvision.transforms import functional as pictures

from course_lib import SGD, Learner, accuracy
from course_lib.support import photos
from course_lib.support.files import DamagedFileError, DataError, DownloadError
from course_lib.support.photos import (
    CenterCrop, IMAGENET_MEAN, IMAGENET_STD, RandomResizedCrop, decoded, denormalise, resized_crops)
from course_lib.transfer import imagenette, pets
from tiny import every_device

BREEDS = ["Abyssinian", "american_bulldog", "Bengal"]
WNIDS = ["n01440764", "n02102040"]
SMALL = {"size": 16, "large": 24, "batch_size": 8, "device": "cpu"}
MAKERS = {"pets": pets, "imagenette": imagenette}
HOMES = {"pets": "oxford-iiit-pet", "imagenette": "imagenette2-160"}


def jpeg(number):
    "A small photo, no two alike: lying or standing, one of them without colours."
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    picture = coarse.resize((40 + number % 7, 30 + number % 5) if number % 2 else (29, 41), Image.BICUBIC)
    buffer = io.BytesIO()
    (picture.convert("L") if number == 5 else picture).save(buffer, "JPEG")
    return buffer.getvalue()


def archive(files):
    "A .tar.gz of files: name -> bytes."
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def archives():
    "The archives of both data sets, with 18 + 6 photos each: name -> bytes."
    images, lists = {}, {"trainval": [], "test": []}
    for i in range(24):
        label, split = i % 3, "trainval" if i < 18 else "test"
        images[f"images/{BREEDS[label]}_{i}.jpg"] = jpeg(i)
        lists[split].append(f"{BREEDS[label]}_{i} {label + 1} 1 1\n")
    classes = {f"imagenette2-160/{'train' if i < 18 else 'val'}/{WNIDS[i % 2]}/{WNIDS[i % 2]}_{i}.JPEG": jpeg(100 + i)
               for i in range(24)}
    annotations = {f"annotations/{split}.txt": "".join(lines).encode() for split, lines in lists.items()}
    return {"images.tar.gz": archive(images), "annotations.tar.gz": archive(annotations),
            "imagenette2-160.tgz": archive(classes)}


@pytest.fixture
def server(archives, monkeypatch):
    "torchvision's addresses and hashes of the archives, pointed at this machine."
    mirror = Mirror({})
    mirror.archives = {f"/{name}": content for name, content in archives.items()}
    where = lambda name: (mirror.url + name, hashlib.md5(archives[name]).hexdigest())
    for name in ("no_proxy", "NO_PROXY"): monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", (where("images.tar.gz"), where("annotations.tar.gz")))
    monkeypatch.setattr(Imagenette, "_ARCHIVES", {"160px": where("imagenette2-160.tgz")})
    monkeypatch.setattr(photos, "N_PHOTOS", {"pets": 24, "imagenette": 24})
    monkeypatch.setattr(photos, "ARCHIVE_BYTES", {name: len(content) for name, content in archives.items()})
    yield mirror
    mirror.close()


@pytest.fixture
def opened(monkeypatch):
    "The pictures that PIL opens from now on."
    names, before = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest: names.append(str(path)) or before(path, *rest))
    return names


@pytest.fixture(params=list(MAKERS))
def name(request): return request.param


def files_under(folder, pattern="*"):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob(pattern) if p.is_file())


def torchvisions(name, root):
    "torchvision's own two data sets in that folder."
    if name == "pets": return [OxfordIIITPet(root, split) for split in ("trainval", "test")]
    return [Imagenette(root, split, "160px") for split in ("train", "val")]


def key(image): return np.asarray(image).tobytes()


def test_images_and_targets_are_torchvisions(server, tmp_path, name):
    dls = MAKERS[name](tmp_path, **SMALL)
    whole = transforms.Compose([transforms.Resize(24), transforms.CenterCrop(24), transforms.PILToTensor()])
    pairs = [sorted((key(whole(image.convert("RGB"))), target) for image, target in part)
             for part in torchvisions(name, tmp_path)]
    ours = [sorted((key(x), y.item()) for loader in loaders for x, y in zip(loader.x, loader.y))
            for loaders in ((dls.train, dls.valid), (dls.test,))]
    assert ours == pairs
    assert ([len(loader.x) for loader in (dls.train, dls.valid, dls.test)] == [15, 3, 6]
            and dls.train.x.dtype == torch.uint8)
    assert dls.name == name and dls.classes == (["Abyssinian", "American Bulldog", "Bengal"] if name == "pets"
                                                else ["tench", "English springer"])
    for xb, yb in (next(iter(loader)) for loader in (dls.train, dls.valid, dls.test)):
        assert (xb.shape[1:] == (3, 16, 16) and xb.dtype == torch.float32 and yb.dtype == torch.int64
                and len(xb) == len(yb))


def test_a_decoded_photo_is_pils(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(7))
    image = Image.open(path).convert("RGB")
    wide, high = image.size
    assert wide > high
    image = image.resize((24 * wide // high, 24), Image.BILINEAR)
    left = round((image.width - 24) / 2)
    assert key(decoded([path], tmp_path, 24)[0].permute(1, 2, 0).contiguous()) == key(
        image.crop((left, 0, left + 24, 24)))


def test_nothing_is_decoded_or_fetched_twice(server, tmp_path, name, opened, capsys):
    dls = MAKERS[name](tmp_path, **SMALL)
    assert len(opened) == 24 and len(set(opened)) == 24
    said = capsys.readouterr().out.splitlines()
    assert (said[0].startswith(f"{name}: downloads") and "decoded at 24×24" in said[0]
            and said[-1].startswith(f"{name}: decodes 24 photos"))
    n_requests = len(server.requests)
    for _ in range(2): assert sum(len(yb) for loader in (dls.train, dls.valid, dls.test) for _, yb in loader) == 24
    again = MAKERS[name](tmp_path, **SMALL, n_valid=5, seed=3, download=False)
    assert len(opened) == 24 and len(server.requests) == n_requests and capsys.readouterr().out == ""
    # the split is the same for every seed
    assert torch.equal(again.valid.x[:3], dls.valid.x) and len(again.train.x) == 13
    assert files_under(tmp_path, "*.part") == [] and len(files_under(tmp_path, "*.npy")) == 1


def test_the_decoded_file_is_read_by_numpy_and_not_changed(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(1))
    images = decoded([path], tmp_path, 24)
    file, = tmp_path.glob("*.npy")
    assert np.load(file).shape == (1, 3, 24, 24) and file.stat().st_size == 128 + 3 * 24 * 24
    before = file.read_bytes()
    images.zero_()
    assert file.read_bytes() == before and decoded([path], tmp_path, 24).any()


def test_a_folder_that_changes_is_decoded_anew(server, tmp_path, opened):
    first = pets(tmp_path, **SMALL)
    changed = tmp_path / "oxford-iiit-pet" / "images" / f"{BREEDS[0]}_18.jpg"  # the first of the test split
    changed.write_bytes(jpeg(77))
    second = pets(tmp_path, **SMALL)
    assert len(opened) == 48 and len(files_under(tmp_path, "*.npy")) == 1  # yesterday's file is gone
    assert not torch.equal(first.test.x[0], second.test.x[0]) and torch.equal(first.train.x, second.train.x)
    pets(tmp_path, **SMALL | {"large": 20})
    assert len(opened) == 72 and len(files_under(tmp_path, "*.npy")) == 2  # another size has a file of its own
    pets(tmp_path, **SMALL)
    assert len(opened) == 72


def test_a_photo_replaced_by_one_of_equal_size_is_decoded_anew(tmp_path):
    first, second = jpeg(1), jpeg(3)
    size = max(map(len, (first, second)))
    path = tmp_path / "photo.jpg"
    path.write_bytes(first.ljust(size, b"\0"))  # what follows a JPEG's end counts for nothing
    before, written = decoded([path], tmp_path, 24).clone(), path.stat().st_mtime_ns
    path.write_bytes(second.ljust(size, b"\0"))
    os.utime(path, ns=(written + 10**9,) * 2)  # however fast this test is
    assert path.stat().st_size == size and not torch.equal(decoded([path], tmp_path, 24), before)


@pytest.mark.parametrize("turned", [False, True], ids=["1 x 60,000", "60,000 x 1"])
@pytest.mark.parametrize("short", [1, 5])
def test_a_picture_as_thin_as_a_thread_needs_no_giant_in_between(tmp_path, monkeypatch, turned, short):
    "Its middle is all that is kept; resized as a whole, 1 x 60,000 pixels would be 1,440,000 x 24."
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *rest, **options: (
        sizes.append(tuple(size)), resize(self, size, *rest, **options))[1])
    long = 60_000
    line = np.full((short, long, 3), (250, 10, 10), np.uint8)
    line[:, long // 2 - short:long // 2 + short] = (10, 10, 250)  # the middle is blue, and all else red
    path = tmp_path / "thread.png"
    Image.fromarray(line.transpose(1, 0, 2) if turned else line).save(path)
    image = decoded([path], tmp_path, 24)[0]
    assert image.shape == (3, 24, 24) and (image == torch.tensor([10, 10, 250])[:, None, None]).all()
    assert sizes and max(width * height for width, height in sizes) <= 10 * 24 * 24


@pytest.mark.parametrize("shape", [(30, 299), (299, 30), (7, 57), (24, 1000)])
def test_a_long_picture_is_torchvisions_to_within_a_pixel(tmp_path, shape):
    ramp = np.broadcast_to(np.linspace(0, 255, max(shape)), (min(shape), max(shape)))
    image = Image.fromarray((ramp if shape[1] > shape[0] else ramp.T).astype(np.uint8)).convert("RGB")
    image.save(tmp_path / "long.png")
    whole = pictures.pil_to_tensor(pictures.center_crop(pictures.resize(image, 24), 24))
    step = 255 / (24 * max(shape) / min(shape))  # from one pixel to the next
    apart = (decoded([tmp_path / "long.png"], tmp_path, 24)[0].float() - whole.float()).abs().max()
    assert apart <= step + 1  # and rounding


def test_another_selection_is_another_file(tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(4)]
    for i, path in enumerate(paths): path.write_bytes(jpeg(i))
    whole, last, turned = (decoded(paths, tmp_path, 24).clone(), decoded(paths[2:], tmp_path, 24).clone(),
                           decoded(paths[::-1], tmp_path, 24))
    assert torch.equal(whole[2:], last) and torch.equal(whole.flip(0), turned)


@pytest.mark.parametrize("how", [lambda raw: raw[:-10], lambda raw: b"", lambda raw: b"nonsense" * 30,
                                 lambda raw: raw.replace(b"24, 24", b"24, 12")])
def test_a_decoded_file_that_is_damaged_is_made_again(tmp_path, how):
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(1))
    before = decoded([path], tmp_path, 24).clone()
    file, = tmp_path.glob("*.npy")
    file.write_bytes(how(file.read_bytes()))
    assert torch.equal(decoded([path], tmp_path, 24), before)


@pytest.mark.parametrize("fault, message",
                         [("403", "403"), ("wrong bytes", "hash differs"), ("break off", "broke off after"),
                          ("hang", "timed out, no answer in 3 s"), ("hang halfway", "timed out")])
def test_a_download_that_goes_wrong_leaves_nothing(server, tmp_path, name, fault, message):
    server.fault = fault
    with pytest.raises(DownloadError, match=message) as caught: MAKERS[name](tmp_path / "new", **SMALL)
    assert server.url in str(caught.value) and "\n" not in str(caught.value)
    assert list((tmp_path / "new").iterdir()) == []


def test_nobody_there_and_nothing_to_be_downloaded(server, tmp_path, name, monkeypatch, capsys):
    with pytest.raises(DownloadError, match="nothing was to be downloaded"):
        MAKERS[name](tmp_path / "new", **SMALL, download=False)
    assert server.requests == [] and not (tmp_path / "new").exists()
    nobody = [("http://127.0.0.1:9/images.tar.gz", "")]
    monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", nobody)
    monkeypatch.setattr(Imagenette, "_ARCHIVES", {"160px": ("http://127.0.0.1:9/imagenette2-160.tgz", "")})
    with pytest.raises(DownloadError, match="cannot be reached"): MAKERS[name](tmp_path, **SMALL)
    assert files_under(tmp_path) == [] and capsys.readouterr().out == ""


def test_the_second_archive_fails(server, tmp_path):
    del server.archives["/annotations.tar.gz"]  # the server then breaks off without an answer
    with pytest.raises(DownloadError, match="annotations.tar.gz"): pets(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_while_unpacking_leaves_nothing(server, tmp_path, name, monkeypatch):
    unpack = utils.extract_archive

    def interrupted(archive, folder):
        unpack(archive, folder)
        raise KeyboardInterrupt
    monkeypatch.setattr(utils, "extract_archive", interrupted)
    with pytest.raises(KeyboardInterrupt): MAKERS[name](tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(utils, "extract_archive", unpack)
    assert MAKERS[name](tmp_path, **SMALL).name == name


def shelf(name, root): return root / HOMES["pets"] if name == "pets" else root


def put_archives(name, root, archives):
    "The archives of one data set, where torchvision too would look for them."
    shelf(name, root).mkdir(exist_ok=True)
    for file, content in archives.items():
        if file.startswith("imagenette") == (name == "imagenette"): (shelf(name, root) / file).write_bytes(content)


RACE = """
import json, sys, time
from pathlib import Path
from torchvision.datasets import Imagenette, OxfordIIITPet
from course_lib import transfer
from course_lib.support import photos

name, root, meeting, me, (pets, imagenette), options = json.loads(sys.argv[1])
OxfordIIITPet._RESOURCES, Imagenette._ARCHIVES = pets, imagenette
photos.N_PHOTOS = {"pets": 24, "imagenette": 24}
unpack, end = photos._unpack, time.monotonic() + 100

def together(source, part):
    new = unpack(source, part)
    (Path(meeting) / me).touch()
    while len(list(Path(meeting).iterdir())) < 3 and time.monotonic() < end: time.sleep(.01)
    return new

photos._unpack = together  # all three have unpacked before one of them moves
dls = getattr(transfer, name)(root, **options)
print(len(dls.train.x), dls.train.x.sum().item(), dls.test.y.tolist())
"""


@pytest.mark.parametrize("name, with_home", [("pets", True), ("imagenette", False), ("imagenette", True)])
def test_three_processes_that_unpack_at_once_all_get_their_photos(server, tmp_path, archives, name, with_home):
    root, meeting = tmp_path / "data", tmp_path / "meeting"
    for folder in (root, meeting): folder.mkdir()
    put_archives(name, root, archives)
    if with_home: (root / HOMES[name]).mkdir(exist_ok=True)  # the archives of pets lie in it anyway
    known = OxfordIIITPet._RESOURCES, Imagenette._ARCHIVES
    running = [subprocess.Popen([sys.executable, "-c", RACE,
                                 json.dumps([name, str(root), str(meeting), str(i), known, SMALL])],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for i in range(3)]
    said = [process.communicate(timeout=200) for process in running]
    assert [process.returncode for process in running] == [0] * 3, said[0][1] + said[1][1] + said[2][1]
    assert len({out.splitlines()[-1] for out, _ in said}) == 1 and len(list(meeting.iterdir())) == 3
    assert not list(root.rglob("*.part")) and len(files_under(root, "*.npy")) == 1


def test_a_folder_that_another_process_is_filling_is_looked_at_again(server, tmp_path):
    pets(tmp_path, **SMALL)
    home = tmp_path / HOMES["pets"]
    (home / "annotations").rename(tmp_path / "on its way")
    arrives = threading.Timer(.05, lambda: (tmp_path / "on its way").rename(home / "annotations"))
    arrives.start()
    try: assert len(pets(tmp_path, **SMALL).train.x) == 15
    finally: arrives.join()


def test_archives_that_are_there_are_not_fetched(server, tmp_path, name, archives):
    put_archives(name, tmp_path, archives)
    assert len(MAKERS[name](tmp_path, **SMALL).train.x) == 15 and server.requests == []


def test_an_archive_that_is_damaged_is_named_and_left(server, tmp_path, name, archives):
    put_archives(name, tmp_path, {file: content[:-10] for file, content in archives.items()})
    before = files_under(tmp_path)
    with pytest.raises(DamagedFileError, match=r"(images.tar.gz|imagenette2-160.tgz) is not the archive.*Delete it"):
        MAKERS[name](tmp_path, **SMALL)
    assert files_under(tmp_path) == before and server.requests == []


def test_an_archive_that_is_none(server, tmp_path, monkeypatch):
    server.archives["/imagenette2-160.tgz"] = b"<html></html>"
    monkeypatch.setattr(Imagenette, "_ARCHIVES",
                        {"160px": (f"{server.url}imagenette2-160.tgz", hashlib.md5(b"<html></html>").hexdigest())})
    with pytest.raises(DamagedFileError, match="no archive that can be unpacked"): imagenette(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def first_photo(name, root):
    return sorted((root / HOMES[name]).rglob("*.jpg" if name == "pets" else "*.JPEG"))[0]


@pytest.mark.parametrize("how",
                         [lambda raw: raw[:len(raw) // 2], lambda raw: b"", lambda raw: b"<html>403</html>" * 99])
def test_a_damaged_photo_is_named(server, tmp_path, name, how):
    MAKERS[name](tmp_path, **SMALL)
    for file in tmp_path.rglob("*.npy"): file.unlink()
    photo = first_photo(name, tmp_path)
    photo.write_bytes(how(photo.read_bytes()))
    before = files_under(tmp_path)
    with pytest.raises(DamagedFileError,
                       match=f"{photo.name} cannot be read.*Delete .*{HOMES[name]}; it is then fetched again"):
        MAKERS[name](tmp_path, **SMALL)
    assert files_under(tmp_path) == before
    shutil.rmtree(tmp_path / HOMES[name])
    assert len(MAKERS[name](tmp_path, **SMALL).train.x) == 15  # the advice helps


def empty(folder):
    for path in folder.rglob("*.[jJ][pP]*[gG]"): path.unlink()


FOLDERS = {"no photos": empty, "one photo less": lambda home: next(home.rglob("*_9.*")).unlink(),
           "no list": lambda home: shutil.rmtree(home / ("annotations" if (home / "annotations").exists() else "val")),
           "an empty list": lambda home: [path.write_text("") for path in home.rglob("*.txt")] or empty(home),
           "a list of something else": lambda home: ([path.write_text("a b") for path in home.rglob("*.txt")]
                                                     or shutil.rmtree(next(home.rglob("n0*"))))}


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_is_not_whole(server, tmp_path, name, what):
    MAKERS[name](tmp_path, **SMALL)
    FOLDERS[what](tmp_path / HOMES[name])
    before, n_requests = files_under(tmp_path), len(server.requests)
    with pytest.raises(DamagedFileError, match=f"{HOMES[name]}.*Delete .*{HOMES[name]}"):
        MAKERS[name](tmp_path, **SMALL)
    assert files_under(tmp_path) == before and len(server.requests) == n_requests


def test_an_interruption_while_decoding_leaves_nothing(tmp_path, monkeypatch):
    paths = [tmp_path / f"{i}.jpg" for i in range(9)]
    for i, path in enumerate(paths): path.write_bytes(jpeg(i))
    before, decode = files_under(tmp_path), photos._decode

    def interrupted(path, large):
        assert not files_under(tmp_path, "*.npy")  # not there before it is whole
        if path == paths[6]: raise KeyboardInterrupt
        return decode(path, large)
    monkeypatch.setattr(photos, "_decode", interrupted)
    with pytest.raises(KeyboardInterrupt): decoded(paths, tmp_path, 24)
    assert files_under(tmp_path) == before


def test_no_room(server, tmp_path, monkeypatch, name):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("usage", (), {"free": 10_000}))
    with pytest.raises(DownloadError, match="MB are needed.*COURSE_DATA"): MAKERS[name](tmp_path, **SMALL)
    assert files_under(tmp_path) == []
    monkeypatch.undo()
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(1))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("usage", (), {"free": 1000}))
    with pytest.raises(DataError, match="cannot be written to.*are needed"): decoded([path], tmp_path, 24)


def test_a_disk_that_is_full(tmp_path):
    "A limit on the size of files stands in for it: the write fails midway, with the operating system's own error."
    for i in range(50): (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    before = files_under(tmp_path)
    script = f"""
import resource, signal
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
from {photos.__name__} import decoded
from course_lib.support.files import DataError
folder = Path({str(tmp_path)!r})
try: decoded(sorted(folder.glob("*.jpg")), folder, 24)
except DataError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "cannot be written to" in done.stdout and "make room" in done.stdout, done.stderr
    assert files_under(tmp_path) == before


def test_a_folder_that_cannot_be_written_to(server, tmp_path, name):
    (tmp_path / "file").write_text("I am no folder.")
    with pytest.raises(DownloadError, match="cannot be written to.*COURSE_DATA"):
        MAKERS[name](tmp_path / "file", **SMALL)
    assert (tmp_path / "file").read_text() == "I am no folder." and server.requests == []


@pytest.mark.parametrize("wrong, message", [
    ({"size": 0}, "size must be"), ({"size": 25}, "size must be at most large"), ({"large": 1.5}, "large must be"),
    ({"batch_size": 0}, "batch_size"), ({"n_valid": 0}, "n_valid must be"),
    ({"n_valid": 18}, "n_valid must be at most 17")])
def test_bad_arguments_are_refused(server, tmp_path, name, wrong, message):
    with pytest.raises(ValueError, match=message): MAKERS[name](tmp_path, **SMALL | wrong)
    assert server.requests == [] or wrong == {"n_valid": 18}


def test_imagenettes_archive_suits_the_size(monkeypatch, tmp_path):
    monkeypatch.setattr(photos, "photo_loaders", lambda classes, source, *rest: source.home.name)
    assert [imagenette(tmp_path, large=large) for large in (160, 161, 320, 321)] == [
        "imagenette2-160", "imagenette2-320", "imagenette2-320", "imagenette2"]


def test_a_learner_trains_on_photos(server, tmp_path, one_thread):
    torch.manual_seed(0)
    dls = pets(tmp_path, **SMALL)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(8, len(dls.classes)))
    before = [p.detach().clone() for p in model.parameters()]
    learn = Learner(model, dls, nn.functional.cross_entropy, SGD, metrics=[accuracy])
    learn.fit(1, lr=.1)
    assert np.isfinite(learn.results["valid_loss"]) and 0 <= learn.results["accuracy"] <= 1
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters()))


def test_a_seed_repeats_an_epoch(server, tmp_path):
    def epoch(seed, order_seed=0):
        torch.manual_seed(seed)
        dls = imagenette(tmp_path, **SMALL, seed=order_seed)
        xs, ys = zip(*dls.train)
        return torch.cat(xs), torch.cat(ys)
    x, y = epoch(1)
    assert torch.equal(epoch(1)[0], x) and torch.equal(epoch(1)[1], y)
    assert not torch.equal(epoch(2)[0], x) and torch.equal(epoch(2)[1], y)  # other boxes in the same order
    assert not torch.equal(epoch(1, order_seed=1)[0], x)


@pytest.mark.parametrize("shape", [(40, 60), (33, 20)])
@pytest.mark.parametrize("size", [16, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resized_crops_equal_torchvision(shape, size, dtype):
    torch.manual_seed(0)
    n, (height, width) = 40, shape
    x = torch.rand(n, 3, *shape, dtype=dtype)
    sides = torch.stack([torch.randint(1, height + 1, (n,)), torch.randint(1, width + 1, (n,))])
    place = torch.stack([torch.randint(10**6, (n,)) % (height - sides[0] + 1),
                         torch.randint(10**6, (n,)) % (width - sides[1] + 1)])
    flips = torch.rand(n) < .5
    boxes = torch.cat([place, sides])
    theirs = torch.stack([pictures.resized_crop(x[i], *boxes[:, i].tolist(), (size, size), antialias=False)
                          for i in range(n)])
    theirs[flips] = theirs[flips].flip(-1)
    torch.testing.assert_close(resized_crops(x, boxes, size, flips), theirs,
                               atol=2e-5 if dtype == torch.float32 else 1e-9, rtol=0)


@pytest.mark.parametrize("n", [1, 16, 37])
def test_the_transforms_are_torchvisions_steps(n):
    torch.manual_seed(0)
    xb, yb = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.arange(n)
    torch.manual_seed(1)
    crop = RandomResizedCrop(20, device="cpu")
    boxes, flips = crop.boxes(n, 32, 32), crop.flips(n)
    torch.manual_seed(1)
    ours, targets = crop(xb, yb)
    normalise = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    for image, box, flip, mine in zip(xb, boxes.T.int().tolist(), flips, ours):
        theirs = normalise(pictures.resized_crop(image / 255, *box, (20, 20), antialias=False))
        torch.testing.assert_close(mine, theirs.flip(-1) if flip else theirs, atol=1e-4, rtol=0)
    assert torch.equal(targets, yb) and ours.dtype == torch.float32
    middle, _ = CenterCrop(20, share=20 / 32, device="cpu")(xb, yb)
    torch.testing.assert_close(middle, normalise(pictures.center_crop(xb / 255, 20)), atol=1e-4, rtol=0)
    torch.testing.assert_close(denormalise(middle), pictures.center_crop(xb / 255, 20), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape, scale, ratio", [((200, 200), (.35, 1), (3 / 4, 4 / 3)),
                                                 ((120, 240), (.08, .5), (.5, 2)), ((200, 100), (.9, 1), (1, 1))])
def test_boxes_are_drawn_as_torchvision_draws_them(shape, scale, ratio):
    torch.manual_seed(0)
    n = 4000
    ours = RandomResizedCrop(8, scale, ratio, device="cpu").boxes(n, *shape)
    image = torch.empty(1, *shape)
    theirs = torch.tensor([transforms.RandomResizedCrop.get_params(image, scale, ratio) for _ in range(n)]).T
    assert ((ours[:2] >= 0).all() and (ours[0] + ours[2] <= shape[0]).all() and (ours[1] + ours[3] <= shape[1]).all()
            and torch.equal(ours, ours.round()))
    for mine, other in zip(ours, theirs.float()):  # the same distribution: deciles within what 4,000 draws leave open
        deciles = torch.linspace(.1, .9, 9)
        torch.testing.assert_close(mine.quantile(deciles), other.quantile(deciles), atol=.03 * max(shape), rtol=0)


def test_half_of_the_images_are_mirrored_or_none():
    torch.manual_seed(0)
    ramp = torch.arange(8, dtype=torch.uint8).expand(1000, 3, 8, 8)
    leftwards = lambda flip: (lambda x: x[:, 0, 0, 0] > x[:, 0, 0, -1])(
        RandomResizedCrop(4, flip=flip, device="cpu")(ramp, torch.zeros(1000))[0])
    assert .45 < leftwards(True).float().mean() < .55 and not leftwards(False).any()


@pytest.mark.parametrize("make, message", [
    (lambda: RandomResizedCrop(0), "size must be"), (lambda: RandomResizedCrop(2.5), "size must be"),
    (lambda: RandomResizedCrop(8, scale=(.5, 1.5)), "scale"), (lambda: RandomResizedCrop(8, scale=(0, 1)), "scale"),
    (lambda: RandomResizedCrop(8, scale=.5), "scale: expected two numbers"),
    (lambda: RandomResizedCrop(8, ratio=(2, 1)), "ratio"),
    (lambda: RandomResizedCrop(8, ratio=(1, float("inf"))), "ratio"),
    (lambda: RandomResizedCrop(8, ratio=(float("nan"), 1)), "ratio"), (lambda: CenterCrop(8, share=0), "share"),
    (lambda: CenterCrop(8, share=1.1), "share"),
    (lambda: CenterCrop(8)(torch.zeros(2, 3, 9, 9), torch.zeros(2)), "uint8"),
    (lambda: CenterCrop(8)(torch.zeros(2, 1, 9, 9).byte(), torch.zeros(2)), "uint8"),
    (lambda: resized_crops(torch.zeros(2, 3, 9, 9).byte(), torch.ones(4, 2), 8), "float images"),
    (lambda: resized_crops(torch.zeros(2, 3, 9, 9), torch.ones(4, 3), 8), "boxes")])
def test_bad_crops_are_refused(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_what_this_module_says_of_sizes_and_torchvision_of_names():
    "A name that torchvision renames would otherwise be noticed only by somebody who downloads."
    urls = [url for url, _ in (*OxfordIIITPet._RESOURCES, *Imagenette._ARCHIVES.values())]
    assert {Path(url).name for url in urls} == set(photos.ARCHIVE_BYTES)


@every_device
def test_crops_are_the_same_on_every_device(device):
    x, y = torch.randint(0, 256, (6, 3, 40, 30), dtype=torch.uint8), torch.arange(6)
    boxes = torch.tensor([[0, 0, 40, 30], [3, 7, 30, 20], [10, 5, 8, 9], [39, 0, 1, 30], [15, 2, 16, 16],
                          [0, 0, 1, 1]]).T
    crops, targets = CenterCrop(16, device=device)(x, y)
    assert crops.device.type == targets.device.type == device
    torch.testing.assert_close(crops.cpu(), CenterCrop(16, device="cpu")(x, y)[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(resized_crops(x.float().to(device), boxes.to(device), 8).cpu(),
                               resized_crops(x.float(), boxes, 8), rtol=1e-4, atol=1e-2)
    torch.manual_seed(0)
    one = RandomResizedCrop(16, device=device)(x, y)[0]
    torch.manual_seed(0)
    assert torch.equal(one, RandomResizedCrop(16, device=device)(x, y)[0]) and one.shape == (6, 3, 16, 16)
