"""Feed the parsers made-up input for minutes, guided by the lines that it reaches; anything but InputError is a crash.

    pip install atheris
    python -m tests.fuzz_atheris {text,json,manifest,npz} --minutes 10 [--corpus FOLDER]

text: a file in any of the forms of genotypes. json: a genotype file. manifest: a checkpoint, either the whole file as
bytes, or a file in order around a made-up manifest. npz: images and labels, either the whole file or a file in order
around one made-up array. The run ends with the number of executions; a crash leaves its input as a file beside the
corpus, and `python -m tests.fuzz_atheris TARGET --replay FILE` shows it again. The corpus is kept if it has a folder of
its own.
"""

import argparse
import contextlib
import copy
import inspect
import io
import json
import math
import random
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import atheris
import numpy as np
import torch

with atheris.instrument_imports(include=["nas"], enable_loader_override=False):
    from nas import files
    from nas.data import npz
    from nas.errors import InputError
    from nas.runs import checkpoint
    from nas.search_space import conversions, darts, genotype, genotype_file, reader

PUBLISHED = sorted((Path(__file__).parents[1] / "genotypes").glob("*.json"))
WORDS = [
    *["normal", "reduce", "normal_concat=", "reduce_concat=", "edges", "concat", "range(", "list(", "Genotype("],
    *["np.int64(", "array([", "reduction", "normal/op_2_0", "normal_n2_switch", "'''", "# ", "\xff\xfe", "FOUND = "],
    *["provenance", "format_version", "config", "data", "genotype", "progress", "elapsed_s", "sizes", "finished"],
    *["epochs", "steps", "bad_steps", "bad_steps_in_a_row", "loss", "num_correct", "num_images", "peaks"],
    *["epoch_began_s", "metrics.jsonl", "tensorboard/events.out.tfevents.1", "../", "checksum", "manifest"],
    *["__metadata__", "dtype", "shape", "data_offsets", "F32", "I64", "BF16", "NaN", "Infinity", "-Infinity", "1e999"],
    *["true", "false", "null", r"\ud800", r"\u0000", "9" * 400, "[" * 300, *darts.DARTS.primitives],
    *["PK\1\2", "PK\3\4", "PK\5\6", "PK\6\6", "PK\6\7", "\x93NUMPY\1\0", "images.npy", "labels.npy", "classes.npy"],
    *["mirror.npy", "'descr': '", "'fortran_order': True", "'shape': (3, 8, 8)", "'|u1'", "'<i8'", "'>U1'", "'|O'"],
    *["(3,)", "()"],
]
VALUES = [None, True, -1, 0, 2, 0.5, 1e300, math.inf, math.nan, 2**63, -(2**64), 10**400]
VALUES += ["", "\0", "é", [], {}, [[]], {"": {}}]

# Of arrays: what is put among their bytes, and what their headers say.
NUMBERS = [b"\0", b"\1", b"\x80", b"\xff", b"\7\0\0\0", b"\x1b\0\0\0", b"\0\xd8\0\0", b"\0\0\x11\0", b"\2", bytes(8)]
NUMBERS += [b"\xff" * 8, b"\0\0\x80?", b"\0\0\0\0\0\0\xf0?", b"\0<"]  # ones among them
DTYPES = ["|u1", "|i1", "<u2", ">i4", "<i8", ">u8", "<f2", "<f8", "|b1", "|O", "|S2", "<U1", ">U3", "<U999"]
SHAPES = [(), (0,), (2,), (3,), (3, 1), (3, 2), (3, 8, 8), (2, 9, 9, 1), (3, 3, 8, 8), (3, 8, 8, 3), (2, 8, 8, 2)]
SHAPES += [(0, 8, 8), (10**11, 8, 8)]


TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.steps": torch.tensor(7), "alphas.normal": torch.ones(2)}
MANIFEST = checkpoint.Manifest(
    config={"lower": {"epochs": 2, "lr": 0.1}, "run": {"name": None, "deterministic": False}},
    data="0123456789abcdef" * 2,
    genotype=genotype.Genotype.load(PUBLISHED[0]).to_text(),
    progress=checkpoint.LoopState(epochs=1, steps=12, loss=3.5, num_images=8, peaks={"upper/loss": 1.25}),
    elapsed_s=17.25,
    sizes={"metrics.jsonl": 300, "tensorboard/events.out.tfevents.17.0": 20},
    finished=False,
)


def change(content: Any, chance: random.Random) -> Any:
    """JSON with one value of it changed, left out, doubled, renamed or taken from elsewhere."""
    places, found = [], [content]
    for item in found:  # which grows
        if isinstance(item, dict | list):
            keys = list(item) if isinstance(item, dict) else range(len(item))
            places += [(item, key) for key in keys]
            found += [item[key] for key in keys]
    if not places:
        return chance.choice(VALUES)
    item, key = chance.choice(places)
    other = item[key]
    if isinstance(other, str):
        nudged = other + chance.choice(["\n", "/../x", "\x1b[31m", "\0", other])
    else:
        nudged = other + chance.choice([-1, 1]) if type(other) in (int, float) else [other]
    match chance.randrange(5):
        case 0:
            item[key] = copy.deepcopy(chance.choice([chance.choice(VALUES), chance.choice(found)]))
        case 1:
            item[key] = nudged
        case 2:
            del item[key]
        case _ if isinstance(item, dict):
            item[chance.choice(WORDS)] = item.pop(key)
        case _:
            item.insert(key, copy.deepcopy(other))
    return content


class Target:
    """One parser: `seeds` are inputs that are in order, and `read` parses one, where InputError alone is expected."""

    def __init__(self, folder: Path):
        self.folder = folder

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """Half of the time the bytes, else a value of the JSON: a byte alone seldom leaves JSON behind."""
        chance = random.Random(seed)
        start = data.find(b"{")
        if start >= 0 and chance.random() < 0.5:
            with contextlib.suppress(ValueError, RecursionError):
                mutated = data[:start] + json.dumps(change(json.loads(data[start:]), chance)).encode()
                if len(mutated) <= max_size:
                    return mutated
        return atheris.Mutate(data, max_size)

    def __call__(self, data: bytes) -> None:
        sentence = "read"
        try:
            self.read(data)
        except InputError as error:
            sentence = str(error)
        assert sentence.isprintable(), f"not one line, or orders to a terminal: {sentence!r}"


class Text(Target):
    def seeds(self) -> list[bytes]:
        cells = [genotype.Genotype.load(path) for path in PUBLISHED[:4]]
        texts = [cell.to_text() for cell in cells]
        forms = [cells[1].model_dump(), conversions.to_nni(cells[1]), conversions.to_nasbench301(cells[1])]
        module = f"A = {texts[0]}  # one\nB = x.{texts[1]}\nC = A\n'''\n{texts[2]}'''".encode()
        log = f"12:00 {texts[0]}\n12:01 {texts[1].replace('1)', 'np.int64(1))')}"
        written = [write(form).encode() for form in forms for write in (json.dumps, repr)]
        return [*(text.encode() for text in texts), module, log.encode(), log.encode("utf-16"), *written]

    def read(self, data: bytes) -> None:
        path = self.folder / "input.txt"
        path.write_bytes(data)
        found = reader.read(f"{path}:A" if len(data) % 2 else str(path))
        assert all(note.isprintable() for note in found.notes)
        assert genotype.Genotype.from_text(found.genotype.to_text()) == found.genotype


class Json(Target):
    def seeds(self) -> list[bytes]:
        # Without the layout and the pages of numbers an input is short, and a change hits something.
        return [json.dumps(json.loads(path.read_bytes()), separators=(",", ":")).encode() for path in PUBLISHED]

    def read(self, data: bytes) -> None:
        path = self.folder / "input.json"
        path.write_bytes(data)
        content = genotype_file.GenotypeFile.load(path)
        read = genotype.Genotype(**content.cells())
        read.save(path, content.provenance)
        assert genotype.Genotype.load(path) == read


class Manifest(Target):
    """The first byte of the input chooses: 'f' has a whole file after it, anything else a manifest."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.path = folder / checkpoint.CURRENT
        checkpoint.save(folder, TENSORS, MANIFEST)
        self.whole = self.path.read_bytes()
        self.header_size = int.from_bytes(self.whole[:8], "little")
        self.header = json.loads(self.whole[8 : 8 + self.header_size])
        self.written = self.header["__metadata__"]["manifest"]

    def seeds(self) -> list[bytes]:
        return [b"m" + self.written.encode(), b"f" + self.whole]

    def read(self, data: bytes) -> None:
        if data[:1] == b"f":
            content = data[1:]
        else:  # its checksum is right, so that the values alone are to blame
            text = data[1:].decode(errors="replace")
            metadata = {"manifest": text, "checksum": checkpoint._checksum(TENSORS, text)}
            header = json.dumps(self.header | {"__metadata__": metadata}).encode()
            header += b" " * (-len(header) % 8)
            content = len(header).to_bytes(8, "little") + header + self.whole[8 + self.header_size :]
        self.path.write_bytes(content)
        checkpoint.finished(self.folder)
        loaded = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
        try:
            read = checkpoint.load(self.path, loaded)
        except InputError:
            assert not any(tensor.any() for tensor in loaded.values()), "none was changed"
            raise
        if data[:1] != b"f":  # the comparisons tell a checksum, so that a whole file may get other values and theirs
            assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
        assert all(not name.startswith(("/", "..")) and "/../" not in name for name in read.sizes)


class Npz(Target):
    """The first byte of the input chooses: that of an array's name has the array after it, around which there is a file
    in order; anything else a whole file."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        for kind in (zipfile.ZipFile, zipfile.ZipInfo, zipfile.ZipExtFile):  # watched too: they read the directory
            for function in filter(inspect.isfunction, vars(kind).values()):
                atheris.instrument_func(function)
        self.path = folder / "train.npz"
        (folder / "test.npz").symlink_to(self.path)  # which is read less strictly
        images = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8)
        arrays = {"images": images, "labels": [0, 1, 1], "classes": ["a", "bc"], "mirror": False}
        self.members = {}
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            self.members[name] = content.getvalue()
        self.names = {name[:1].encode(): name for name in self.members}

    def file(self, compression: int = zipfile.ZIP_STORED, **changed: bytes) -> bytes:
        """With the right checksum of each member, so that arrays alone are to blame."""
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", compression) as archive:
            for name, member in (self.members | changed).items():
                archive.writestr(f"{name}.npy", member)
        return content.getvalue()

    def seeds(self) -> list[bytes]:
        arrays = [letter + self.members[name] for letter, name in self.names.items()]
        return [*arrays, b"f" + self.file(), b"f" + self.file(zipfile.ZIP_DEFLATED)]

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """Half of the time an array that differs in one number, or in dtype and shape: bytes alone seldom leave one."""
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return atheris.Mutate(data, max_size)
        if data[:1] not in self.names or b"\n" not in data:
            data = chance.choice(self.seeds()[: len(self.names)])
        header, _, content = data.partition(b"\n")
        if content and chance.random() < 0.5:
            start, number = chance.randrange(len(content)), chance.choice(NUMBERS)
            return (header + b"\n" + content[:start] + number + content[start + len(number) :])[:max_size]
        dtype, shape, made = chance.choice(DTYPES), chance.choice(SHAPES), io.BytesIO()
        order = chance.random() < 0.5
        np.lib.format.write_array_header_1_0(made, {"descr": dtype, "fortran_order": order, "shape": shape})
        size = min(math.prod(shape) * np.dtype(dtype).itemsize, max_size - 200)
        content = content or b"\0"
        return data[:1] + made.getvalue() + (content * (size // len(content) + 1))[:size]

    def read(self, data: bytes) -> None:
        name = self.names.get(data[:1])
        self.path.write_bytes(self.file(**{name: data[1:]}) if name else data[1:])
        for part in ("test", "train"):
            with contextlib.redirect_stdout(io.StringIO()):  # how the arrays were read
                images, targets, classes, mirror = npz.load(self.folder, part)
            assert images.dtype == torch.uint8
            assert images.numel() <= npz.DEFLATE_RATIO * self.path.stat().st_size
            assert images.shape[1:] in {(channels, size, size) for channels in (1, 3) for size in images.shape[2:]}
            assert len(images) == len(targets) >= 2
            assert 0 <= targets.min() <= targets.max() < len(classes) == len(set(classes))
            assert all(name and name.isprintable() for name in classes)
            assert type(mirror) is bool
        assert len(targets.unique()) == len(classes)


TARGETS = {"text": Text, "json": Json, "manifest": Manifest, "npz": Npz}


def quoted(word: str) -> str:
    """As libFuzzer's dictionaries have it."""
    letters = word.encode("latin-1")
    return "".join(chr(letter) if chr(letter).isalnum() and letter < 128 else f"\\x{letter:02x}" for letter in letters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--corpus", type=Path, help="folder of inputs that is added to (default: a temporary one)")
    parser.add_argument("--replay", type=Path, help="call the target with this file, and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    files.sync = lambda path: None  # no power cut here, and a sync takes a thousand times what a parser takes
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=in_memory) as temporary:
        target = TARGETS[options.target](Path(temporary))
        if options.replay:
            target(options.replay.read_bytes())
            return
        corpus = options.corpus or Path(tempfile.mkdtemp(prefix=f"fuzz-{options.target}-"))
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(target.seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
        words = corpus.with_name(f"{corpus.name}.words")
        words.write_text("".join(f'"{quoted(word)}"\n' for word in dict.fromkeys(WORDS)))
        limits = ["-max_len=8192", "-timeout=20", "-print_final_stats=1", f"-max_total_time={options.minutes * 60:.0f}"]
        arguments = [*limits, f"-dict={words}", f"-artifact_prefix={corpus}-"]
        atheris.Setup([sys.argv[0], *arguments, str(corpus)], target, custom_mutator=target.mutate)
        atheris.Fuzz()  # prints number of executions and coverage, and does not return


if __name__ == "__main__":
    main()
