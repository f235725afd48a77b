"""The wheel carries everything: installed without the checkout it trains and samples in an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built with the build backend that is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
        cwd=folder,
    )
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_package_configs_and_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in [*(ROOT / "diffgen").rglob("*.py"), *(ROOT / "configs").rglob("*.yaml")]:
        inside = file.relative_to(ROOT)
        assert str(inside if inside.parts[0] == "diffgen" else "diffgen" / inside) in names
    assert any(name.endswith("LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "scripts/", "configs/")) for name in names)


def test_the_quickstart_runs_from_the_wheel_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(site), str(wheel), cwd=home)
    environment = {
        "PYTHONPATH": str(site),
        "PATH": f"{site / 'bin'}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    where = run(sys.executable, "-c", "import diffgen; print(diffgen.__file__)", cwd=home, **environment)
    assert where.strip() == str(site / "diffgen" / "__init__.py"), "not the checkout"
    small = ["train.images=128", "preview.n=4", "run_dir=run"]
    assert "1,437 images" in run("diffgen-train", "experiment=quickstart", *small, cwd=home, **environment)
    run("diffgen-sample", "ckpt=run", "n=4", "out=out", cwd=home, **environment)
    assert (home / "out" / "grid.png").is_file()
    assert "diffgen-train dataset=cifar10" in run("diffgen-train", "--help", cwd=home, **environment)
