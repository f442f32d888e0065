"""Wrong calls of the two scripts, and what is said of each: python -m tests.bad_calls tries them all for real.

A call may be made in a folder that holds `genotypes/taken.json` (no genotype), the folder `runs/made` (no run),
`images/` with files that are no images and a `train.npz` that is none, and `own/` with a `train.npz` alone.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent

_SEARCH = [
    ("--batch-size 0", "--batch-size: must be greater than or equal to 2, got 0"),
    ("--batch-size -3", "--batch-size: must be greater than or equal to 2, got -3"),
    ("--batch-size 2.5", "Error parsing --batch-size: "),
    ("--batch-size 1e6", "Error parsing --batch-size: "),
    ("--epochs 0", "--epochs: must be greater than or equal to 1, got 0"),
    ("--epochs many", "Error parsing --epochs: "),
    ("--epochs 100001", "--epochs: must be less than or equal to 100000, got 100001"),
    ("--init-channels 0", "--init-channels: must be greater than or equal to 1, got 0"),
    ("--init-channels 1025", "--init-channels: must be less than or equal to 1024, got 1025"),
    ("--num-cells 0", "--num-cells: must be greater than or equal to 1, got 0"),
    ("--num-cells 201", "--num-cells: must be less than or equal to 200, got 201"),
    ("--num-nodes 0", "--num-nodes: must be greater than or equal to 1, got 0"),
    ("--num-nodes 9", "--num-nodes: must be less than or equal to 8, got 9"),
    ("--lower-lr 0", "--lower-lr: must be greater than 0, got 0.0"),
    ("--lower-lr fast", "Error parsing --lower-lr: "),
    ("--lower-lr -1", "--lower-lr: must be greater than 0, got -1.0"),
    ("--lower-lr nan", "--lower-lr: must be a finite number, got nan"),
    ("--lower-lr inf", "--lower-lr: must be a finite number, got inf"),
    ("--lower-lr-min 0.5", "--lower-lr-min: must be at most --lower-lr, 0.025, got 0.5"),
    ("--momentum 1", "--momentum: must be less than 1, got 1.0"),
    ("--momentum -0.1", "--momentum: must be greater than or equal to 0, got -0.1"),
    ("--weight-decay -1", "--weight-decay: must be greater than or equal to 0, got -1.0"),
    ("--grad-clip 0", "--grad-clip: must be greater than 0, got 0.0"),
    ("--alpha-lr 0", "--alpha-lr: must be greater than 0, got 0.0"),
    ("--alpha-lr 1e39", "--alpha-lr: must be at most 3e38, got 1e+39"),
    ("--alpha-weight-decay -1", "--alpha-weight-decay: must be greater than or equal to 0, got -1.0"),
    ("--upper-fraction 0", "--upper-fraction: must be greater than 0, got 0.0"),
    ("--upper-fraction 1", "--upper-fraction: must be less than 1, got 1.0"),
    ("--dataset digits --lower-lr 1e30 --dry-run", "--lower-lr: too large for the first steps: "),
    ("--dataset digits --upper-fraction 0.001", "--upper-fraction 0.001: 1436 images for"),
    ("--hypergradient exact", "invalid choice 'exact' for argument '--hypergradient'"),
    ("--hypergradient first-order --share-lower-step", "--share-lower-step: goes with --hypergradient onestage"),
    ("--r 0", "--r: must be greater than 0, got 0.0"),
    ("--seed -1", "--seed: must be greater than or equal to 0, got -1"),
    ("--seed 4294967296", "--seed: must be less than 4294967296, got 4294967296"),
    ("--device tpu", "invalid choice 'tpu' for argument '--device'"),
    ("--dataset imagenet", "invalid choice 'imagenet' for argument '--dataset'"),
    ("--dataset digits --image-size 16", "--image-size 16: goes with --dataset folder"),
    ("--dataset folder --image-size 32x32", "Error parsing --image-size: "),
    ("--dataset folder --image-size 7", "--image-size: must be greater than or equal to 8, got 7"),
    ("--dataset folder --data-dir nowhere", "--data-dir nowhere: there is no folder nowhere/train"),
    ("--dataset folder --data-dir images", "images/train/ant/1.png: cannot be read as an image"),
    ("--dataset folder --data-dir images --skip-bad-images", "no image is left of the class images/train/ant."),
    ("--dataset folder --data-dir images/train", "there is no folder images/train/train; images are expected as"),
    (f"--dataset folder --data-dir {'a' * 300}", "a: there is no folder aaa"),
    (f"--dataset npz --data-dir {'a' * 300}", "a: there is no file aaa"),
    ("--data-dir images", "--data-dir images, which holds images/train; for images of your own add --dataset folder"),
    ("--dataset svhn --data-dir own", "which holds own/train.npz; for images of your own add --dataset npz"),
    ("--dataset npz --data-dir own --upper-fraction 0.9", "--upper-fraction 0.9: 1 image for the weights"),
    ("--dataset digits --skip-bad-images", "--skip-bad-images: goes with --dataset folder"),
    ("--dataset npz --data-dir nowhere", "--data-dir nowhere: there is no file nowhere/train.npz"),
    ("--dataset npz --data-dir images", "images/train.npz: no .npz file, or a damaged one"),
    ("--dataset npz --data-dir images --image-size 32", "--image-size 32: goes with --dataset folder"),
    ("--dataset npz --data-dir images --skip-bad-images", "--skip-bad-images: goes with --dataset folder"),
    ("--dataset digits --resize pad", "--resize pad: needs --dataset folder"),
    ("--dataset folder --resize stretch", "--resize"),
    ("--dataset npz --test-fraction 0.2", "--test-fraction 0.2: needs --dataset folder"),
    ("--dataset folder --test-fraction 1", "--test-fraction: must be less than 1, got 1.0"),
    ("--dataset digits --crop-padding 5", "--crop-padding 5: more than half of the images, which have 8 pixels a side"),
    ("--dataset digits --crop-padding -1", "--crop-padding: must be greater than or equal to 0, got -1"),
    ("--dataset digits --balanced --resume nowhere", "nowhere: no run folder"),
    ("--balanced=yes", "Unrecognized options: yes"),
    ("--no-balanced", "--no-balanced"),
    ("--train-limit 3", "--train-limit: must be greater than or equal to 4, got 3"),
    ("--name ../elsewhere", "--name: must be up to 100 letters"),
    ("--name .hidden", "--name: must be up to 100 letters"),
    ("--name a/b", "--name: must be up to 100 letters"),
    ("--name", "Missing value for argument '--name'"),
    ("--dataset digits --name taken", "--name taken: genotypes/taken.json exists already"),
    ("--dataset digits --name made", "--name made: runs/made exists already"),
    ("--dataset digits --run-dir genotypes/taken.json --name a", "--run-dir: genotypes/taken.json/a cannot be made"),
    ("--resume nowhere", "nowhere: no run folder, as it holds no config.json"),
    ("--resume runs/made", "runs/made: no run folder, as it holds no config.json"),
    ("--resume", "--resume: --resume RUN_DIR continues a run"),
    ("--checkpoint-minutes -1", "--checkpoint-minutes: must be greater than or equal to 0, got -1.0"),
    ("--checkpoint-minutes nan", "--checkpoint-minutes: must be a finite number, got nan"),
    ("--max-bad-steps 0", "--max-bad-steps: must be greater than or equal to 1, got 0"),
    ("--batchsize 3", "Unrecognized options: --batchsize, 3"),
    ("--genotype DARTS_V2", "--genotype: it is a flag of train_final.py."),
    ("stray", "stray"),
    ("--searches 0", "--searches: must be greater than or equal to 1, got 0"),
    ("--searches 201", "--searches: must be less than or equal to 200, got 201"),
    ("--random-baseline -1", "--random-baseline: must be greater than or equal to 0, got -1"),
    ("--searches 2 --selection-epochs 0", "--selection-epochs: must be greater than or equal to 1, got 0"),
    ("--searches 2 --seed 4294967295", "--seed 4294967295: too large"),
    ("--searches 2 --ray here", "--ray: must be local, auto or the HOST:PORT of a cluster, got 'here'"),
    ("--searches 2 --ray auto twice", "--ray: must be local, auto or the HOST:PORT of a cluster, got 'auto twice'"),
    ("--searches 2 --ray --devices-per-search 1.5", "--devices-per-search: must be a whole number where it is above 1"),
    ("--searches 2 --ray --devices-per-search 0", "--devices-per-search: must be greater than or equal to 0.0001, got"),
    ("--searches 2 --devices-per-search 0.5", "--devices-per-search: goes with --ray"),
    ("--ray", "--ray: goes with --searches above 1, or --random-baseline above 0"),
    ("--dataset digits --searches 2 --name taken", "--name taken: genotypes/taken.json exists already"),
    ("--dataset digits --searches 2 --name made", "--name made: runs/made exists already"),
    (f"--dataset digits --searches 2 --name {'a' * 81}", "--name: must be up to 80 characters"),
    ("--dataset folder --data-dir nowhere --searches 2", "--data-dir nowhere: there is no folder nowhere/train"),
]
_FINAL = [
    ("", "--genotype: missing"),
    ("--genotype DARTS_V1 --evaluate a", "--evaluate: goes without --genotype"),
    ("--evaluate a --resume a", "--evaluate: goes without --resume"),
    ("--genotype DARTS_V3", "known names: AmoebaNet, DARTS_V1, DARTS_V2"),
    ("--genotype genotypes/taken.json", "genotype genotypes/taken.json: there is no genotype in it"),
    ("--genotype ../../etc/passwd", "genotype ../../etc/passwd"),
    ("--genotype darts_v2", "no cell of this name; perhaps you meant DARTS_V2; known names"),
    ("--genotype |nor_conv_3x3~0|", "genotype text: a cell of NAS-Bench-201, which is another search space"),
    ("--genotype runs", "genotype runs: not a run folder: genotype.json is missing"),
    ("--genotype __import__('os').system('true')", "there is no file and no cell of this name"),
    ("--genotype DARTS_V1 --dataset npz --data-dir nowhere", "--data-dir nowhere: there is no file nowhere/train.npz"),
    (
        "--genotype DARTS_V1 --dataset npz --data-dir own",
        "own/train.npz: there is no array test_images or x_test",
    ),
    ("--genotype DARTS_V1 --dataset folder --data-dir images", "images/train/ant/1.png: cannot be read as an image"),
    ("--genotype DARTS_V1 --dataset digits --cutout 9", "--cutout 9: larger than the images"),
    (
        "--genotype DARTS_V1 --dataset digits --train-limit 5 --batch-size 2",
        "--batch-size 2: 5 images make batches of 1",
    ),
    ("--genotype DARTS_V1 --cutout -1", "--cutout: must be greater than or equal to 0, got -1"),
    ("--genotype DARTS_V1 --auxiliary-weight -1", "--auxiliary-weight: must be greater than or equal to 0, got -1.0"),
    ("--genotype DARTS_V1 --stem large", "--stem"),
    (
        "--genotype DARTS_V1 --stem imagenet --init-channels 1",
        "--init-channels: must be at least 2 with --stem imagenet",
    ),
    ("--genotype DARTS_V1 --drop-path 1", "--drop-path: must be less than 1, got 1.0"),
    ("--genotype DARTS_V1 --lr 0", "--lr: must be greater than 0, got 0.0"),
    ("--genotype DARTS_V1 --skip-test", "--skip-test: goes with --holdout-fraction above 0"),
    ("--evaluate a --skip-test --holdout-fraction 0.5", "--skip-test: goes without --evaluate"),
    ("--genotype DARTS_V1 --holdout-fraction 1", "--holdout-fraction: must be less than 1, got 1.0"),
    ("--genotype DARTS_V1 --holdout-fraction -0.5", "--holdout-fraction: must be greater than or equal to 0, got -0.5"),
    ("--genotype DARTS_V1 --dataset digits --holdout-fraction 0.9999", "--holdout-fraction 0.9999: fewer than two"),
    ("--genotype DARTS_V1 --batch-size 1", "--batch-size: must be greater than or equal to 2, got 1"),
    ("--genotype DARTS_V1 --dataset digits --name made", "--name made: runs/made exists already"),
    ("--evaluate nowhere", "nowhere: no run folder"),
    ("--evaluate nowhere --epochs 3", "--epochs: goes without --evaluate, which measures what was trained"),
    ("--evaluate nowhere --dry-run", "--dry-run: goes without --evaluate"),
    ("--resume nowhere", "nowhere: no run folder"),
    ("--alpha-lr 1", "--alpha-lr: it is a flag of search.py."),
]
# Flags of other programs.
_SEARCH += [
    ("--layers 8", "--layers: here it is --num-cells 8."),
    ("--layers=8 --epochs 3", "--layers: here it is --num-cells 8."),
    ("--layers", "--layers: here it is --num-cells."),
    ("--learning_rate 0.025 --dry-run", "--learning_rate: here it is --lower-lr 0.025."),
    ("--lr 0.1", "--lr: here it is --lower-lr 0.1."),
    ("--arch_learning_rate 3e-4 --unrolled", "--alpha-lr 3e-4. --unrolled: second order is the default"),
    ("--unrolled --batch_size 8", "First order is --hypergradient first-order."),
    (
        "--train_portion 0.7",
        "--train_portion: the alphas have the other part of the images; their share is --upper-fracti",
    ),
    ("--train-portion .7", "--upper-fraction 0.3."),
    ("--gpu 0", "--gpu: write CUDA_VISIBLE_DEVICES=0 before the command; torchrun --nproc-per-node N search.py uses N"),
    ("--gpus 1,3", "CUDA_VISIBLE_DEVICES=1,3 before"),
    ("--data ../data", "--data: here it is --data-dir ../data."),
    ("--data 'a", """--data: here it is --data-dir ''"'"'a'."""),
    ("--save /tmp/checkpoints/EXP", "--save: the name of the run is --name EXP."),
    ("--set cifar100", "--set: here it is --dataset cifar100."),
    ("--cutout --cutout_length 16", "--cutout: a search does not use cutout"),
    ("--drop_path_prob 0.3", "--drop_path_prob: a search drops no paths"),
    ("--auxiliary", "--auxiliary: the supernet has no auxiliary head"),
    ("--report_freq 50 --model_path m --workers 4", "--workers: all images are in memory"),
    ("--add_layers 6 --add_layers 12", "--add_layers: it belongs to the stages of P-DARTS"),
    (
        "--w_lr 0.025 --w_weight_decay 3e-4",
        "here it is --lower-lr 0.025. --w_weight_decay: here it is --weight-decay 3e-4.",
    ),
]
_FINAL += [
    ("--arch DARTS", "--arch: here it is --genotype DARTS_V2."),
    ("--arch PDARTS --layers 20", "--genotype PDARTS. --layers: here it is --num-cells 20."),
    ("--genotype DARTS_V2 --auxiliary", "--auxiliary: the auxiliary head is on unless you give --auxiliary-weight 0"),
    ("--genotype DARTS_V2 --cutout", "--cutout: cutout is on, with a square of half the image"),
    ("--cutout --genotype DARTS_V2", "--cutout: cutout is on, with a square of half the image"),
    ("--genotype DARTS_V2 --cutout_length 16", "--cutout_length: here it is --cutout 16."),
    ("--genotype DARTS_V2 --drop_path_prob 0.3", "--drop_path_prob: here it is --drop-path 0.3."),
    ("--genotype DARTS_V2 --learning_rate 0.1", "--learning_rate: here it is --lr 0.1."),
    ("--model_path weights.pt", "--model_path: --evaluate RUN_DIR measures the test accuracy"),
    ("--evaluate", "--evaluate: --evaluate RUN_DIR measures the test accuracy"),
    ("--no-cuda --amp --num-workers 4", "--no-cuda: it is --device cpu. --amp: everything is computed in float32"),
]
CALLS = [("search.py", call.split(), sentence) for call, sentence in _SEARCH]
CALLS += [("train_final.py", call.split(), sentence) for call, sentence in _FINAL]


def make_surroundings(folder: Path) -> None:
    """What the calls find there."""
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
    """All that is in a folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def fault(code: int, error: str, sentence: str) -> str | None:
    """What is wrong with the answer to a wrong call; None where it is code 2, and one line or tyro's box on it."""
    if code != 2:
        return f"exit code {code}"
    of_tyro = "For full helptext" in error and "Traceback" not in error
    if not of_tyro and not (error.startswith("error: ") and error.count("\n") == 1):
        return f"not one sentence: {error}"
    return None if sentence in error else f"{sentence!r} is not in {error!r}"


def main() -> int:
    num_faults = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_surroundings(folder)
        before = content(folder)
        for script, arguments, sentence in CALLS:
            done = subprocess.run(
                [sys.executable, str(ROOT / script), *arguments],
                cwd=folder,
                env=os.environ | {"NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
            )
            wrong = fault(done.returncode, done.stderr, sentence) or (
                None if content(folder) == before else "something was written"
            )
            num_faults += wrong is not None
            print(f"{script} {' '.join(arguments)}\n    {wrong or done.stderr.strip()}", flush=True)
    print(f"{len(CALLS)} wrong calls, {num_faults} badly answered")
    return min(num_faults, 1)


if __name__ == "__main__":
    sys.exit(main())
