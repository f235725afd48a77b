"""What the commands share: finding the configs, running Hydra, and answering bad input with one sentence.

Nothing here imports torch, so that `--help`, `--cfg job` and a wrong override answer at once.
"""

import argparse
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffgen import __version__
from diffgen.cli import plugins
from diffgen.cli.brought import with_brought
from diffgen.cli.configs import PLUGGED, as_yaml, config_dir, defaults, groups
from diffgen.cli.explain import check_choice, explain
from diffgen.core.console import WARNED, complain, tell_warning
from diffgen.core.errors import DiffgenError, EnvironmentFault, UsageError, no_memory, out_of_memory, typed, unknown
from diffgen.core.files import cache_folder
from diffgen.core.paths import NAMES, at_home, check_folder, quoted, setting, walk

Job = Callable[[dict[str, Any], str], None]

FOLDERS = ("run_dir", "out", "cache", "to", "latent.cache")
"""Settings that name a folder to write to."""

PATHS = (
    *FOLDERS,
    "ckpt",
    "guide",
    "images",
    "latent",
    "train.resume",
    "train.init",
    "train.perceptual",
    "latent.path",
    "dataset.root",
    "dataset.path",
)
"""Settings whose value may look like a number, and is a path."""

LOOKS = re.compile(r"(?<![^\[,])\s*([\d.+-][\w.+-]*|true|false|null|nan|inf)\s*(?![^\],])", re.IGNORECASE)
"""A value, or an item of a list, that YAML takes for something else than text."""


def run(name: str, job: Job, help_text: Callable[[], str], checked_by_job: tuple[str, ...] = ()) -> int:
    """Run one command.

    Args:
        name: The top-level config, `train` or `sample`.
        job: Called with the resolved config as plain data and as YAML text.
        help_text: What `--help` prints.
        checked_by_job: Groups of settings whose keys no default has: the job knows which there are.

    Returns:
        The exit code; see `diffgen.core.errors.EXIT_CODES`.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        return answer(_load_plugins) or answer(lambda: print(help_text(), flush=True))
    if "--version" in sys.argv[1:]:
        print(f"diffgen {__version__}")
        return 0
    codes: list[int] = []

    def task(config: DictConfig) -> None:
        codes.append(answer(lambda: _task(name, config, job, checked_by_job)))
        if codes[-1] and is_sweep():
            _tell_sweep(name, config, codes[-1])
        if codes[-1] > 128:
            raise SystemExit(codes[-1])  # a signal ends a sweep too

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed by Hydra
    _tune_libraries()
    warnings.showwarning = tell_warning
    # of convolutions with an axis of one entry, whose strides mean nothing
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    WARNED.clear()
    main = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)(task)
    flags = [argument for argument in sys.argv[1:] if argument in ("-m", "--multirun")]
    others = [as_path(argument) for argument in sys.argv[1:] if argument not in flags]

    def order() -> None:
        sys.argv[1:] = [*flags, *(with_brought(others) if name == "train" else others)]  # wherever they stand

    try:
        code = answer(order) or answer(_load_plugins) or answer(_check_arguments) or answer(main, name)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return code or next((code for code in codes if code), 0)


def _tell_sweep(name: str, config: DictConfig, code: int) -> None:
    """What became of a job of a sweep that failed, or that a signal ended."""
    job = HydraConfig.get()
    typed = shlex.join(job.overrides.task)
    if code <= 128:
        complain(f"job {job.job.num} failed: {typed}")
    elif name == "train":
        again = setting("run_dir", job_folder(config.run_dir))
        complain(f"the sweep ends with this job, which goes on alone: diffgen-train {typed} {again}")
    else:
        complain(f"the sweep ends with this job, which can be done alone: diffgen-{name} {typed}")


def _tune_libraries() -> None:
    """What torch and the libraries below it read from the environment when they start, unless the user has set it."""
    # A spinning thread holds the core that the thread it waits for may need. With short spins a CPU that is busy with
    # other work trains about three times faster than with libgomp's default, and an idle one as fast.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # torch keeps compiled networks below /tmp, which many machines empty; here a second run finds them again.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1:  # all compile at once, each with a worker for every core
        workers = max(1, min(32, os.cpu_count() or 1) // processes)
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(workers))


def as_path(argument: str) -> str:
    """An argument, in quotes where a text looks like a number or a word of YAML's.

    `run_dir=2026_11_27` is not 20261127, and `label=1.10` is the class of that name, and not 1.1.
    """
    key, _, value = argument.partition("=")
    key = key.lstrip("+")
    if key in PATHS and re.fullmatch(r"[\d.][\d._e+-]*", value):
        return f"{key}={quoted(value)}"
    return f"{key}={LOOKS.sub(lambda match: quoted(match[0]), value)}" if key in NAMES else argument


def _load_plugins() -> None:
    sys.argv[1:] = plug(sys.argv[1:])


def plug(arguments: list[str]) -> list[str]:
    """Import the plugins that are named among arguments; returns these with one list of them.

    Raises:
        UsageError: One cannot be found, or fails.
        HydraException: Hydra's grammar cannot read their names.
    """
    names, others = plugins.named(arguments)
    PLUGGED.update(plugins.load(names))
    return [*others, f"plugins=[{','.join(map(quoted, names))}]"] if names else others


def _check_arguments() -> None:
    """Answer what Hydra would answer with its own usage or a traceback."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        arguments, foreign = parser.parse_known_args()
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}; --help shows the usage") from None
    if foreign:
        raise UsageError(f"{foreign[0]} is no flag; settings are KEY=VALUE, --help lists them")
    if arguments.resolve and not arguments.cfg:
        raise UsageError("--resolve goes with --cfg job")
    check_overrides(arguments.overrides)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and {"-m", "--multirun"} & set(sys.argv[1:]):
        raise UsageError("-m cannot run inside several processes: sweep with a shell loop over torchrun commands")


def check_overrides(overrides: list[str]) -> None:
    """Answer what Hydra would answer with a traceback.

    Raises:
        UsageError: An override names no setting, or something that is no row's name for a group.
    """
    for key, _, value in (override.partition("=") for override in overrides):
        if not key.strip("+~"):
            raise UsageError(f"'{key}={value}' names no setting; settings are KEY=VALUE, --help lists them")
        if key in groups():
            check_choice(key, value)


def _task(name: str, config: DictConfig, job: Job, checked_by_job: tuple[str, ...]) -> None:
    plain = checked(name, config, list(HydraConfig.get().overrides.task), checked_by_job)
    job(plain, as_yaml(plain))


def checked(
    name: str, config: DictConfig, overrides: list[str], checked_by_job: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A composed config as plain data, its keys and kinds of values checked.

    Args:
        name: The top-level config.
        config: As Hydra composes it.
        overrides: From which it was composed.
        checked_by_job: Groups whose keys are left to the job.

    Raises:
        UsageError: See `check_against_defaults`; or a folder is a file.
        OmegaConfBaseException: A value is missing, or names another one that is not there.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    ours = {key: value for key, value in plain.items() if key not in checked_by_job}
    check_against_defaults(name, ours, overrides)
    plugins.check(plain["plugins"], overrides)
    told: dict[str, Any] = walk(plain, _placed)
    return told


def _placed(key: str, text: str) -> str:
    """A setting's text as a path, if it is one; see `at_home` and `check_folder`."""
    text = at_home(key, text)
    if key in FOLDERS:
        check_folder(key, text)
    return text


def _tell(sentence: str, *, silent: bool) -> None:
    """Tell an error, once for all processes if it is the same on all (`silent` on the others)."""
    if int(os.environ.get("RANK", "0")) > 0 and silent:
        time.sleep(10)  # launchers end all processes when one leaves: the main one should speak first
    else:
        complain(sentence)


def answer(call: Callable[[], object], name: str = "") -> int:
    """Run something; tell what a user can mend in one sentence, and return the exit code."""
    try:
        call()
    except DiffgenError as error:
        _tell(str(error), silent=error.told_elsewhere or not error.alone)
        return error.exit_code
    except (HydraException, OmegaConfBaseException) as error:
        _tell(explain(name, error, sys.argv[1:]), silent=True)
        return UsageError.exit_code
    except KeyboardInterrupt:
        complain("stopped by Ctrl-C")
        return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  the reader went away; nothing is left to tell
        return 141
    except Exception as error:
        if not out_of_memory(error):
            raise
        _tell(no_memory(error), silent=False)
        return EnvironmentFault.exit_code
    return 0


# --- keys and types -------------------------------------------------------------------------------------------------


def check_against_defaults(name: str, config: Mapping[str, Any], overrides: list[str]) -> None:
    """Compare keys and kinds of values with the defaults of the chosen groups.

    Raises:
        UsageError: A key that the defaults do not have, or a value of another kind.
    """
    compare(defaults(name, overrides), config)


def compare(base: Any, value: Any, key: str = "") -> None:
    """The same of defaults that are at hand; `key` is where both stand.

    Raises:
        UsageError: See `check_against_defaults`.
    """
    if isinstance(base, dict) and isinstance(value, Mapping):
        for name in value:
            path = f"{key}.{name}".lstrip(".")
            if name not in base:
                raise UsageError(unknown(path, [f"{key}.{k}".lstrip(".") for k in base]))
            compare(base[name], value[name], path)
        return
    if "." not in key and not isinstance(base, dict):
        return  # settings outside groups are checked by `diffgen.core.settings`
    if isinstance(base, list) and base and not isinstance(value, list):
        base = base[0]  # one item may stand for a list of one; whoever reads the setting decides
    if base is None or value is None or base in ("auto", "none", "???") or _kind(base) == _kind(value):
        if isinstance(base, int) and isinstance(value, float) and not value.is_integer() and base is not True:
            raise UsageError(f"{key}={typed(value)} must be a whole number, like its default {typed(base)}")
        return
    if isinstance(base, dict):
        raise UsageError(
            f"{key}={typed(value)} must be a group of settings: {key}.NAME=VALUE with NAME of [{', '.join(base)}]"
        )
    raise UsageError(f"{key}={typed(value)} must be {_kind(base)}, like its default {typed(base)}")


def _kind(value: Any) -> str:
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a group",
    }
    return kinds.get(type(value), "null")


# --- sweeps ----------------------------------------------------------------------------------------------------------


def is_sweep() -> bool:
    """Whether this job is one of a sweep (`-m`)."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def sweep_folder() -> Path:
    """This job's folder inside the sweep."""
    return Path(HydraConfig.get().runtime.output_dir)


def job_folder(given: object) -> Path:
    """Where a job of a sweep writes: its folder inside the sweep's, or inside the one that was given for all jobs."""
    return Path(at_home("run_dir", str(given))) / sweep_folder().name if given else sweep_folder()
