"""What the commands share: finding the configs, running Hydra, and answering bad input with one sentence.

Nothing here imports torch, so that `--help`, `--cfg job` and a wrong override answer at once.
"""

import argparse
import difflib
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffgen import __version__
from diffgen.cli import plugins
from diffgen.cli.configs import PLUGGED, config_dir, defaults, groups
from diffgen.core.console import WARNED, complain, tell_warning
from diffgen.core.errors import DiffgenError, EnvironmentFault, UsageError, no_memory, out_of_memory, unknown
from diffgen.core.files import cache_folder

Job = Callable[[dict[str, Any], str], None]

FEW = 3
"""Settings of one name that a hint still lists."""


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
        return answer(lambda: print(help_text(), flush=True))
    if "--version" in sys.argv[1:]:
        print(f"diffgen {__version__}")
        return 0
    codes: list[int] = []

    def task(config: DictConfig) -> None:
        codes.append(answer(lambda: _task(name, config, job, checked_by_job)))
        if codes[-1] > 128:
            if is_sweep():
                alone = " ".join([*HydraConfig.get().overrides.task, f"run_dir={sweep_folder()}"])
                complain(f"the sweep ends with this job, which goes on alone: diffgen-{name} {alone}")
            raise SystemExit(codes[-1])  # a signal ends a sweep too
        if codes[-1] and is_sweep():
            complain(f"job {HydraConfig.get().job.num} failed: {' '.join(HydraConfig.get().overrides.task)}")

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed by Hydra
    _tune_libraries()
    warnings.showwarning = tell_warning
    # of convolutions with an axis of one entry, whose strides mean nothing
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    WARNED.clear()
    main = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)(task)
    flags = [argument for argument in sys.argv[1:] if argument in ("-m", "--multirun")]
    sys.argv[1:] = [*flags, *(argument for argument in sys.argv[1:] if argument not in flags)]  # wherever it stands
    try:
        code = answer(_load_plugins) or answer(_check_arguments) or answer(main, name)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    return code or next((code for code in codes if code), 0)


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


def _load_plugins() -> None:
    PLUGGED.update(plugins.load(plugins.named(sys.argv[1:])))


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
    for key, _, value in (override.partition("=") for override in arguments.overrides):
        if not key.strip("+~"):
            raise UsageError(f"'{key}={value}' names no setting; settings are KEY=VALUE, --help lists them")
        if key in groups() and re.fullmatch(r"(null|true|false|[-+.\d]*|\{.*)", value, re.IGNORECASE):
            raise UsageError(unknown(f"{key}={value!r}", groups()[key]))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and {"-m", "--multirun"} & set(sys.argv[1:]):
        raise UsageError("-m cannot run inside several processes: sweep with a shell loop over torchrun commands")


def _task(name: str, config: DictConfig, job: Job, checked_by_job: tuple[str, ...]) -> None:
    OmegaConf.resolve(config)
    plain: Any = OmegaConf.to_container(config, throw_on_missing=True)
    check_against_defaults(name, {key: value for key, value in plain.items() if key not in checked_by_job})
    job(plain, OmegaConf.to_yaml(config))


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
        _tell(explain(name, error), silent=True)
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


def check_against_defaults(name: str, config: Mapping[str, Any]) -> None:
    """Compare keys and kinds of values with the defaults of the chosen groups.

    Raises:
        UsageError: A key that the defaults do not have, or a value of another kind.
    """
    base = defaults(name, list(HydraConfig.get().overrides.task))
    _compare(base, config, "")


def _compare(base: Any, value: Any, key: str) -> None:
    if isinstance(base, dict) and isinstance(value, Mapping):
        for name in value:
            path = f"{key}.{name}".lstrip(".")
            if name not in base:
                raise UsageError(unknown(path, [f"{key}.{k}".lstrip(".") for k in base]))
            _compare(base[name], value[name], path)
        return
    if "." not in key and not isinstance(base, dict):
        return  # settings outside groups are checked by `diffgen.core.settings`
    if isinstance(base, list) and base and not isinstance(value, list):
        base = base[0]  # one item may stand for a list of one; whoever reads the setting decides
    if base is None or value is None or base in ("auto", "none", "???") or _kind(base) == _kind(value):
        if isinstance(base, int) and isinstance(value, float) and not value.is_integer() and base is not True:
            raise UsageError(f"{key}={value!r} must be a whole number, like its default {base!r}")
        return
    if isinstance(base, dict):
        raise UsageError(
            f"{key}={value!r} must be a group of settings: {key}.NAME=VALUE with NAME of [{', '.join(base)}]"
        )
    raise UsageError(f"{key}={value!r} must be {_kind(base)}, like its default {base!r}")


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


# --- Hydra's errors in one sentence -----------------------------------------------------------------------------------


def explain(name: str, error: Exception) -> str:
    """One sentence for an error of Hydra's, naming key, value and choices."""
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(name, match[1])
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):  # load: one of a list
        group, _, choice = match[1].rpartition("/")
        return unknown(f"{group}={choice!r}", groups().get(group, []))
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: settings are KEY=VALUE, with lists as 'KEY=[1,2]'"
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]} gives several values: add -m to run them one after the other, or write a list as KEY=[1,2]"
    if match := re.search(r"Multiple values for (\w+)", text):
        return f"{match[1]} is given with a +; write {match[1]}=... to choose another one"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        key = getattr(error, "full_key", None) or match[1]
        return f"{key} has no value: give {key}=..."
    lines = [
        line.strip()
        for line in text.splitlines()
        if line.strip() and "documentation" not in line and "http" not in line
    ]
    return " ".join(lines[:2]) or type(error).__name__


def _unknown_key(name: str, key: str) -> str:
    """A wrong key: its neighbours if it stands in a known group, else the groups; and the nearest of all keys."""
    overrides = [arg for arg in sys.argv[1:] if "=" in arg and not arg.startswith("-")]
    try:
        config = defaults(name, [o for o in overrides if o.split("=")[0] != key])
    except (HydraException, OmegaConfBaseException):
        config = defaults(name, [])
    parent, _, leaf = key.rpartition(".")
    place = config
    for part in parent.split(".") if parent else []:
        place = place.get(part) if isinstance(place, dict) else None
    if parent and isinstance(place, dict):
        near = difflib.get_close_matches(leaf, list(place), n=1, cutoff=0.5)
        hint = f" (did you mean {parent}.{near[0]}?)" if near else ""
        if place.get("name") == "auto":
            hint = f"; to change more of a {parent}, name it too: {parent}=heun {key}=..."
        return f"{key} is unknown; {parent} has [{', '.join(sorted(place))}]{hint}"
    group, _, choice = parent.partition(".")
    if choice in groups().get(group, []):
        return f"{key} is unknown: to change more of {choice}, name it too: {group}=[{choice}] {key}=..."
    top = sorted({*config, *(g for g in groups() if g in config or (g == "experiment" and name == "train"))})
    return f"{key} is unknown; choose one of [{', '.join(top)}]{_meant(parent, leaf, config, top)}"


def _meant(parent: str, leaf: str, config: dict[str, Any], top: list[str]) -> str:
    """A hint: the settings called `leaf`, wherever they stand, if they are few; else the nearest name at the top."""
    meant = [name for name in _names(config) if name.endswith(f".{leaf}")]
    if not 1 <= len(meant) <= FEW:
        near = difflib.get_close_matches(parent or leaf, top, n=1, cutoff=0.5)
        meant = [f"{name}.{leaf}" if parent else name for name in near]
    return f" (did you mean {' or '.join(meant)}?)" if meant else ""


def _names(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Full names of all settings: train, train.images, ..."""
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{key}.")


def is_sweep() -> bool:
    """Whether this job is one of a sweep (`-m`)."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def sweep_folder() -> Path:
    """This job's folder inside the sweep."""
    return Path(HydraConfig.get().runtime.output_dir)
