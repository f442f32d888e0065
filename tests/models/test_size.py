import pytest

from nas.models.size import network_size
from nas.search_space.genotype import Genotype


@pytest.mark.parametrize(
    ("name", "expected"),
    [("DARTS_V1", (3_169_414, 3_645_840, 500_987_520)), ("DARTS_V2", (3_349_342, 3_825_768, 528_359_040))],
)
def test_published_cells_have_the_size_of_the_published_networks(name, expected):
    assert network_size(Genotype.load(name)) == expected


def test_the_form_for_imagenet_has_the_published_size():
    size = network_size(Genotype.load("DARTS_V2"), 224, 3, 48, 14, 1000, "imagenet")
    assert (size.weights, size.multiply_adds) == (4_718_752, 529_911_552)


def test_classes_change_the_classifier_and_the_head_alone():
    cell = Genotype.load("DARTS_V1")
    ten, hundred = (network_size(cell, init_channels=4, num_cells=3, num_classes=classes) for classes in (10, 100))
    features = 4 * 16  # four nodes, channels doubled twice
    assert hundred.weights - ten.weights == 90 * (features + 1)
    assert hundred.weights_with_head - ten.weights_with_head == 90 * (features + 1) + 90 * (768 + 1)
    assert hundred.multiply_adds - ten.multiply_adds == 90 * features


def test_image_channels_change_the_stem_alone():
    cell = Genotype.load("DARTS_V1")
    grey, colour = (network_size(cell, in_channels=channels, init_channels=4, num_cells=3) for channels in (1, 3))
    kernels = 2 * (3 * 4) * 3 * 3
    assert colour.weights - grey.weights == kernels
    assert colour.multiply_adds - grey.multiply_adds == kernels * 32 * 32
