"""The presets of a search: the defaults of a paper, and our own."""

from nas.config.flags import LowerLevel, SearchConfig, Selection, SupernetSize, UpperLevel

PRESETS = {
    "darts": SearchConfig(),
    "darts-first-order": SearchConfig(upper=UpperLevel(hypergradient="first-order")),
    "robust": SearchConfig(upper=UpperLevel(hypergradient="first-order", alpha_lr=1e-3, beta_decay=0.2)),
    "beta-darts": SearchConfig(upper=UpperLevel(beta_decay=0.5)),
    "pc-darts": SearchConfig(
        supernet=SupernetSize(partial_channels=4),
        lower=LowerLevel(batch_size=256, lower_lr=0.1, lower_lr_min=0.0),
        upper=UpperLevel(hypergradient="first-order", alpha_lr=6e-4, alpha_warmup=15),
    ),
    "darts-pt": SearchConfig(upper=UpperLevel(hypergradient="first-order", derivation="perturbation")),
    "drnas": SearchConfig(upper=UpperLevel(alpha_lr=6e-4, relaxation="dirichlet")),
    "sdarts-rs": SearchConfig(upper=UpperLevel(smoothing="random")),
    "gaea": SearchConfig(upper=UpperLevel(alpha_lr=0.1, relaxation="simplex")),
    "quick": SearchConfig(
        supernet=SupernetSize(init_channels=8, num_cells=3),
        lower=LowerLevel(epochs=8, batch_size=96),
        upper=UpperLevel(alpha_lr=0.01),
        selection=Selection(selection_epochs=10, selection_channels=16, selection_cells=3),
    ),
}
