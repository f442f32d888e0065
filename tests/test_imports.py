"""Which module may know which: the arrows of the code, read from its imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "version": set(),
    "errors": set(),
    "search_space": set(),
    "files": {"errors"},
    "draw": {"search_space"},
    "genotype_text": {"files", "errors"},
    "genotype": {"search_space", "draw", "files", "genotype_text", "errors"},
    "depthwise": set(),
    "accuracy": {"files", "errors"},
    "batch_norm": set(),
    "processes": {"errors"},
    "operations": {"search_space", "depthwise", "batch_norm"},
    "supernet": {"search_space", "operations", "depthwise", "batch_norm"},
    "final_network": {
        "search_space",
        "operations",
        "batch_norm",
        "genotype",
        "checkpoint",
        "config",
        "config_file",
        "errors",
    },
    "export": {"final_network", "command_line", "files", "errors"},
    "network_size": {"final_network", "genotype"},
    "genotype_forms": {"search_space", "genotype", "genotype_text", "errors"},
    "genotype_lines": {"search_space", "genotype", "network_size", "errors"},
    "genotype_files": {"files", "genotype", "genotype_forms", "genotype_text", "errors"},
    "random_genotype": {"search_space", "genotype"},
    "genotypes": {
        *("draw", "genotype", "genotype_lines", "genotype_files", "random_genotype", "command_line", "errors"),
    },
    "hypergradient": set(),
    "augment": set(),
    "image_folder": {"files", "memory", "errors"},
    "arrays": {"errors"},
    "npz": {"arrays", "memory", "errors"},
    "datasets": {"image_folder", "npz", "errors"},
    "training": {"accuracy", "batch_norm", "augment", "config", "datasets", "processes", "errors"},
    "checkpoint": {"files", "errors"},
    "config": set(),
    "config_file": {"config", "files", "errors"},
    "threads": {"config", "config_file", "memory", "processes", "errors"},
    "jobs": {"checkpoint", "run_folder", "threads", "errors"},
    "jobs_view": {"checkpoint", "errors", "forecast", "jobs", "progress_bar"},
    "selection": {"genotype", "report_data", "search_space", "errors"},
    "searches": {
        *("command_line", "config", "datasets", "errors", "files", "genotype", "random_genotype", "interrupts", "jobs"),
        *("jobs_view", "report", "run_folder", "selection"),
    },
    "search_step": {"batch_norm", "config", "hypergradient", "processes", "supernet", "training"},
    "search_records": {
        *("checkpoint", "config", "draw", "environment", "errors", "follower", "forecast", "genotype", "memory"),
        *("accuracy", "network_size", "report", "run_folder", "search_space", "supernet", "training"),
    },
    "command_line": {"foreign_flags", "config", "config_file", "processes", "threads", "errors"},
    "environment": {"version"},
    "event_file": set(),
    "interrupts": set(),
    "report_data": {
        *("accuracy", "command_line", "config", "config_file", "errors", "genotype", "network_size", "search_space"),
    },
    "report": {"command_line", "errors", "files", "report_data", "search_space"},
    "memory": set(),
    "foreign_flags": {"config", "config_file"},
    "forecast": {"batch_norm", "memory", "processes", "errors"},
    "progress_bar": {"forecast", "threads"},
    "follower": {"checkpoint", "processes", "run_folder", "errors"},
    "records": {"event_file", "errors"},
    "run_folder": {"checkpoint", "config", "config_file", "environment", "files", "records", "errors"},
}


def imported(path: Path) -> set[str]:
    """The modules of nas that a file imports, at its top or inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "nas":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nas."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("nas.")}
    return found


def test_every_module_has_its_arrows():
    assert {path.stem for path in (ROOT / "nas").glob("*.py")} == {*ALLOWED, "__init__"}


@pytest.mark.parametrize("module", ALLOWED)
def test_arrows_go_one_way(module):
    assert imported(ROOT / "nas" / f"{module}.py") <= ALLOWED[module]


def test_search_and_retraining_do_not_mix():
    assert imported(ROOT / "search.py").isdisjoint({"final_network"})
    assert imported(ROOT / "train_final.py").isdisjoint({"supernet", "hypergradient"})


def test_the_baseline_is_independent():
    assert imported(ROOT / "benchmarks" / "baseline.py") == set()


def test_nobody_knows_the_scripts():
    for path in [*(ROOT / "nas").glob("*.py"), ROOT / "benchmarks" / "baseline.py"]:
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
        assert names.isdisjoint({"search", "train_final"}), path
