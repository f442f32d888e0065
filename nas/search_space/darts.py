"""The search space of DARTS (Liu, Simonyan, Yang, ICLR 2019, section 2.1), whose inputs are c_{k-2} and c_{k-1}."""

from nas.search_space.space import NONE, SearchSpace

DARTS = SearchSpace(
    primitives=(
        NONE,
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
    ),
    num_inputs=2,
    edges_kept=2,
    further_primitives=("sep_conv_7x7", "conv_7x1_1x7"),  # of NASNet and AmoebaNet
    name="darts",
)
