"""Text in files: what is read, counted and refused; vocabularies; sequences; text8; Python's help."""

import hashlib
import io
import json
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rows import dataset

from diffgen.build import make_splits
from diffgen.core.errors import DataError, UsageError
from diffgen.core.settings import TrainSettings
from diffgen.data import corpus, python_docs, text, text8
from diffgen.data.base import Source
from diffgen.data.kinds import Pixels
from diffgen.data.text import Text, common
from diffgen.data.tokens import UNKNOWN, Bits, Tokens
from diffgen.training.header import duration

CPU = torch.device("cpu")

SENTENCES = "The quick brown fox jumps over the lazy dog.\n" * 40


def load(path: Path, **changes: Any) -> Text:
    data: Text = dataset("text", **{"path": str(path), "length": 16, **changes})
    return data


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text(SENTENCES)
    return path


def lines(data: Source, entries: list[int]) -> list[str]:
    (some,) = data.batches(iter([torch.tensor(entries)]), CPU)
    assert isinstance(data.kind, Tokens)
    assert some.examples.dtype == torch.int64
    assert some.labels.tolist() == [-1] * len(entries)
    return [data.kind.text(ids) for ids in some.examples.tolist()]


# --- sequences ----------------------------------------------------------------------------------------------------


def test_training_sequences_begin_everywhere(file: Path) -> None:
    data = load(file)
    train = SENTENCES[: len(SENTENCES) - 180]
    assert (data.text, len(data)) == (train, len(train) - 15)
    assert lines(data, [0, 1, 77, len(data) - 1]) == [train[i : i + 16] for i in (0, 1, 77, len(train) - 16)]
    assert data.once == len(train) // 16
    assert (data.shape.size, data.shape.vocabulary) == ((16,), len(data.kind.symbols))
    assert data.tokens.dtype == torch.uint8


def test_held_out_sequences_are_the_end_without_overlap(file: Path) -> None:
    data = load(file, split="test")
    assert data.text == SENTENCES[-180:]
    assert len(data) == data.once == 11
    assert "".join(lines(data, list(range(11)))) == data.text[:176]
    assert data.kind == load(file).kind, "the vocabulary is that of the training text"


def test_a_long_text_begins_at_every_other_token(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(file)
    monkeypatch.setattr(text, "ENTRIES", len(whole) - 1)
    data = load(file)
    assert data.stride == 2
    assert len(data) == -(-len(whole) // 2)
    assert lines(data, [1, len(data) - 1]) == lines(whole, [2, 2 * len(data) - 2])


def test_an_epoch_is_a_pass_over_the_text(file: Path) -> None:
    data = load(file)
    settings = TrainSettings(**{**row_of_train(), "images": 10 * data.once, "minutes": None})
    assert duration(settings, data.once, "sequences") == f"{10 * data.once:,} sequences (10 epochs)"


def row_of_train() -> dict[str, Any]:
    from conftest import compose_config

    return dict(compose_config("train", ["dataset=digits"])["train"])


def test_what_differs_has_another_digest(file: Path) -> None:
    digests = {load(file).digest, load(file, split="test").digest, load(file, unit="byte").digest}
    digests |= {dataset("text", path=str(file), length=17).digest}
    assert len(digests) == 4
    assert load(file).digest in digests


# --- vocabularies -------------------------------------------------------------------------------------------------


def test_the_most_frequent_characters_have_symbols() -> None:
    assert common("aaabbc\ufffd\ufffd\ufffd\ufffd", 2) == ["a", "b", UNKNOWN]
    assert common("dcba", 2) == ["a", "b", UNKNOWN], "of equally frequent ones the lower code points"
    assert common("ab", 256) == ["a", "b", UNKNOWN]


def test_the_rest_is_unknown_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab" * 100 + "xyz" + "ab" * 50 + "q" * 20 + "ab" * 5)
    data = load(tmp_path / "a.txt", symbols=2)
    assert data.kind.symbols == ("a", "b", "\\ufffd")
    assert UNKNOWN * 3 in data.kind.text(data.tokens.tolist())
    assert data.notes == (
        "a.txt: 3 of 300 characters are none of the vocabulary of 3, and one symbol stands for all of them",
    )
    test = load(tmp_path / "a.txt", split="test", symbols=2)
    assert "the end of a.txt: 20 of 33 characters" in test.notes[0]
    assert load(tmp_path / "a.txt").notes == ()


def test_many_characters_need_more_than_a_byte(tmp_path: Path) -> None:
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 600)))
    (tmp_path / "a.txt").write_text(many * 3)
    data = load(tmp_path / "a.txt", symbols=700)
    assert data.tokens.dtype == torch.int16
    assert lines(data, [3]) == [many[3:19]]
    assert (
        text.encoded("ab", Tokens(symbols=tuple(map(chr, range(97, 40_000))), symbol="character")).dtype == torch.int32
    )


def test_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("naïve " * 50)
    data = load(tmp_path / "a.txt", unit="byte")
    assert data.kind.vocabulary == 256
    assert bytes(data.tokens.tolist()).decode() == data.text
    assert "270 characters, 6 of them distinct, 315 bytes" in data.found


def test_a_text_is_cut_anew_for_a_checkpoint(file: Path) -> None:
    """A model's vocabulary may be that of another text."""
    data = load(file, split="test")
    small = Tokens(symbols=("o", " ", UNKNOWN), symbol="character", unknown=True)
    other = data.of(small)
    assert other.shape.vocabulary == 3
    assert other.tokens.tolist() == [{"o": 0, " ": 1}.get(char, 2) for char in data.text]
    assert "of 180 characters are none of the vocabulary of 3" in other.notes[0]
    codes = other.of(small.as_numbers())
    assert (codes.shape.size, codes.shape.vocabulary) == ((2, 16), 0)
    assert isinstance(codes.kind, Bits)
    assert (codes.found, codes.notes, codes.tokens) == (other.found, other.notes, other.tokens)
    with pytest.raises(UsageError, match=r"text has '\\n', which is no character"):
        data.of(Tokens(symbols=tuple("abc "), symbol="character"))
    with pytest.raises(UsageError, match="the data is text, and this model makes images"):
        data.of(Pixels())


def test_a_tokenizer_cuts_the_text(tmp_path: Path, file: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["The", "quick", "fox", "[UNK]"])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    data = load(file, tokenizer=str(tmp_path / "tokenizer.json"))
    assert data.kind.measure == "bits/token"
    assert lines(data, [0])[0].startswith("The quick [UNK] fox [UNK]")
    assert len(data.tokens) == 36 * 10
    assert "7 of 10" not in data.notes[0]
    assert "252 of 360 tokens are none of the vocabulary" in data.notes[0]
    assert "does not give the text back" in data.notes[1]


def test_the_whole_text_is_tried_with_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE({char: number for number, char in enumerate("ab\n")}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split("\n", "isolated"), decoders.Fuse()
    made.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(text.tokenizer, "PIECE", 10)
    kind = text.kind_of("", "character", 1, str(tmp_path / "tokenizer.json"))
    for words, notes in {"ab\n" * 40: 0, "ab\n" * 40 + "c": 1}.items():
        data = Text(words, kind, 16, "this", overlapping=True)
        assert [len(data.notes), data.kind.text(data.tokens.tolist())] == [notes, "ab\n" * 40]
    (tmp_path / "a.txt").write_text("ab\n" * 40 + "c" * 40)
    assert "does not give the text back" in load(tmp_path / "a.txt").of(kind).notes[0], "and that of a checkpoint"


# --- files --------------------------------------------------------------------------------------------------------


def test_a_folder_is_one_text(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.TXT").write_text("first")
    (tmp_path / "c.jsonl").write_text('{"text": "third", "id": 1}\n\n{"text": "fourth"}\n')
    (tmp_path / "d.txt").write_text("")
    (tmp_path / "e.csv").write_text("x")
    (tmp_path / ".hidden.txt").write_text("x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "x.txt").write_text("x")
    found = corpus.read(str(tmp_path))
    assert found.text == "first\n\nsecond\n\nthird\nfourth"
    assert found.found == f"3 files of {tmp_path.name}"
    assert [tuple(left) for left in found.left_out] == [("e.csv", ".csv"), ("d.txt", "empty")]


def test_marks_and_line_ends_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    found = corpus.read(str(tmp_path / "a.txt"))
    assert found.text == "a\nb\n"
    assert found.notes == (
        "1 of 1 files began with a byte order mark, which is left out",
        "1 of 1 files had line ends CRLF, which are read as LF",
    )


def test_a_file_may_be_called_anything(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("words")
    assert corpus.read(str(tmp_path / "README")).text == "words"


@pytest.mark.fault("binary data, or text in another encoding, given as text", "exit 3: the file and the byte")
@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"\xef\xbb\xbf", "is empty"),
        ("a.txt", b"abc\0def", "a.txt is no text: it has zero bytes"),
        ("a.txt", "word".encode("utf-16"), "a.txt is no text: it has zero bytes"),
        ("a.txt", "naïve".encode("latin-1"), "a.txt is no text in UTF-8 (byte 2 is 0xef)"),
        ("a.jsonl", b'{"text": "a"}\nnothing', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'\n{"words": "a"}', "a.jsonl, line 2 is no object with a text under 'text'"),
        ("a.jsonl", b'{"text": 7}', "a.jsonl, line 1 is no object with a text under 'text'"),
        ("a.jsonl", b'["text"]', "a.jsonl, line 1 is no object with a text under 'text'"),
        ("a.jsonl", b'{"text": "\\ud800"}', "a.jsonl, line 1 is no text"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1 is not JSON"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(data)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(DataError) as caught:
            load(path)
        said = str(caught.value).replace(f"{name}'", name)
        assert sentence in said or "has no text in its 1 files" in said
        assert said.startswith("dataset.path=" if path.is_file() or not data.strip(b"\xef\xbb\xbf") else str(path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{}, {"split": "test"}])
def test_a_text_shorter_than_a_sequence_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "a.txt").write_text("a" * 15)
    what = "2 characters to judge by" if changes else "13 characters to train on"
    with pytest.raises(DataError, match=f"a.txt: {what} are fewer than dataset.length=16"):
        load(tmp_path / "a.txt", **changes)
    (tmp_path / "a.txt").write_text("a" * 100)
    with pytest.raises(DataError, match="the end of a.txt: 10 characters to judge by are fewer than dataset.length=16"):
        load(tmp_path / "a.txt", **changes)
    (tmp_path / "a.txt").write_text("abcd")  # of which a tenth is no character
    with pytest.raises(DataError, match="the end of a.txt: 0 characters to judge by are fewer than dataset.length=2"):
        load(tmp_path / "a.txt", **changes, length=2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"path": ""}, "dataset.path is missing: dataset.path=PATH names a .txt or .jsonl file"),
        ({"path": None}, "dataset.path is missing: dataset.path=PATH names a .txt or .jsonl file"),
        ({"length": 0}, r"length=0 must be in \[1, 4096\]"),
        ({"length": 5000}, r"length=5000 must be in \[1, 4096\]"),
        ({"symbols": 0}, r"symbols=0 must be in \[1, 65536\]"),
        ({"held_out": 1.0}, r"held_out=1 must be a share in \[0, 1\)"),
        ({"held_out": 0.0, "split": "test"}, "held_out=0 leaves nothing for split=test"),
        ({"unit": "byte", "tokenizer": "x.json"}, "unit='byte' and a tokenizer exclude each other"),
        ({"unit": "word"}, r"dataset.unit='word' is unknown; choose one of \[byte, character\]"),
    ],
)
def test_settings_out_of_range(file: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        dataset("text", **{"path": str(file), **changes})


def test_the_folder_that_one_is_in_has_a_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert corpus.read(".").found == f"1 file of {file.parent.name}"


def test_a_place_without_text_is_refused(tmp_path: Path) -> None:
    for path, sentence in {
        tmp_path / "nothing": "is no file and no folder",
        tmp_path: "is a folder without .txt or .jsonl files",
    }.items():
        with pytest.raises(DataError, match=sentence):
            load(path)


def test_without_held_out_all_is_trained_on(file: Path) -> None:
    data = load(file, held_out=0.0)
    assert data.text == SENTENCES
    assert "; 0 characters at the end held out" in data.found
    row = {"name": "text", "path": str(file), "unit": "character", "length": 16, "symbols": 256, "tokenizer": None}
    assert make_splits({"dataset": {**row, "split": "train", "held_out": 0}}).test is None


def test_each_part_alone_is_cut_into_tokens(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[int] = []
    whole = text.encoded
    monkeypatch.setattr(text, "encoded", lambda some, kind: (cut.append(len(some)), whole(some, kind))[1])
    load(file, split="test")
    assert cut == [180]


# --- text8 --------------------------------------------------------------------------------------------------------

LETTERS = "".join(np.random.default_rng(0).choice(list(text8.LETTERS), 1000))


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small archive, with its checksums and splits in the place of the official ones."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("text8", LETTERS)
    monkeypatch.setattr(text8, "PACKED", hashlib.md5(buffer.getvalue()).hexdigest())
    monkeypatch.setattr(text8, "UNPACKED", hashlib.md5(LETTERS.encode()).hexdigest())
    parts = {"train": slice(900), "test": slice(950, 1000)}
    monkeypatch.setattr(text8, "PARTS", parts)
    return buffer.getvalue()


@pytest.fixture
def server(official: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serves the archive on this machine; gives the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(official)))
            self.end_headers()
            self.wfile.write(official)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            """Silent."""

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(text8, "ADDRESSES", [f"http://127.0.0.1:{made.server_port}/dc/text8.zip"])
    yield asked
    made.shutdown()
    made.server_close()


def text8_of(root: Path, split: str = "train") -> Text:
    data: Text = dataset("text8", root=str(root), split=split, length=20)
    return data


def test_text8_is_downloaded_once(tmp_path: Path, server: list[str]) -> None:
    data = text8_of(tmp_path)
    assert (tmp_path / "text8.zip").is_file()
    asked = len(server)
    assert asked
    test = text8_of(tmp_path, "test")
    assert len(server) == asked
    assert (data.text, test.text) == (LETTERS[:900], LETTERS[950:]), "those between are the papers' validation split"
    assert (len(data), len(test)) == (881, 2)
    assert data.kind.symbols == tuple(" abcdefghijklmnopqrstuvwxyz")
    assert Counter(data.tokens.tolist()) == Counter(text8.LETTERS.index(char) for char in data.text)


def test_text8_that_is_there_needs_no_network(tmp_path: Path, official: bytes) -> None:
    (tmp_path / "text8").write_text(LETTERS)
    assert text8_of(tmp_path).text == LETTERS[:900]
    (tmp_path / "text8.zip").write_bytes(official[:-1])
    assert text8_of(tmp_path).text == LETTERS[:900], "the unpacked file first"
    (tmp_path / "text8").write_text(LETTERS[:-1])
    with pytest.raises(DataError, match="text8 is damaged"):
        text8_of(tmp_path)
    (tmp_path / "text8").unlink()
    with pytest.raises(DataError, match=r"text8.zip is damaged"):
        text8_of(tmp_path)


def test_text8_without_a_network_says_where_it_belongs(
    tmp_path: Path, official: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text8, "ADDRESSES", ["http://127.0.0.1:9/text8.zip"])
    with pytest.raises(DataError, match=r"text8.zip is missing.*dataset=python_docs needs no download"):
        text8_of(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_official_splits() -> None:
    assert [len(range(10**8)[part]) for part in text8.PARTS.values()] == [90_000_000, 5_000_000]


# --- Python's help ------------------------------------------------------------------------------------------------


def test_python_s_help() -> None:
    data: Text = dataset("python_docs")
    test: Text = dataset("python_docs", split="test")
    assert 200_000 < len(data.text) < 2_000_000
    assert len(test.text) == pytest.approx(len(data.text) / 9, rel=1e-3)
    assert "the help of Python 3." in data.found
    assert any("differs between versions" in note for note in data.notes)
    assert data.kind.text(data.tokens[:500].tolist()) == data.text[:500]


def test_a_python_without_its_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="installed without its help"):
        python_docs.topics()


def test_json_of_lines_is_read_as_written(tmp_path: Path) -> None:
    """U+2028 ends no line of JSON, and CRLF within a text is read like that of a file."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a\u2028b\r\nc"}, ensure_ascii=False) + "\n")
    assert corpus.read(str(tmp_path / "a.jsonl")).text == "a\u2028b\nc"
