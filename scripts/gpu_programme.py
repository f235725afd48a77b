"""Everything that is to be measured on a GPU, for the day when there is one for half an hour.

    python scripts/gpu_programme.py                        what is left of it, as far as nine minutes go
    python scripts/gpu_programme.py --part machine tests   these alone; one that is done is done again
    python scripts/gpu_programme.py --part training --piece cifar10_dit       of these, what has such a name
    python scripts/gpu_programme.py --tiny                 every part on a CPU, to see that it runs

Each invocation keeps to its time: nothing is begun that would take longer than is left, and the last lines say how to
go on. What is done is skipped; `outputs/gpu-programme` keeps the results, the unfinished runs and the compiled networks
in between (delete it to begin anew). Figures go to `benchmarks/results/gpu-<GPU>-<date>.json` piece by piece, and from
there to docs/performance.md; a piece that fails is recorded with the end of its error, and the others go on. The exit
code is 1 if one failed, or found what is not as it should be.

Nothing is needed beyond what diffgen itself needs, and no network; peers are measured if they are installed. Speed is
measured on pictures at random, and so is the speed-run unless CIFAR-10 is in `data/` or in the folder of `--data`.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import gpu_table
import torch
from benchmark.facts import ROOT
from programme.parent import answers
from programme.parts import PARTS
from programme.results import FOLDER, Results, facts
from programme.work import Row, Work

from diffgen.data.cifar import FOLDER as CIFAR

KEPT = ROOT / "outputs" / "gpu-programme"
TELLS = ("error", "skipped", "unfinished", "wrong")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), help="by default all that are not done")
    parser.add_argument("--piece", nargs="+", default=[""], help="beginnings of the names of its pieces")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this invocation")
    parser.add_argument("--speed-run-minutes", type=float, help="a shorter speed-run; by default the recipe's 22")
    parser.add_argument("--data", type=Path, help="the folder with cifar-10-batches-py or its archive")
    parser.add_argument("--out", type=Path, help="folder of the result file; by default benchmarks/results")
    parser.add_argument("--tiny", action="store_true", help="a smoke test on a CPU: its figures mean nothing")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.exit(2, "error: this needs a GPU that PyTorch can use; --tiny shows on a CPU that every part runs\n")
    if args.data and not has_cifar(args.data):
        parser.error(f"--data {args.data} holds neither {CIFAR} nor cifar-10-python.tar.gz")
    return args


def has_cifar(folder: Path) -> bool:
    """Whether the official CIFAR-10 lies in a folder."""
    return (folder / CIFAR).is_dir() or (folder / "cifar-10-python.tar.gz").is_file()


def places(args: argparse.Namespace) -> tuple[Path, Path]:
    """The folder that is kept, and that of the result file."""
    if not args.tiny:
        return KEPT, args.out or FOLDER
    folder = (args.out or Path(tempfile.mkdtemp(prefix="gpu-programme-"))).resolve()
    return folder / "work", folder


def pieces_of(part: str, *, tiny: bool) -> list[str]:
    """Names of the pieces of a part; in tiny those that differ in more than sizes."""
    return [name for name, piece in PARTS[part].pieces.items() if not (tiny and piece.alike)]


def make(wanted: list[tuple[str, str]], work: Work, results: Results, known: Row) -> bool:
    """Make pieces as far as the time goes; whether all of them went well."""
    well, failed = True, True
    while wanted and failed:  # a new process goes on after one that failed
        failed = False
        for part, piece, row in answers(wanted, work):
            results.add(part, known, piece, row)
            wanted.remove((part, piece))
            failed = "error" in row
            well = well and not failed and not row.get("wrong")
            said = "; ".join(f"{tell}: {row[tell]}" for tell in TELLS if row.get(tell))
            print(f"{part}: {piece}, {row['took']:.0f} s{f'  {said}' if said else ''}", flush=True)
    return well


def publish(work: Work, results: Results, out: Path) -> None:
    """Bring pictures and tables where they belong."""
    pictures = ROOT / "docs" / "images" if out == FOLDER else out
    for path in (work.folder / "images").glob("*.png"):
        shutil.copyfile(path, pictures / path.name)
    if out == FOLDER:
        gpu_table.write()
    print("\n".join(gpu_table.chapter(results.name, results.parts)))


def tell_left(results: Results, *, tiny: bool) -> None:
    """What is left, how long it may take, and how to go on."""
    left = {part: results.left(part, pieces_of(part, tiny=tiny)) for part in PARTS}
    for part, pieces in left.items():
        minutes = sum(PARTS[part].pieces[piece].minutes for piece in pieces)
        if pieces:
            print(f"left of {part}, {minutes:g} minutes on an H100 at most: {'; '.join(pieces)}")
    if any(left.values()):
        print(f"go on with: python {' '.join(sys.argv)}")


def stopped(signum: int, frame: object) -> None:
    """End what was started, too; what is measured is written."""
    print(f"stopped by {signal.Signals(signum).name}; go on with: python {' '.join(sys.argv)}", file=sys.stderr)
    sys.exit(128 + signum)


def main() -> int:
    """Entry point."""
    args = arguments()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stopped)
    kept, out = places(args)
    for folder in (kept, out):
        folder.mkdir(parents=True, exist_ok=True)
    data = args.data or (ROOT / "data" if has_cifar(ROOT / "data") and not args.tiny else None)
    deadline = time.monotonic() + 60 * args.minutes
    work = Work(kept, args.tiny, data.resolve() if data else None, deadline, args.speed_run_minutes)
    device = "tiny networks" if args.tiny else torch.cuda.get_device_name()
    results = Results(device, [kept, out], others=() if args.tiny else [FOLDER])
    parts, begun = args.part or list(PARTS), tuple(args.piece)
    chosen = {part: [name for name in pieces_of(part, tiny=args.tiny) if name.startswith(begun)] for part in parts}
    for part in args.part or ():
        results.begin_again(part, chosen[part])
    wanted = [(part, piece) for part, pieces in chosen.items() for piece in results.left(part, pieces)]
    well = make(wanted, work, results, facts(f"{device}: these figures mean nothing" if args.tiny else device))
    publish(work, results, out)
    print(f"\nwritten to {out / results.name}")
    tell_left(results, tiny=args.tiny)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
