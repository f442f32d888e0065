"""The wheel, installed into an empty folder and used there, outside the checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

from nas.version import VERSION

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def names(folder, pattern="*"):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(pattern) if path.suffix != ".pyc")


def test_the_wheel_gives_a_working_library_with_cells_and_assets(tmp_path):
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("nas", "genotypes"):
        shutil.copytree(ROOT / name, source / name)
    build = [*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("nas-*.whl")
    install = [*PIP, "install", "--no-deps", "--no-index", "--no-compile", "--target", installed, wheel]
    subprocess.run(install, check=True, capture_output=True)

    def run(*arguments):
        environment = {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", *arguments]  # -P: the working directory is not searched
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "import nas; print(nas.__file__, len(nas.Genotype.load('DARTS_V2').normal))"
    assert run("-c", code).split() == [str(installed / "nas" / "__init__.py"), "8"]
    assert "3,349,342 weights" in run("-m", "nas.genotypes", "show", "DARTS_V2")
    assert names(installed / "nas" / "published") == names(ROOT / "genotypes", "*.json")
    expected = [name for name in names(ROOT / "nas") if (ROOT / "nas" / name).is_file()]
    assert {"py.typed", "report/assets/report.html"} <= {*expected} <= {*names(installed / "nas")}
    (about,) = installed.glob("nas-*.dist-info")
    lines = (about / "METADATA").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert {f"Version: {VERSION}", "License-Expression: MIT", "Author: The nas authors"} <= {*lines}
    assert (about / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
