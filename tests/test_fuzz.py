"""Damaged and hostile files of every format that users hand over: read, or refused in one short sentence, and quickly.

60 damaged files of each format by default; `SEMPLES_FUZZ=500 python -m pytest tests/test_fuzz.py -s` tries 500 and
prints the slowest, the longest message and the memory of each format.
"""

import io
import json
import os
import pickle
import signal
import struct
import sys
import time
import warnings
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")

COUNT = int(os.environ.get("SEMPLES_FUZZ", "60"))
SECONDS, MEGABYTES, CHARACTERS = 1.0, 1000, 500
PRELOADED = (
    "torch",
    "open_clip",
    "cv2",
    "PIL.Image",
    "tqdm",
    "semples_plugin.prompts",
    "semples_plugin.data.make_labels",
)
NAMES = ("cat", "dog", "hen")


# What a format's files are, and what reads them. Bombs are small files that stand for much.


def cams(form):
    def write(path):
        from semples_plugin.data.cam_files import Cams, write_cams

        write_cams(path, Cams(np.random.default_rng(0).random((3, 12, 15), dtype=np.float32), (2, 7, 11), form))

    return write


def read_cams(path):
    from semples_plugin.data.cam_files import read_cams

    return read_cams(path)


def write_mask(path):
    from semples_plugin.data.images import write_mask

    write_mask(path, np.random.default_rng(0).integers(0, 4, (30, 41), dtype=np.uint8), note="a note")


def write_labels(path):
    labels = {f"2007_{n:06}": np.eye(20, dtype=np.float32)[n] for n in range(5)}
    np.save(path, np.array(labels, dtype=object), allow_pickle=True)


def read_labels(path):
    from semples_plugin.data.image_labels import load_image_labels

    return load_image_labels(path)


def text(content):
    return lambda path: path.write_bytes(content.encode())


def make_labels(path):
    from semples_plugin.data.make_labels import make_labels

    out = path.with_name("made.npy")
    out.unlink(missing_ok=True)
    return make_labels(path, out, None if path.suffix == ".json" else NAMES)


def read_image_list(path):
    from semples_plugin.data.cam_files import read_image_list

    return read_image_list(path)


def read_class_names(path):
    from semples_plugin.data.image_labels import read_class_names

    return read_class_names(path)


def write_prompts(path):
    from semples_plugin import BackgroundPrompts

    prompts = BackgroundPrompts(3, 4, 16)
    prompts.class_names, prompts.clip_name = NAMES, "a CLIP"
    prompts.save(path)


def write_release(path):
    import torch

    torch.save({"prompts": torch.randn(3, 4, 16)}, path)


def read_prompts(path):
    from semples_plugin import BackgroundPrompts

    return BackgroundPrompts.load(path)


def npy_bombs():
    from test_safe_pickle import BOMBS, as_npy, numbers, times

    path = Path("bomb.npy")
    for name, stream in {
        **BOMBS,
        "one map for many classes": numbers(10**6) + b"q\x010" + times(60000, b"h\x01"),
        "one map for all classes": numbers(10**6) + b"q\x010" + times(254, b"h\x01"),
        "as many lists": b"]" * 10**5,
        "lists in lists": b"]" * 10**5 + b"a" * (10**5 - 1),
        "a long frame": b"\x95" + (1 << 40).to_bytes(8, "little"),
        "long bytes": b"\x8e" + (1 << 40).to_bytes(8, "little"),
        "a long key": b"}X" + (10**6).to_bytes(4, "little") + b"k" * 10**6 + b"Ns",
        "a large class": b"}\x8b" + (10**6).to_bytes(4, "little") + b"\1" * 10**6 + numbers(4) + b"s",
        "a class in digits": b"}I" + b"9" * 10**6 + b"\n" + numbers(4) + b"s",
        "a large shape": b"}K\0" + numbers(10).replace(b"K\n\x85", b"(K\n" + b"J\xff\xff\xff\x7f" * 9 + b"t", 1) + b"s",
    }.items():
        as_npy(path, b"\x80\x04" + stream + b".")
        yield name, path.read_bytes()
    yield "a large header", b"\x93NUMPY\2\0" + (1 << 31).to_bytes(4, "little") + b"{" * 10**5
    yield "brackets", b"\x93NUMPY\1\0" + (9000).to_bytes(2, "little") + b"(" * 9000


def npz_bombs():
    def archive(**members):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, parts in members.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    for part in parts:
                        member.write(part)
        return file.getvalue()

    def member(shape, dtype, parts):
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        return [file.getvalue(), *parts]

    few = member((1,), "<i8", [bytes(8)])
    zeros = bytes(1 << 22)
    yield (
        "many classes",
        archive(cam=member((1, 2, 2), "<f4", [bytes(16)]), fg_cls=member((1 << 24,), "<i8", [zeros] * 4)),
    )
    yield "many maps", archive(cam=member((1 << 16, 4, 64), "<f4", [zeros] * 16), fg_cls=few)
    yield "a large map", archive(cam=member((1, 1 << 14, 1 << 14), "|u1", [zeros] * 4), fg_cls=few)
    yield "an empty large map", archive(cam=member((1, 1 << 40, 1 << 20), "<f4", []), fg_cls=few)
    yield "just small enough", archive(cam=member((1, 1 << 10, 1 << 14), "<f4", [zeros] * 16), fg_cls=few)
    yield "a long header", archive(cam=[b"\x93NUMPY\2\0" + (1 << 28).to_bytes(4, "little"), *[zeros] * 16], fg_cls=few)
    yield "a long shape", archive(cam=member((1,) * 3000, "<f4", [bytes(4)]), fg_cls=few)
    yield "objects", archive(cam=member((1, 2, 2), "|O", [bytes(16)]), fg_cls=few)


def png_bombs():
    def png(width, height, data=b"", *, depth=8, colour=0, more=()):
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), *more, (b"IDAT", data)]
        content = b"\x89PNG\r\n\x1a\n"
        for kind, body in [*chunks, (b"IEND", b"")]:
            content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        return content

    def rows(width, height, line=b""):
        packer = zlib.compressobj(1)
        return b"".join(packer.compress(b"\0" + line.ljust(width, b"\0")) for _ in range(height)) + packer.flush()

    yield "a large header", png(60000, 60000)
    yield "the largest header", png(2**31 - 1, 2**31 - 1)
    yield "large", png(12000, 12000, rows(12000, 12000))
    yield "just small enough", png(4096, 4096, rows(4096, 4096))
    yield "all classes", png(4096, 4096, rows(4096, 4096, bytes(range(256))))
    words = zlib.compress(b"a" * (1 << 26))
    yield "long words", png(4, 4, rows(4, 4), more=[(b"zTXt", b"semples\0\0" + words)] * 5)
    yield "a profile", png(4, 4, rows(4, 4), more=[(b"iCCP", b"p\0\0" + words)])
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n%%EndComments\n{} loop\n"


def csv_bombs():
    yield "a long name", b"a" * 10**6 + b",cat\n"
    yield "a long class", b"a," + b"c" * 10**6 + b"\n"
    yield "many classes", b"a" + b",cat" * 10**5 + b",cow\n"
    yield "an open quote", b'a,"cat\n' + b"b,dog\n" * 10**4
    yield "quotes", b'"' * 10**6
    yield "nothing", b"\0" * 10**5
    yield "no text", b"\xff\xfe" * 10**5
    yield "one image", b"a,cat\n" * 10**4


def json_bombs():
    def coco(**parts):
        return json.dumps({**json.loads(COCO), **parts}).encode()

    yield "lists in lists", b'{"images":' + b"[" * 10**6
    yield "dictionaries", b'{"images":' * 10**5
    yield "a large number", b'{"images": ' + b"9" * 10**6 + b"}"
    yield "no text", b"\xff\xfe{" * 10**5
    yield "a list", b"[]"
    yield "many categories", coco(categories=[{"id": n, "name": f"c{n}"} for n in range(3000)])
    yield "long names", coco(categories=[{"id": n, "name": "c" * 10**5 + str(n)} for n in range(10)])
    yield "a long file", coco(images=[{"id": 1, "file_name": "a" * 10**6}])
    yield "a large id", b'{"images": [{"id": 1e400, "file_name": "a"}], "annotations": [], "categories": []}'
    yield "a long annotation", coco(annotations=[{"image_id": "a" * 10**6, "category_id": "b" * 10**6}])
    yield "other types", coco(categories={"id": 1}, images=3, annotations="a")
    yield "keys", b"{" + b",".join(b'"%d": 1' % n for n in range(10**5)) + b"}"


def list_bombs():
    yield "a long name", b"a" * 10**6
    yield "a long path", b"a/" * 10**6
    yield "dots", b"." * 10**6
    yield "spaces", b" " * 10**6
    yield "nothing", b"\0" * 10**6
    yield "no text", b"\xff" * 10**6
    yield "lines", b"\n" * 10**6
    yield "many names", b"".join(b"%d\n" % n for n in range(10**4))


def class_bombs():
    yield from list_bombs()
    yield "many alike", b"cat\n" * 10**5
    yield "long ones alike", (b"c" * 10**5 + b"\n") * 10


def safetensors_bombs():
    def file(header, data=b""):
        return struct.pack("<Q", len(header)) + header + data

    def about(**metadata):
        shape = {"dtype": "F32", "shape": [1, 1, 1], "data_offsets": [0, 4]}
        return file(json.dumps({"__metadata__": metadata, "prompts": shape}).encode(), bytes(4))

    yield "a long header", struct.pack("<Q", 1 << 40) + b"{" * 100
    yield "lists in lists", file(b'{"a":' + b"[" * 10**6)
    yield "a large tensor", file(b'{"prompts":{"dtype":"F32","shape":[99999,99999,99],"data_offsets":[0,4]}}', bytes(4))
    yield "an empty tensor", file(b'{"prompts":{"dtype":"F32","shape":[0,99999999999,9],"data_offsets":[0,0]}}')
    many = {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(5000)}
    yield "many tensors", file(json.dumps(many).encode())
    yield "a long name", file(b'{"' + b"t" * 10**6 + b'":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}')
    yield "deep words", about(class_names="[" * 10**5)
    yield "long words", about(class_names=json.dumps("c" * 10**6), template='"{"')
    yield "other types", about(class_names="3", suffix_ids="true", similarities="[1]", template="0", seed='"a"')


def pth_bombs():
    import torch

    def archive(stream, zeros=4, kind=zipfile.ZIP_STORED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", kind) as whole:
            whole.writestr("a/data.pkl", b"\x80\x02" + stream + b".")
            whole.writestr("a/data/0", bytes(zeros))
            whole.writestr("a/version", b"3\n")
        return file.getvalue()

    def prompts(count, size=b"K\1K\1K\1\x87", stride=b"K\1K\1K\1\x87"):
        storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuJ" + struct.pack("<i", count) + b"tQ"
        tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + size + stride + b"\x89}tR"
        return b"}X\7\0\0\0prompts" + tensor + b"s"

    yield "compressed", archive(prompts(1 << 27), 1 << 27, zipfile.ZIP_DEFLATED)
    yield "a large tensor", archive(prompts(1, b"J\0\0\1\0J\0\0\1\0K\x40\x87", b"K\0K\0K\0\x87"))
    yield "beyond its end", archive(prompts(1, stride=b"J\0\0\1\0K\1K\1\x87"), 3)
    word = b"X" + (10**6).to_bytes(4, "little") + b"0" * 10**6
    yield "words", archive(b"c_codecs\nencode\nq\0" + word + b"q\1](" + b"h\0h\1X\6\0\0\0latin1\x86R" * 50000 + b"e")
    yield "words of a name", archive(b"}" + word + b"Ns")
    old = io.BytesIO()
    torch.save({"prompts": torch.zeros(1, 1, 1)}, old, _use_new_zipfile_serialization=False)
    yield "an old one, of more than there is", old.getvalue().replace(b"K\1N", b"J\xff\xff\xff\x7fN")
    yield "a script", archive(b"cbuiltins\nprint\n(X\2\0\0\0hitR")
    yield "many", archive(b"}(" + b"".join(pickle.BININT + struct.pack("<i", n) + b"N" for n in range(10**5)) + b"u")


COCO = json.dumps(
    {
        "images": [{"id": n, "file_name": f"COCO_train2014_{n:012}.jpg"} for n in range(4)],
        "annotations": [{"image_id": n, "category_id": 1 + n % 3, "bbox": [0, 1, 2, 3]} for n in range(4)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES, 1)],
    }
)
TABLE = "image,class\n2007_000032,cat,dog\nimages/2007_000039.jpg,hen\n2007_000063,\n"
LIST = "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n2007_000039\nCOCO_train2014_000000000009\n"
FORMATS = {
    "clims": (".npy", cams("clims"), read_cams, npy_bombs),
    "weaktr": (".npy", cams("weaktr"), read_cams, tuple),
    "fma": (".npz", cams("fma"), read_cams, npz_bombs),
    "masks": (".png", write_mask, read_cams, png_bombs),
    "labels": (".npy", write_labels, read_labels, npy_bombs),
    "tables": (".csv", text(TABLE), make_labels, csv_bombs),
    "coco": (".json", text(COCO), make_labels, json_bombs),
    "lists": (".txt", text(LIST), read_image_list, list_bombs),
    "class names": (".txt", text("cat\ndog\nTV monitor\n"), read_class_names, class_bombs),
    "prompts": (".safetensors", write_prompts, read_prompts, safetensors_bombs),
    "release": (".pth", write_release, read_prompts, pth_bombs),
}


def damaged(whole: bytes, random: np.random.Generator) -> bytes:
    """One to three kinds of damage."""
    found = bytearray(whole)
    for _ in range(random.integers(1, 4)):
        start, length = int(random.integers(len(found) + 1)), int(random.integers(1, 40))
        some = random.choice([random.bytes(length), bytes(length), b"\xff" * length])
        match random.integers(8):
            case 0:
                del found[start:]
            case 1:
                for place in random.integers(len(found), size=random.integers(1, 9)) if found else ():
                    found[place] ^= 1 << int(random.integers(8))
            case 2:
                found[start : start + length] = some
            case 3:
                found[start:start] = some
            case 4:
                del found[start : start + length]
            case 5:
                found[start:start] = found[start : start + 20 * length]
            case 6:  # a length, or another number of four bytes
                found[start : start + 4] = random.choice([b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\x7f\xff\xff\xff"])
            case 7:  # a field of one of a zip's headers
                headers = [place for place in range(len(found)) if found[place : place + 2] == b"PK"] or [start]
                place = int(random.choice(headers)) + int(random.integers(4, 46))
                found[place : place + int(random.choice([1, 2, 4]))] = some[: int(random.choice([1, 2, 4]))]
    return bytes(found)


class TooSlow(BaseException):
    """No `Exception`, which readers may take for damage."""


def pages() -> list[int]:
    """Of 4 KiB: reserved, and in memory."""
    return [int(word) for word in Path("/proc/self/statm").read_text().split()[:2]]


def try_all(form: str, folder: str, count: int) -> dict:
    """Reads damaged files and bombs of a format, in a process of its own; what went wrong is in `failures`."""
    import resource

    os.chdir(folder)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # progress bars
    suffix, write, read, bombs = FORMATS[form]
    path = Path(folder) / f"x{suffix}"
    write(path)
    read(path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    files = [*bombs(), *((f"damage {n}", damaged(whole, random)) for n in range(count))]

    def stop(*_):
        raise TooSlow

    signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(
        resource.RLIMIT_AS, ((pages()[0] << 12) + (2 * MEGABYTES << 20),) * 2
    )  # the machine isn't ours alone
    report = {
        "read": 0,
        "refused": 0,
        "seconds": (0.0, ""),
        "characters": (0, ""),
        "megabytes": (0, ""),
        "failures": [],
    }
    for name, content in files:
        path.write_bytes(content)
        peak, before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, pages()[1] << 2
        start, words = time.process_time(), ""
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            read(path)
            report["read"] += 1
        except (ValueError, TypeError, OSError) as error:
            words = str(error)
            report["refused"] += 1
            if path.name not in words or len(words) >= CHARACTERS or "\n" in words:
                report["failures"].append(f"{name}: {type(error).__name__} of {len(words)} characters: {words[:200]}")
        except BaseException as error:
            report["failures"].append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        report["seconds"] = max(report["seconds"], (time.process_time() - start, name))
        report["characters"] = max(report["characters"], (len(words), name))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grown = (grown - before) >> 10 if grown > peak else 0
        report["megabytes"] = max(report["megabytes"], (grown, name))
        if grown > MEGABYTES:
            report["failures"].append(f"{name}: {grown} MB")
    return report


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files_are_read_or_refused_in_a_sentence(tmp_path, form):
    context = get_context("forkserver")  # where everything is imported once, for all formats
    context.set_forkserver_preload([*PRELOADED])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            report = pool.submit(try_all, form, str(tmp_path), COUNT).result(timeout=300)
        except BrokenProcessPool:
            pytest.fail(f"{next(tmp_path.glob('x.*'))} killed the process")
    print(f"\n{form:12} {report['read']:4} read {report['refused']:4} refused", report["seconds"], report["characters"],
          report["megabytes"])  # fmt: skip
    assert not report["failures"], "\n".join(report["failures"][:20])
    assert report["refused"] > COUNT // 5
