"""Wrong calls of the two scripts, and what is said of each.

A call may be made in a folder that holds `genotypes/taken.json` (not a genotype), the folder `runs/made` (not a run),
`images/` with files that are not images and a `train.npz` that is damaged, and `own/` with a `train.npz` alone.
"""

from pathlib import Path

import numpy as np

TOO_SMALL_FOR_THE_STEM = "--stem imagenet: it divides the sides of the images by eight, so it needs at least 32 pixels"
TINY = "--num-cells 1 --num-nodes 1 --init-channels 2 --batch-size 8 --primitives skip_connect sep_conv_3x3"
AT_LEAST, AT_MOST = "greater than or equal to", "less than or equal to"


def out_of_range(flags: str, value: float | str, allowed: str) -> list[tuple[str, str]]:
    return [(f"{flag} {value}", f"{flag}: must be {allowed}, got {value}") for flag in flags.split()]


SEARCH = {
    "a value out of range": [
        *out_of_range("--batch-size", 1, f"{AT_LEAST} 2"),
        *out_of_range("--epochs --init-channels --num-cells --num-nodes", 0, f"{AT_LEAST} 1"),
        *out_of_range("--threads --max-bad-steps --searches --selection-epochs", 0, f"{AT_LEAST} 1"),
        *out_of_range("--seed --crop-padding --random-baseline", -1, f"{AT_LEAST} 0"),
        *out_of_range("--train-limit", 3, f"{AT_LEAST} 4"),
        *out_of_range("--image-size", 7, f"{AT_LEAST} 8"),
        *out_of_range("--epochs", 100001, f"{AT_MOST} 100000"),
        *out_of_range("--threads --init-channels", 1025, f"{AT_MOST} 1024"),
        *out_of_range("--num-cells --searches", 201, f"{AT_MOST} 200"),
        *out_of_range("--num-nodes", 9, f"{AT_MOST} 8"),
        *out_of_range("--seed", 4294967296, "less than 4294967296"),
        *out_of_range("--lower-lr --grad-clip --alpha-lr --upper-fraction --r", 0.0, "greater than 0"),
        *out_of_range("--momentum --weight-decay --alpha-weight-decay --checkpoint-minutes", -1.0, f"{AT_LEAST} 0"),
        *out_of_range("--momentum --upper-fraction --test-fraction", 1.0, "less than 1"),
        *out_of_range("--lower-lr", "nan", "a finite number"),
        *out_of_range("--alpha-lr", "1e+39", "at most 3e38"),
        ("--space nas-bench-201 --num-nodes 4", "--num-nodes 4: cells of --space nas-bench-201 have 3 nodes."),
        ("--name ../elsewhere", "--name: must be up to 100 letters"),
        ("--name .hidden", "--name: must be up to 100 letters"),
        ("--searches 2 --ray here", "--ray: must be local, auto or the HOST:PORT of a cluster, got 'here'"),
        ("--searches 2 --ray auto twice", "--ray: must be local, auto or the HOST:PORT of a cluster, got 'auto twice'"),
        ("--searches 2 --ray --devices-per-search 0", f"--devices-per-search: must be {AT_LEAST} 0.0001, got"),
    ],
    "a value of another type": [
        ("--batch-size 2.5", "Error parsing --batch-size: "),
        ("--lower-lr fast", "Error parsing --lower-lr: "),
        ("--hypergradient third-order", "invalid choice 'third-order' for argument '--hypergradient'"),
        ("--name", "Missing value for argument '--name'"),
        ("--balanced=yes", "Unrecognized options: yes"),
    ],
    "an unknown flag": [
        ("--batchsize 3", "Unrecognized options: --batchsize, 3"),
        ("--no-balanced", "--no-balanced"),
        ("stray", "stray"),
        ("--genotype DARTS_V2", "--genotype: it is a flag of train_final.py."),
    ],
    "flags that do not fit": [
        ("--lower-lr-min 0.5", "--lower-lr-min: must be at most --lower-lr, 0.025, got 0.5"),
        ("--hypergradient first-order --share-lower-step", "--share-lower-step: cannot be combined with first-order"),
        ("--stem imagenet --init-channels 1", "--init-channels: must be at least 2 with --stem imagenet, got 1"),
        ("--dataset digits --image-size 16", "--image-size 16: needs --dataset folder; digits has images of one size"),
        ("--dataset npz --skip-bad-images", "--skip-bad-images: needs --dataset folder; npz is read as a whole"),
        ("--dataset digits --resize pad", "--resize pad: needs --dataset folder; digits has square images"),
        ("--dataset npz --test-fraction 0.2", "--test-fraction 0.2: needs --dataset folder; npz has its own test set"),
        ("--searches 2 --seed 4294967295", "--seed 4294967295: too large"),
        ("--searches 2 --ray --devices-per-search 1.5", "--devices-per-search: must be a whole number where it is abo"),
        ("--searches 200 --random-baseline 200 --candidates DARTS_V2", "up to 401 cells would be compared"),
        ("--searches 2 --devices-per-search 0.5", "--devices-per-search: needs --ray"),
        ("--ray", "--ray: needs --searches above 1, --random-baseline above 0, --derive-top"),
        ("--selection-halving", "--selection-halving: needs --searches above 1"),
        ("--export onnx", "--export: needs --train-final."),
        ("--final-cells 8", "--final-cells: needs --train-final."),
        ("--time-budget 8", "--time-budget: must be a time from 1m to 60d"),
        ("--time-budget 1h --preset darts-pt", "--time-budget: needs --derivation argmax"),
        ("--derive-top 2 --max-skip-connections 1", "--derive-top: cannot be combined with --max-skip"),
        (f"--dataset digits --searches 2 --name {'a' * 81}", "--name: must have at most 80 characters"),
        ("--resume a --preset quick", "--preset: cannot be combined with --resume"),
        ("--config a --preset quick", "--preset: cannot be combined with --config"),
    ],
    "images that cannot be read": [
        ("--dataset folder --data-dir nowhere", "--data-dir nowhere: there is no folder nowhere/train"),
        ("--dataset folder --data-dir images", "images/train/ant/1.png: cannot be read as an image"),
        ("--dataset folder --data-dir images/train", "there is no folder images/train/train; images are expected as"),
        (f"--dataset folder --data-dir {'a' * 300}", "a: there is no folder aaa"),
        (f"--dataset npz --data-dir {'a' * 300}", "a: there is no file aaa"),
        ("--data-dir images", "--data-dir images, which holds images/train. Add --dataset folder to use these images"),
        ("--dataset npz --data-dir images", "images/train.npz: not an .npz file, or a damaged one"),
        ("--dataset folder --data-dir nowhere --searches 2", "--data-dir nowhere: there is no folder nowhere/train"),
    ],
    "images that do not fit": [
        ("--dataset npz --data-dir own --upper-fraction 0.9", "--upper-fraction 0.9: 1 image for the weights"),
        ("--dataset digits --upper-fraction 0.001", "--upper-fraction 0.001: 1436 images for"),
        (f"--dataset digits --stem imagenet {TINY}", TOO_SMALL_FOR_THE_STEM),
        (f"--dataset digits --lower-lr 1e30 --dry-run {TINY}", "--lower-lr: too large for the first steps: "),
    ],
    "a run folder": [
        ("--dataset digits --name taken", "--name taken: genotypes/taken.json exists already"),
        (f"--dataset digits --name made {TINY}", "--name made: runs/made exists already"),
        (f"--dataset digits --run-dir genotypes/taken.json {TINY}", "--run-dir: genotypes/taken.json/search-digits-s"),
        ("--dataset digits --searches 2 --name taken", "--name taken: genotypes/taken.json exists already"),
        ("--dataset digits --searches 2 --name made", "--name made: runs/made exists already"),
        ("--resume nowhere", "nowhere: not a run folder, because it has no config.json"),
        ("--config genotypes/taken.json", "config genotypes/taken.json: not JSON"),
    ],
    "a flag of another program": [
        ("--layers=8 --epochs 3", "--layers: here it is --num-cells 8."),
        ("--layers", "--layers: here it is --num-cells."),
        ("--resume", "--resume: --resume RUN_DIR resumes a run"),
        ("--learning_rate 0.025 --dry-run", "--learning_rate: here it is --lower-lr 0.025."),
        ("--arch_learning_rate 3e-4 --unrolled", "--alpha-lr 3e-4. --unrolled: second order is the default"),
        ("--train_portion 0.7", "--train_portion: the share of the images for the alphas is --upper-fraction 0.3; t"),
        ("--gpu 0", "--gpu: write CUDA_VISIBLE_DEVICES=0 before the command; torchrun --nproc-per-node N search.py"),
        ("--gpus 1,3", "CUDA_VISIBLE_DEVICES=1,3 before"),
        ("--data 'a", """--data: here it is --data-dir ''"'"'a'."""),
        ("--save /tmp/checkpoints/EXP", "--save: the name of the run is --name EXP."),
        ("--cutout --cutout_length 16", "--cutout: a search does not use cutout"),
        ("--w_lr 0.025 --w_weight_decay 3e-4", "--lower-lr 0.025. --w_weight_decay: here it is --weight-decay 3e-4."),
    ],
}
FINAL = {
    "a genotype": [
        ("", "--genotype: missing"),
        ("--genotype DARTS_V3", "known names: AmoebaNet, DARTS_V1, DARTS_V2"),
        ("--genotype runs", "genotype runs: not a run folder: genotype.json is missing"),
        ("--genotype __import__('os').system('true')", "there is no file and no cell of this name"),
    ],
    "a value out of range": [
        *out_of_range("--batch-size", 1, f"{AT_LEAST} 2"),
        *out_of_range("--cutout", -1, f"{AT_LEAST} 0"),
        *out_of_range("--auxiliary-weight", -1.0, f"{AT_LEAST} 0"),
        *out_of_range("--lr", 0.0, "greater than 0"),
        *out_of_range("--drop-path --holdout-fraction", 1.0, "less than 1"),
    ],
    "flags that do not fit": [
        ("--genotype DARTS_V1 --skip-test", "--skip-test: needs --holdout-fraction above 0"),
        (
            "--genotype |none~0|+|none~0|none~1|+|none~0|none~1|none~2| --auxiliary-weight 0.3",
            "--auxiliary-weight: net",
        ),
        ("--genotype DARTS_V1 --stem imagenet --init-channels 1", "--init-channels: must be at least 2 with --stem"),
        ("--genotype DARTS_V1 --evaluate a", "--genotype: cannot be combined with --evaluate"),
        ("--evaluate a --resume a", "--resume: cannot be combined with --evaluate"),
        ("--evaluate a --skip-test", "--skip-test: cannot be combined with --evaluate, which measures a trained net"),
        ("--alpha-lr 1", "--alpha-lr: it is a flag of search.py."),
    ],
    "images": [
        ("--genotype DARTS_V1 --num-cells 1 --dataset digits --stem imagenet", TOO_SMALL_FOR_THE_STEM),
        ("--genotype DARTS_V1 --dataset digits --cutout 9", "--cutout 9: larger than the images"),
        ("--genotype DARTS_V1 --dataset digits --train-limit 5 --batch-size 2", "--batch-size 2: 5 images make bat"),
        ("--genotype DARTS_V1 --dataset digits --holdout-fraction 0.9999", "--holdout-fraction 0.9999: fewer than two"),
        (
            "--genotype DARTS_V1 --dataset digits --holdout-fraction 0.0001",
            "--holdout-fraction 0.0001: not one of 1437 ",
        ),
    ],
    "a run folder": [
        ("--evaluate nowhere", "nowhere: not a run folder"),
        ("--resume nowhere", "nowhere: not a run folder"),
        ("--genotype DARTS_V1 --num-cells 1 --dataset digits --name made", "--name made: runs/made exists already"),
    ],
    "a flag of another program": [
        ("--arch PDARTS --layers 20", "--genotype PDARTS. --layers: here it is --num-cells 20."),
        ("--arch DARTS", "--arch: here it is --genotype DARTS_V2."),
        ("--genotype DARTS_V2 --auxiliary", "--auxiliary: the auxiliary head is on unless you give --auxiliary-wei"),
        ("--cutout --genotype DARTS_V2", "--cutout: cutout is on, with a square of half the image"),
        ("--model_path weights.pt", "--model_path: --evaluate RUN_DIR measures the test accuracy"),
        ("--no-cuda --amp --num-workers 4", "--no-cuda: it is --device cpu. --amp: everything is computed in float32"),
    ],
}
KINDS = [("search.py", calls) for calls in SEARCH.values()] + [("train_final.py", calls) for calls in FINAL.values()]
CALLS = [(script, call.split(), sentence) for script, calls in KINDS for call, sentence in calls]


def make_surroundings(folder: Path) -> None:
    """Make what the calls find in their folder."""
    (folder / "genotypes").mkdir()
    (folder / "genotypes" / "taken.json").write_text("mine")
    (folder / "runs" / "made").mkdir(parents=True)
    for name in ("ant", "bee"):
        (folder / "images" / "train" / name).mkdir(parents=True)
        (folder / "images" / "train" / name / "1.png").write_bytes(b"\x89PNG no more")
    (folder / "images" / "train.npz").write_bytes(b"PK no more")
    (folder / "own").mkdir()
    np.savez(folder / "own" / "train.npz", images=np.zeros((8, 8, 8), np.uint8), labels=[0, 1] * 4)


def content(folder: Path) -> dict[str, bytes | None]:
    """Return all that is in a folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def fault(code: int, error: str, sentence: str) -> str | None:
    """Return what is wrong with the answer to a wrong call; None for code 2 and one line, or tyro's box, on it."""
    if code != 2:
        return f"exit code {code}"
    of_tyro = "For full helptext" in error and "Traceback" not in error
    if not of_tyro and not (error.startswith("error: ") and error.count("\n") == 1):
        return f"not one sentence: {error}"
    return None if sentence in error else f"{sentence!r} is not in {error!r}"
