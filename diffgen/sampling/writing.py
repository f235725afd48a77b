"""What was drawn, in a folder: a picture of all of it, and the files that `save=` asks for."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple

from torch import Tensor

from diffgen.core.errors import UsageError, require, unknown
from diffgen.core.files import make_writable, write_atomically, writing
from diffgen.data.images import save_gif, save_png
from diffgen.data.kinds import Kind
from diffgen.storage import pairs

FILM_LIMIT = 16  # rows of a grid of strips


class Folder(NamedTuple):
    """Where samples of a kind go: grid.png, samples.<name> and images/000000.<name> where `saves` has a name.

    grid.png is always there, but text has none. Ways from noise go to trajectory.gif or .txt beside these.
    """

    path: Path
    kind: Kind
    saves: tuple[str, ...]
    classes: tuple[str, ...] = ()
    films: bool = False

    @property
    def one_each(self) -> list[str]:
        """The names of files for an example each."""
        return [name for name in self.kind.one_each if name in self.saves]

    @property
    def together(self) -> list[str]:
        """The names of files of all examples."""
        return [name for name in self.kind.together if name in (*self.kind.always, *self.saves)]

    def file(self, number: str, name: str) -> str:
        """Where an example is written, below the folder: a file, or of clips a folder of frames."""
        return f"{self.kind.place}/{number}" + ("" if self.kind.moving else f".{name}")

    def check(self) -> None:
        """Require names that the kind has."""
        known = ("grid", *self.kind.one_each, *self.kind.together, pairs.FILE)
        for name in self.saves:
            require(name in known, f"{unknown(f'save={name!r}', known)}; this model makes {self.kind.unit}")
        self.kind.check_saves(self.saves)

    @property
    def pairs(self) -> bool:
        """Whether the noise of each example is written beside its x0."""
        return pairs.FILE in self.saves

    @property
    def first(self) -> str:
        """The file that is always written: what a person looks at, or reads."""
        return "samples.txt" if self.kind.textual else "grid.png"

    @property
    def trajectory(self) -> str:
        """The file of the films."""
        return "trajectory.txt" if self.kind.textual else "trajectory.gif"

    @property
    def written(self) -> list[str]:
        """All that will be there."""
        together = [f"samples.{name}" for name in self.together]
        more = [f"{pairs.FILE}.safetensors"] * self.pairs + [self.trajectory] * self.films
        return [self.first, *together, *[self.kind.place] * bool(self.one_each), *more]

    def prepare(self, *, overwrite: bool) -> None:
        """Make the folder, and refuse to overwrite unless that is wanted.

        Raises:
            UsageError: A file is there.
            EnvironmentFault: The folder cannot be written.
        """
        old = [file for name in self.kind.one_each for file in self.path.glob(self.file("[0-9]" * 6, name))]
        there = [name for name in self.written if (self.path / name).exists()] + ([self.kind.place] if old else [])
        if there and not overwrite:
            raise UsageError(
                f"out={str(self.path)!r} already holds {there[0]}: choose another folder, or overwrite=true"
            )
        make_writable(self.path)
        with writing(self.path):
            if self.one_each:
                (self.path / self.kind.place).mkdir(exist_ok=True)
            for file in old:  # of a larger set that was here: a mixture would spoil an evaluation
                rmtree(file) if file.is_dir() else file.unlink()

    def write(self, drawn: Tensor, labels: list[int], columns: int | None, notes: Mapping[str, str]) -> None:
        """Write grid.png, and what `saves` asks for of all examples.

        Args:
            drawn: Stored examples, [n, ...].
            labels: One each.
            columns: Of the grid.
            notes: Text entries of grid.png.
        """
        self._write_together(drawn, labels)
        if not self.kind.textual:
            most = self.kind.shown
            save_png(self.kind.show(drawn[:most], labels[:most], columns), self.path / self.first, notes)

    def write_films(self, films: Tensor, labels: list[int], notes: Mapping[str, str]) -> None:
        """The same of films [n, F, ...]: strips in grid.png, one a row, and the trajectory; else their last frames."""
        self._write_together(films[:, -1], labels)
        if self.kind.textual:
            ways = "\n\n".join("\n".join(self.kind.lines(film)) for film in films)
            return write_atomically(self.path / self.trajectory, f"{ways}\n")
        rows, whose = films[:FILM_LIMIT], labels[:FILM_LIMIT]
        count = films.shape[1]
        save_gif([self.kind.show(frame, whose) for frame in rows.unbind(1)], self.path / self.trajectory)
        strips = self.kind.show(rows.flatten(0, 1), [label for label in whose for _ in range(count)], count)
        save_png(strips, self.path / self.first, notes)

    def _write_together(self, drawn: Tensor, labels: list[int]) -> None:
        for name in self.together:
            write_atomically(self.path / f"samples.{name}", self.kind.write(name, drawn, labels, self.classes))


class Files:
    """The files of an example each, encoded and written by threads while the next examples are drawn."""

    def __init__(self, folder: Folder) -> None:
        """Args: folder: must be prepared."""
        self.folder = folder
        self.threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="files")
        self.written: list[Future[None]] = []

    def add(self, examples: Mapping[int, Tensor]) -> None:
        """Write stored examples by their number."""
        if self.folder.one_each:
            self.written.append(self.threads.submit(self._save, examples))

    def _save(self, examples: Mapping[int, Tensor]) -> None:
        for name in self.folder.one_each:
            for number, example in examples.items():
                path = self.folder.path / self.folder.file(f"{number:06d}", name)
                with writing(path):
                    self.folder.kind.write_one(example, path)

    def finish(self) -> None:
        """Wait for all files.

        Raises:
            EnvironmentFault: One cannot be written.
        """
        self.threads.shutdown()
        for done in self.written:
            done.result()
