"""Shows test images with the likeliest classes that a final network sees in them."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.config.file import read_config, validate
from nas.config.flags import FinalConfig
from nas.errors import InputError, Stopped

if TYPE_CHECKING:  # torch is imported where images are classified, so that --help is quick
    from torch import Tensor

NUM_EVEN, NUM_WRONG = 8, 4  # images that are shown: some as they come, and some with a wrong answer
MOST_CLASSES = 3  # named for each image
MAX_IMAGES, MAX_MULTIPLY_ADDS = 2000, 2e12  # of the test set are classified: at most a minute or two on a CPU
BATCH_SIZE = 100
MAX_SIDE = 128  # in pixels; a larger image is shown smaller


def read(folder: Path, multiply_adds: int) -> dict[str, Any]:
    """Return test images with what the network of a run says of them, or why there are none.

    Args:
        multiply_adds: of the network for one image.
    """
    try:
        return {"examples": _classified(folder, multiply_adds)}
    except (InputError, Stopped) as error:
        return {"examples": [], "why_none": str(error)}


def _classified(folder: Path, multiply_adds: int) -> list[dict[str, Any]]:
    import torch

    from nas.data.augment import normalise
    from nas.data.loader import load_test_images
    from nas.models.final_network import FinalNetwork

    config = validate(FinalConfig, read_config(folder).config, folder / "config.json")
    network = FinalNetwork.from_run(folder)
    about = network.trained_on
    assert about is not None
    if config.data.dataset != "digits" and not Path(config.data.data_dir).is_dir():  # nothing is downloaded for a page
        raise InputError(f"the images are not in {config.data.data_dir}.")
    test = load_test_images(config, about, torch.device("cpu"))
    number = int(min(MAX_IMAGES, max(NUM_EVEN, MAX_MULTIPLY_ADDS // max(1, multiply_adds))))
    split = test.split.select(torch.tensor(spread(test.num_images, number)))
    with torch.no_grad():
        batches = [network(normalise(part, test.mean, test.std))[0] for part in split.images.split(BATCH_SIZE)]
    probabilities = torch.cat(batches).softmax(1).nan_to_num()
    answers = probabilities.argmax(1)
    chosen = spread(len(answers), NUM_EVEN)
    wrong = [index for index in (answers != split.targets).nonzero().flatten().tolist() if index not in chosen]
    chosen += [wrong[place] for place in spread(len(wrong), NUM_WRONG)]
    likely = probabilities[chosen].topk(min(MOST_CLASSES, len(about.classes)))
    return [
        {
            "picture": _picture(split.images[index]),
            "truth": about.classes[split.targets[index]],
            "right": bool(answers[index] == split.targets[index]),
            "likely": [[about.classes[place], round(value, 5)] for place, value in zip(places, values, strict=True)],
        }
        for index, places, values in zip(chosen, likely.indices.tolist(), likely.values.tolist(), strict=True)
    ]


def spread(length: int, number: int) -> list[int]:
    """Return at most `number` of the first `length` whole numbers, evenly spread."""
    number = min(length, number)
    return [(2 * place + 1) * length // (2 * number) for place in range(number)]


def _picture(pixels: "Tensor") -> str:
    """Return an image, (channels, rows, columns), uint8, as a PNG in a data URI."""
    from PIL import Image

    picture = Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
