"""Writes a model card in Markdown: what a final network is, how it was found, how good it is, and how to use it."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from nas.config.cli import with_sizes_of
from nas.config.file import read_config, validate
from nas.config.flags import SearchConfig, TrainedOn, selection_fraction
from nas.errors import count, markdown, printable
from nas.report import page
from nas.report.overview import FINAL, Whole, read
from nas.report.run_data import flags_of
from nas.runs.table import sources

FILE = "MODEL_CARD.md"
MARKER = "<!-- nas.model_card -->\n"  # only files that begin with it are replaced
NUM_WORST, MOST_CLASSES = 3, 100  # classes that are named
NOT_TOLD = ("--name", "--run-dir", "--device", "--threads", "--ray", "--devices-per-search", "--checkpoint-minutes")


def write(folder: Path, output: Path) -> None:
    """Write the model card of the final network in the run folder of several searches, replacing an older card.

    Raises:
        InputError: something in the folder is missing or damaged, or `output` is not a model card.
        OSError: `output` cannot be written.
    """
    page.refuse_others(output, MARKER, "model card")
    whole, final = read(folder), folder / FINAL
    about = validate(TrainedOn, read_config(final).trained_on, final / "config.json")
    sections = {
        "Accuracy": _accuracy(whole),
        "Data": _data(whole, about),
        "Method": _method(whole),
        "Budget": _budget(whole),
        "Size": _size(whole, final),
        "Use": _use(about, final),
        "Genotype": [f"    {whole.final['genotype']}"],
        "Limits": _limits(whole, about),
    }
    text = "".join(f"\n## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in sections.items())
    summary = f"An image classifier with {len(about.classes)} classes. Its architecture was chosen by nas."
    page.save(output, f"{MARKER}# {markdown(folder.resolve().name)}\n\n{summary}\n{text}")


def _accuracy(whole: Whole) -> Iterator[str]:
    answers, (low, high) = whole.final["answers"], whole.interval
    classes = [f"“{markdown(name)}”" for name in answers["classes"]]
    yield f"- on the test set: **{answers['accuracy']:.2%}** (95 % interval {low:.2%} to {high:.2%})"
    yield f"- balanced accuracy, the mean over the classes: {answers['balanced_accuracy']:.2%}"
    yield f"- always guessing {classes[answers['largest_class']]}, the largest: {answers['majority_accuracy']:.2%}"
    rows = zip(answers["num_correct"], answers["num_images"], classes, strict=True)
    worst = sorted((correct / images, name, images) for correct, images, name in rows if images)[:NUM_WORST]
    yield f"- worst classes: {'; '.join(f'{name} {share:.1%} of {images}' for share, name, images in worst)}"


def _data(whole: Whole, about: TrainedOn) -> Iterator[str]:
    if about.num_images:
        yield f"- {about.num_images:,} training images"
    yield f"- {sum(whole.final['answers']['num_images']):,} test images, used once, after the last epoch"
    yield f"- data set: {whole.final['dataset']}; {about.in_channels} × {about.image_size} × {about.image_size} pixels"
    more = f" (of {len(about.classes)})" if len(about.classes) > MOST_CLASSES else ""
    yield f"- classes: {', '.join(map(markdown, about.classes[:MOST_CLASSES]))}{more}"
    fraction = selection_fraction(whole.config)
    seen = f"{fraction:.0%} of the training images, which no search saw" if fraction else "images that a search saw"
    yield f"- the cells were compared on {seen}; the final network was trained on all training images"


def _method(whole: Whole) -> Iterator[str]:
    yield f"- {count(len(whole.searches), 'search')}; {count(len(whole.table.cells), 'cell')} trained briefly"
    if (exported := whole.exported) is not None:
        only = " that a search found" if whole.config.selection.export_searched else ""
        best = f"the cell{only} with the best {'balanced ' if whole.config.data.balanced else ''}accuracy"
        yield f"- chosen: {best} on held-out images, {exported.score:.2%} ({markdown(sources(exported))})"
    usual = with_sizes_of(SearchConfig(), whole.config.supernet.space)
    groups = [*flags_of(whole.config, usual), *whole.searches[0]["config"]]  # --time-budget chose some of the latter
    given = {flag: value for _, rows in groups for flag, value, default in rows if value != default}
    told = [f"{flag} {markdown(value)}" for flag, value in given.items() if flag not in NOT_TOLD]
    yield f"- flags that differ from the defaults: {', '.join(told) or 'none'}"


def _budget(whole: Whole) -> Iterator[str]:
    yield from (f"- {part.what}: {part.time_s / 60:.1f} minutes" for part in whole.times)
    yield f"- in all: {sum(part.time_s for part in whole.times) / 60:.1f} minutes"
    yield from (f"- {markdown(what)}: {markdown(value, 200)}" for what, value in whole.final["environment"])


def _size(whole: Whole, folder: Path) -> Iterator[str]:
    size = whole.final["size"]
    yield f"- {size['weights']:,} weights, {size['multiply_adds']:,} multiply-adds per image (no auxiliary head)"
    for file in (*folder.glob("weights.safetensors"), *sorted(folder.glob("network.*"))):
        yield f"- {markdown(file.name)}: {file.stat().st_size / 1e6:.2f} MB"


def _use(about: TrainedOn, folder: Path) -> Iterator[str]:
    path, shape = printable(folder, 4000), f"(batch, {about.in_channels}, {about.image_size}, {about.image_size})"
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (about.mean, about.std))
    yield f"    python -m nas.predict {shlex.quote(path)} IMAGE\n\nor, in Python,\n"
    yield f"    network = nas.FinalNetwork.from_run({path!r})\n    logits = network(images)[0]\n"
    yield f"`images` is float32, {shape}: pixels in [0, 1] minus the mean of each channel"
    yield f"({mean}), divided by its standard deviation ({std}). `logits` is (batch, {len(about.classes)})."
    if (folder / "network.onnx").is_file():
        yield "`network.onnx` has this input and this output. Its metadata hold the classes and the normalisation."


def _limits(whole: Whole, about: TrainedOn) -> Iterator[str]:
    answers, (low, high), side = whole.final["answers"], whole.interval, about.image_size
    scaled = "Images were scaled to" if whole.final["dataset"] == "folder" else "It takes images of"
    yield f"- {scaled} {side} × {side} pixels; finer details are not seen."
    yield "- It names one of its classes whatever an image shows; it knows no others."
    images = count(sum(answers["num_images"]), "test image", ",")
    yield f"- With {images} the interval of its accuracy is {100 * (high - low):.1f} points wide."
    if answers["accuracy"] <= answers["majority_accuracy"]:
        yield "- It is no better than always guessing the largest class."
    yield "- It was trained once; with another seed its accuracy would differ."
    unknown = "No random cells were trained, so nothing says whether the searches beat chance."
    yield f"- {markdown(whole.table.conclusion or unknown, 1000)}"
