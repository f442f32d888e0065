"""Accuracy per class, against scikit-learn's; what is said of it, and the file that keeps it."""

import json
import re

import pytest
import torch
from sklearn import metrics

from nas.errors import InputError
from nas.training.accuracy import FILE, AccuracyFile, Measured, count_answers, wilson_interval


def measured(counts, loss=0.5):
    """By class, how many images there are and how many of them got the right answer; wrong ones got the next class."""
    targets = [kind for kind, (images, _) in enumerate(counts) for _ in range(images)]
    answers = [
        (kind + (rank >= right)) % len(counts) for kind, (images, right) in enumerate(counts) for rank in range(images)
    ]
    return Measured(loss, *count_answers(torch.tensor(targets), torch.tensor(answers), len(counts)))


@pytest.mark.parametrize(
    ("num_classes", "present", "num_images"), [(2, 2, 9), (7, 5, 300), (100, 90, 2000), (101, 101, 999)]
)
def test_the_figures_are_those_of_scikit_learn(num_classes, present, num_images):
    generator = torch.Generator().manual_seed(num_classes)
    targets = torch.randint(present, (num_images,), generator=generator)
    answers = torch.where(torch.rand(num_images, generator=generator) < 0.5, targets, targets.flip(0))
    found = Measured(0.0, *count_answers(targets, answers, num_classes))
    assert found.accuracy == metrics.accuracy_score(targets, answers)
    assert found.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(targets, answers), rel=1e-12)
    largest = targets.bincount().argmax()
    assert found.largest_class == largest
    assert found.majority_accuracy == metrics.accuracy_score(targets, largest.expand(num_images))
    assert (found.confusion is None) == (num_classes > 100)
    if found.confusion is not None:
        assert (found.confusion.numpy() == metrics.confusion_matrix(targets, answers, labels=range(num_classes))).all()


@pytest.mark.parametrize(
    ("right", "recall", "of_all", "balanced", "advice"),
    [
        (0, "  0.00%", "95.00%", "50.00%", ["This network is no better than always guessing 'a', the largest class."]),
        (1, " 25.00%", "96.25%", "62.50%", []),
    ],
)
def test_all_of_it_in_words(right, recall, of_all, balanced, advice):
    assert measured([(76, 76), (4, right), (0, 0)]).lines("x:", ("a", "b", "c")) == [
        *("accuracy of each class:", "  'a' 100.00% of 76", f"  'b' {recall} of 4", *advice),
        f"x: {of_all} of 80 images (loss 0.500); balanced accuracy {balanced}; always guessing 'a', the largest "
        "class, would reach 95.00%",
    ]


def test_of_many_classes_the_worst_are_named_and_names_are_harmless():
    counts = [(10, 10 - index % 7) for index in range(21)]
    names = ("a\x1b[31m" + 100 * "b", *map(str, range(1, 21)))
    title, *worst, last = measured(counts, loss=float("nan")).lines("x:", names)
    assert title == "accuracy of the 5 worst of 21 classes:"
    assert [re.search(r"'(\d+)' +([\d.]+%) of 10", line).groups() for line in worst] == [
        *(("6", "40.00%"), ("13", "40.00%"), ("20", "40.00%"), ("5", "50.00%"), ("12", "50.00%"))
    ]
    assert last.isprintable()
    assert "(loss not finite)" in last
    assert len(last) < 300


@pytest.mark.parametrize("num_classes", [2, 100, 101])
def test_the_file_holds_the_counts_of_any_number_of_classes(num_classes, tmp_path):
    found = measured([(2, index % 3) for index in range(num_classes)])
    found.save(tmp_path, "test", 3)
    file = AccuracyFile.load(tmp_path / FILE, num_classes)
    assert (file.measured_on, file.epoch, (file.confusion is None)) == ("test", 3, num_classes > 100)
    assert file.measured.scalars("test") | {"test/loss": 0.5} == found.scalars("test")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format_version": 9}, "format_version is 9, this nas reads 1: install a newer nas"),
        ({"measured_on": "<b>"}, "measured_on: must be 'test' or 'held-out'"),
        ({"epoch": 0}, "epoch: "),
        ({"surplus\x1b": 1}, r"['surplus\x1b']: unknown field"),
        ({"num_images": [1.0, 2]}, "num_images[0]: "),
        ({"num_images": [4, -1]}, "num_images[1]: "),
        ({"num_images": [10**40, 1]}, "num_images[0]: "),
        *(
            (change, "its counts contradict each other, or are not those of 2 classes")
            for change in (
                {"num_images": [4]},
                {"num_images": [0, 0], "num_correct": [0, 0], "confusion": None},
                {"num_correct": [5, 1], "confusion": None},
                {"num_correct": [3, 1]},
                {"num_images": [4, 4, 0], "num_correct": [4, 1, 0]},
                {"confusion": [[4, 0]]},
                {"confusion": [[4, 0, 0], [3, 1, 0]]},
                {"confusion": [[4, 0], [2, 2]]},
            )
        ),
    ],
)
def test_a_file_from_elsewhere_is_checked(change, sentence, tmp_path):
    path = tmp_path / FILE
    measured([(4, 4), (4, 1)]).save(tmp_path, "held-out", 2)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError) as error:
        AccuracyFile.load(path, 2)
    assert str(error.value).startswith(f"accuracy {path}: ")
    assert sentence in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(("num_correct", "num_images"), [(0, 5), (5, 5), (344, 360), (1, 2), (9_000, 10_000)])
def test_the_interval_of_an_accuracy_is_that_of_scipy(num_correct, num_images):
    from scipy import stats  # which takes seconds

    found = stats.binomtest(num_correct, num_images).proportion_ci(method="wilson")
    assert wilson_interval(num_correct, num_images) == pytest.approx((found.low, found.high), abs=1e-6)
