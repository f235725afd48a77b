"""Kinds of text: tokens and their text, escapes, bits, and the tokenizers of others."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffgen.core.errors import DataError, UsageError
from diffgen.core.registry import build, named
from diffgen.data import tokenizer
from diffgen.data.base import InMemory
from diffgen.data.kinds import KINDS
from diffgen.data.text import Text
from diffgen.data.tokens import BYTES, HIDDEN, UNKNOWN, Bits, Tokens, escaped, plain, unescaped
from diffgen.storage.tensor_file import check_plain

ABC = Tokens(symbols=("a", "b", "c", "\\n"), symbol="character")
OPEN = Tokens(symbols=("a", "b", UNKNOWN), symbol="character", unknown=True)
WORDS = Tokens(symbols=("one", "twenty-two", "hundred", ""), symbol="word", padded=True)
RAW = Tokens(symbols=BYTES, symbol="byte")
CODES = Bits(symbols=("a", "b", "c", "d", "e"), symbol="character")

ANY = st.text(st.characters(exclude_categories=()))


# --- escapes ------------------------------------------------------------------------------------------------------


@given(ANY)
def test_an_escaped_text_is_one_line_and_comes_back(text: str) -> None:
    line = escaped(text)
    assert len(f"{line}\n".splitlines()) == 1
    line.encode()  # a lone surrogate could not be
    assert unescaped(line) == text


@given(ANY)
def test_a_plain_text_may_stand_in_a_checkpoint_and_comes_back(text: str) -> None:
    check_plain(plain(text)[:256], "this")
    assert unescaped(plain(text)) == text


def test_how_escapes_look() -> None:
    text = "a\\b\n\r\t\x0b\x0c\x85\u2028\u2029\x00\ufeffé"
    assert escaped(text) == "a\\\\b\\n\\r\t\\x0b\\x0c\\x85\\u2028\\u2029\\x00\\ufeffé"
    assert plain("a\t\u3000${b}é") == "a\\x09\\u3000\\x24{b}\\xe9", (
        "which characters are printable, Python versions differ"
    )


@pytest.mark.parametrize("char", "\u061c\u200e\u200f\u202a\u202e\u2066\u2069")
def test_the_direction_of_writing_is_not_turned(char: str) -> None:
    assert escaped(char) == f"\\u{ord(char):04x}"


@pytest.mark.parametrize("line", ["\\", "a\\q", "\\x1", "\\u12g4", "\\UFFFFFFFF", "\\Uffffffff"])
def test_what_is_no_escape_is_refused(line: str) -> None:
    with pytest.raises(DataError, match="is no escape"):
        unescaped(line)


# --- tokens and text ----------------------------------------------------------------------------------------------


def test_characters() -> None:
    assert ABC.ids("ab\nc") == [0, 1, 3, 2]
    assert ABC.text([0, 1, 3, 2]) == "ab\nc"
    assert ABC.vocabulary == 4
    assert ABC.measure == "bits/char"


def test_the_first_character_without_a_symbol_is_named() -> None:
    with pytest.raises(UsageError, match="'x', which is no character"):
        ABC.ids("abxy")
    assert OPEN.ids("axb\ufffd") == [0, 2, 1, 2]
    assert OPEN.text([0, 2]) == "a\ufffd"


def test_words_are_split_at_spaces() -> None:
    assert WORDS.ids("one hundred twenty-two") == [0, 2, 1]
    with pytest.raises(UsageError, match="'two', which is no word"):
        WORDS.ids("one two")


def test_padding_is_left_out_at_the_end_and_seen_elsewhere() -> None:
    """A number with a hole in it must not be taken for one that is spelled right."""
    assert WORDS.text([0, 2, 3, 3]) == "one hundred"
    assert WORDS.text([3, 3]) == ""
    assert WORDS.text([0, 3, 1, 3]) == f"one {UNKNOWN} twenty-two"


def test_hidden_tokens_are_shown() -> None:
    assert ABC.text([0, -1, -1]) == f"a{HIDDEN}{HIDDEN}"
    assert WORDS.text([0, -1, 3]) == f"one {HIDDEN}"
    assert RAW.text([104, -1, -1, 105]) == f"h{HIDDEN}{HIDDEN}i"


@given(ANY.filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text)))
def test_bytes_are_utf8(text: str) -> None:
    assert bytes(RAW.ids(text)) == text.encode()
    assert RAW.text(RAW.ids(text)) == text


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    with pytest.raises(UsageError, match="half of a character"):
        RAW.ids("a\ud800")
    assert RAW.text([104, 0xFF, 0xC3]) == f"h{UNKNOWN}{UNKNOWN}"
    assert len(set(BYTES)) == 256


@pytest.mark.parametrize("kind", [ABC, OPEN, WORDS, RAW, CODES])
def test_a_checkpoint_keeps_a_kind(kind: Tokens) -> None:
    config = json.loads(json.dumps(named(KINDS, kind)))
    check_plain(config, "this")
    again = build(KINDS, config)
    assert again == kind
    assert type(again) is type(kind)


def test_a_kind_becomes_the_other_and_back() -> None:
    assert ABC.as_tokens(256) == ABC
    assert ABC.as_numbers() == Bits(symbols=ABC.symbols, symbol="character")
    assert CODES.as_tokens(2) == Tokens(symbols=CODES.symbols, symbol="character")
    assert CODES.as_numbers() is CODES


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"symbols": ()}, "one text for each token"),
        ({"symbols": ("a", "a")}, "no two the same"),
        ({"symbols": ("", "a")}, "end with the empty one"),
        ({"symbols": ("", "a"), "padded": True}, "end with the empty one"),
        ({"padded": True}, "end with the empty one"),
        ({"unknown": True}, r"needs the symbol U\+FFFD"),
        ({"symbol": "byte"}, "256 bytes"),
        ({"symbol": "token"}, "go together"),
        ({"tokenizer": "{}"}, "go together"),
        ({"symbols": ("a", ""), "symbol": "byte", "padded": True}, "for characters and words"),
    ],
)
def test_fields_that_do_not_belong_together_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        build(KINDS, {**named(KINDS, ABC), **changes})


# --- gaps ---------------------------------------------------------------------------------------------------------


def test_a_text_with_gaps() -> None:
    x0, free = ABC.template("a__b", "_", (6,))
    assert free.tolist() == [False, True, True, False, True, True]
    assert x0[~free].tolist() == [0, 1]
    x0, free = WORDS.template("one ?? hundred", "?", (5,))
    assert free.tolist() == [False, True, True, False, True]
    x0, free = RAW.template("é*", "*", (3,))
    assert (x0[:2].tolist(), free.tolist()) == (list("é".encode()), [False, False, True])
    x0, free = CODES.template("e_", "_", (3, 2))
    assert x0[:, 0].tolist() == [1, -1, -1]
    assert free.tolist() == [[False, True]] * 3


def test_a_text_with_gaps_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a_\nb\n")
    x0, free = ABC.template(str(tmp_path / "a.txt"), "_", (5,))
    assert free.tolist() == [False, True, False, False, True]
    assert x0[~free].tolist() == [0, 3, 1]


def test_a_file_with_gaps_is_named_by_its_own_setting(tmp_path: Path) -> None:
    for data, sentence in {b"": "is empty", b"a\0": "is no text"}.items():
        (tmp_path / "a.txt").write_bytes(data)
        with pytest.raises(DataError, match=f"^task.text='.*a.txt' {sentence}"):
            ABC.template(str(tmp_path / "a.txt"), "_", (5,))


@pytest.mark.parametrize(
    ("kind", "text", "sentence"),
    [
        (ABC, "abcab", "text has 5 characters, and this model makes 4: shorten it"),
        (ABC, "____a", "text has 5 characters"),
        (ABC, "abca", "text has 4 characters, as many as this model makes, and no '_': nothing would be filled in"),
        (ABC, "x_", "text has 'x', which is no character"),
        (OPEN, "a" * 50 + "xy_", "text has 'x', which is no character of this model's: it could not be kept"),
        (ABC, "a" * 5000, "text has 5,000 characters"),
    ],
)
def test_a_text_that_cannot_stay_is_refused(kind: Tokens, text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        kind.template(text, "_", (4,))


# --- files --------------------------------------------------------------------------------------------------------


def test_samples_are_written_a_line_each() -> None:
    examples = torch.tensor([[0, 3, 1], [3, 3, 3]])
    assert ABC.lines(examples) == ["a\\nb", "\\n\\n\\n"], "what is shown on a screen must not break its lines"
    assert ABC.write("txt", examples, [-1, -1], ()) == b"a\\nb\n\\n\\n\\n\n"
    with np.load(io.BytesIO(ABC.write("npz", examples, [-1, 0], ("x",)))) as arrays:
        assert arrays["arr_0"].dtype == np.int64
        assert arrays["arr_0"].tolist() == examples.tolist()
        assert arrays["arr_1"].tolist() == [-1, 0]
        assert [unescaped(symbol) for symbol in arrays["symbols"]] == ["a", "b", "c", "\n"]
        assert arrays["classes"].tolist() == ["x"]


# --- bits ---------------------------------------------------------------------------------------------------------


def test_bits_are_the_code_with_the_highest_first() -> None:
    x0 = CODES.encode(torch.tensor([[0, 1, 4]]))
    assert x0.dtype == torch.float32
    assert x0[0].T.tolist() == [[-1, -1, -1], [-1, -1, 1], [1, -1, -1]]


@pytest.mark.parametrize(("symbols", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8), (257, 9)])
def test_as_many_bits_as_the_symbols_need(symbols: int, bits: int) -> None:
    kind = Bits(symbols=tuple(map(str, range(symbols))), symbol="word")
    ids = torch.arange(symbols)[None]
    assert kind.bits == bits
    assert kind.encode(ids).shape == (1, bits, symbols)
    assert torch.equal(kind.decode(kind.encode(ids)), ids)
    assert not kind.strays(kind.encode(ids)).any()


@given(st.integers(0, 2**31), st.integers(2, 40))
def test_decoding_is_maximum_likelihood(seed: int, symbols: int) -> None:
    kind = Bits(symbols=tuple(map(str, range(symbols))), symbol="word")
    x0 = torch.randn(2, kind.bits, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    codes = kind.encode(torch.arange(symbols)[None])[0].double()  # [bits, V]
    distance = (x0.movedim(1, -1)[..., None] - codes).square().sum(-2)  # [2, 7, V]
    assert torch.equal(kind.decode(x0), distance.argmin(-1))


def test_invalid_codes_are_noticed() -> None:
    x0 = torch.tensor([[[1.0, -1.0], [0.2, 1.0], [0.1, 1.0]]])  # 111 = 7 of 5 symbols, and 011 = 3
    assert CODES.strays(x0).tolist() == [[True, False]]
    assert CODES.decode(x0).tolist() == [[4, 3]]
    assert CODES.decode(x0.half()).dtype == torch.int64


def test_bits_are_numbers_of_one_size() -> None:
    data = InMemory(torch.tensor([[0, 1, 4]]), torch.tensor([-1]), (), CODES.as_tokens(0))
    assert (data.shape.size, data.shape.vocabulary) == ((3,), 5)
    codes = data.of(CODES)
    assert (codes.shape.size, codes.shape.vocabulary) == ((3, 3), 0)
    with pytest.raises(UsageError, match="must begin with 3"):
        CODES.check((2, 3))
    with pytest.raises(UsageError, match="has 1 sides"):
        CODES.check((3,))


# --- tokenizers of others -----------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A tokenizer of words that cuts texts at four tokens, as files of language models do."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "${x}": 2, "\u3000": 3, "[UNK]": 5}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.enable_truncation(4)
    made.enable_padding(length=8)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_tokenizer_of_the_library(file: Path) -> None:
    kept = tokenizer.read(str(file))
    kind = Tokens(symbols=(), symbol="token", tokenizer=kept)
    assert (kind.vocabulary, kind.as_numbers().bits) == (6, 3)
    assert kind.names[2:5] == ("\\x24{x}", "\\u3000", "[4]")
    assert kind.ids("the cat ${x} the cat dog") == [0, 1, 2, 0, 1, 5], "neither cut short nor filled up"
    assert kind.text([0, 1, 2]) == "the cat ${x}"
    assert kind.text([0, -1, 1]) == f"the{HIDDEN}cat"
    assert tokenizer.unknown(kept) == 5
    assert kept.isascii() and kept.isprintable() and "${" not in kept
    assert build(KINDS, json.loads(json.dumps(named(KINDS, kind)))) == kind
    with pytest.raises(UsageError, match="are not for a tokenizer"):
        Tokens(symbols=("a",), symbol="token", tokenizer=kept)


def test_a_long_text_is_cut_where_a_line_ends(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tokenizer.read(str(file))
    words = "the cat\n" * 50
    monkeypatch.setattr(tokenizer, "PIECE", 10)
    assert tokenizer.ids(kept, words) == [0, 1] * 50
    assert "".join(tokenizer.pieces("a" * 25)) == "a" * 25


def test_what_is_no_tokenizer_is_refused(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {b"{}": "none that its library can read", b"\xff": "is not JSON"}
    for changes, sentence in {
        '{"model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}}': "has no tokens",
        '{"model": {"type": "WordLevel", "vocab": {"a": 30000000}, "unk_token": ""}}': "there may be 131,072 tokens",
        '{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}': "none that its library can read",
    }.items():
        bad[json.dumps(json.loads(file.read_bytes()) | json.loads(changes)).encode()] = sentence
    for data, sentence in bad.items():
        (tmp_path / "bad.json").write_bytes(data)
        with pytest.raises(DataError, match=sentence):
            tokenizer.read(str(tmp_path / "bad.json"))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        tokenizer.read(str(tmp_path / "nothing.json"))
    monkeypatch.setattr(tokenizer, "LARGEST", 10)
    with pytest.raises(DataError, match="more than the 10 that a checkpoint can keep"):
        tokenizer.read(str(file))


def test_what_a_library_fails_at_is_one_sentence(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0})).save(str(tmp_path / "a.json"))
    kind = Tokens(symbols=(), symbol="token", tokenizer=tokenizer.read(str(tmp_path / "a.json")))
    with pytest.raises(DataError, match="the tokenizer cannot cut the text: WordLevel error: Missing"):
        kind.ids("b")
    with pytest.raises(UsageError, match="the tokenizer is none that its library can read"):
        build(KINDS, {**named(KINDS, kind), "tokenizer": "{}"})


def test_what_a_tokenizer_does_not_know_is_counted_and_cannot_stay(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models

    made = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.0)], unk_id=0))
    made.decoder = decoders.Fuse()
    made.save(str(tmp_path / "a.json"))
    kind = Tokens(symbols=(), symbol="token", tokenizer=tokenizer.read(str(tmp_path / "a.json")))
    assert kind.stranger == 0
    assert "1 of 5 tokens are none" in Text("abcba", kind, 2, "this", overlapping=True).notes[0]
    assert kind.template("ab_", "_", (3,))[1].tolist() == [False, False, True]
    with pytest.raises(UsageError, match="text has 'c', which is not given back by this model's tokenizer"):
        kind.template("abc_", "_", (4,))


def test_without_the_library_a_sentence_says_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    tokenizer.library.cache_clear()
    with pytest.raises(UsageError, match=r"pip install 'diffgen\[text\]'"):
        tokenizer.read(str(file))


@pytest.mark.parametrize(("scheme", "kept"), [("always", False), ("never", True)])
def test_a_tokenizer_that_sets_texts_apart_cannot_go_on_a_word(tmp_path: Path, scheme: str, kept: bool) -> None:
    """As those of many language models do: `walk_ing` would become `walkz ing`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate("▁walking")}, [], unk_token="w"))
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.Metaspace(prepend_scheme=scheme),
        decoders.Metaspace(prepend_scheme=scheme),
    )
    made.save(str(tmp_path / "tokenizer.json"))
    kind = Tokens(symbols=(), symbol="token", tokenizer=tokenizer.read(str(tmp_path / "tokenizer.json")))
    if kept:
        _, free = kind.template("walk_ing", "_", (8,))
        assert free.tolist() == [i == 4 for i in range(8)]
    else:
        with pytest.raises(UsageError, match="text has 'ing' after a gap"):
            kind.template("walk_ing", "_", (16,))
    assert kind.template("walk_", "_", (16,))[1].sum() > 0
