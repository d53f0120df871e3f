"""A prompt in another tokenizer's tokens: what it reads, who overlaps whom, what is left out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from specprefill_sgl.methods.own_tokens import OwnTokens, Speller, UnreadableError
from specprefill_sgl.request import reading
from specprefill_sgl.scoring.overlap import largest_over
from tests.support import other_tokenizer, tiny_models

S, END, PAD = 0, 1, 2  # the target's special tokens; the draft has the first by the same name


@pytest.fixture(scope="module")
def own():
    return OwnTokens(tiny_models.tokenizer(), other_tokenizer.tokenizer())


@pytest.fixture(scope="module")
def sentencepiece():
    """Words begin with a mark for the space, characters it lacks are bytes."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁cat", "s", "a", "▁a", "t"]
    model = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=[], byte_fallback=True))
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")


def _is(found, wanted):
    first, past = ([part(among) for among in wanted] for part in (min, lambda among: max(among) + 1))
    return found.first.tolist() == first and found.past.tolist() == past


@pytest.mark.parametrize("seed", range(4))
def test_overlaps_are_those_of_the_tokenizers_own_offsets(own, seed):
    prompt = other_tokenizer.text(300, seed)
    ids, read, wanted = other_tokenizer.overlaps(tiny_models.tokenizer(), prompt)
    found = own.read(ids)
    assert found.ids.tolist() == read
    assert _is(found, wanted)
    assert (found.unread, found.milliseconds > 0) == ((), True)


@given(st.text(min_size=1, max_size=40).filter(lambda text: not text.isspace() and "<" not in text))
def test_any_text_is_read_as_it_is(text):
    """Whatever its characters; but for those that a tokenizer itself writes for broken ones."""
    target = tiny_models.tokenizer()
    ids = target.encode(text, add_special_tokens=False)
    if "\ufffd" not in text:
        assert Speller(target).spell(ids).text == text
    found = OwnTokens(target, other_tokenizer.tokenizer()).read(ids)
    if found is not None:
        assert (np.diff(found.first) >= 0).all()
        assert (np.diff(found.past) >= 0).all()
        assert (found.first < found.past).all()
        assert found.first.min() >= 0
        assert found.past.max() <= len(found.ids)


@given(st.lists(st.integers(3, tiny_models.VOCABULARY - 1), min_size=1, max_size=60))
def test_any_ids_are_covered(ids):
    """Ids that no text gives: bytes that are no characters. Every character of the text belongs to some id."""
    spelled = Speller(tiny_models.tokenizer()).spell(ids)
    assert spelled.begin[0] == 0
    assert spelled.end[-1] == len(spelled.text)
    assert (spelled.begin[1:] <= spelled.end[:-1]).all()
    found = OwnTokens(tiny_models.tokenizer(), other_tokenizer.tokenizer()).read(ids)
    assert found is None or len(found.first) == len(found.past) == len(ids)


def test_a_space_before_a_word_stays(sentencepiece):
    ids = [sentencepiece.convert_tokens_to_ids(token) for token in ("▁the", "▁cat", "s", "▁", "<0xC3>", "<0xA9>", "▁a")]
    spelled = Speller(sentencepiece).spell(ids)
    assert spelled.text == " the cats é a"
    assert [spelled.text[begin:end] for begin, end in zip(spelled.begin, spelled.end, strict=True)] == [
        *(" the", " cat", "s", " ", "é", "é", " a")
    ]


def test_special_tokens_are_kept_by_name_or_left_out(own):
    """`<s>` is the draft's too; `<pad>` and `</s>` are not, and are neither read nor dropped."""
    target, draft = tiny_models.tokenizer(), other_tokenizer.tokenizer()
    words = [target.encode(word, add_special_tokens=False) for word in ("return one", " and", " two")]
    prompt = [S, *words[0], PAD, END, *words[1], S, *words[2], PAD]
    found = own.read(prompt)
    wanted = [draft.encode(word, add_special_tokens=False) for word in ("return one", " and", " two")]
    assert found.ids.tolist() == [0, *wanted[0], *wanted[1], 0, *wanted[2]]  # its own first token is there already
    after = 1 + len(words[0])
    assert found.unread == ((after, after + 2), (len(prompt) - 1, len(prompt)))
    second = after + 2 + len(words[1])
    assert found.ids[found.first[second]] == 0
    assert found.past[second] == found.first[second] + 1


def test_text_that_looks_like_the_drafts_special_token_stays_text(own):
    found = own.read(tiny_models.tokenizer().encode("one <end> two", add_special_tokens=False))
    assert END not in found.ids.tolist()


@pytest.mark.parametrize("ids", [[PAD, END], [], [50, tiny_models.VOCABULARY + 3]], ids=["special only", "none", "unknown"])
def test_what_cannot_be_read(own, ids):
    assert own.read(ids) is None


def test_an_unknown_id_is_named():
    with pytest.raises(UnreadableError, match="515"):
        Speller(tiny_models.tokenizer()).spell([50, 515])


def test_a_reading_survives_sglangs_channels(own):
    found = own.read([S, *tiny_models.tokenizer().encode("return one", add_special_tokens=False), PAD])
    custom, back = reading.unpack({"spec_prefill_keep_ratio": 0.3, reading.KEY: reading.pack(found)})
    assert custom == {"spec_prefill_keep_ratio": 0.3}
    assert (back.ids, back.unread, back.milliseconds) == (found.ids, found.unread, found.milliseconds)
    assert (back.first.tolist(), back.past.tolist()) == (found.first.tolist(), found.past.tolist())
    for custom in ({"a": 1}, {reading.KEY: b"none"}, {reading.KEY: "text"}):
        assert reading.unpack(custom) == (custom, None)
    assert reading.unpack(None) == (None, None)


def test_votes_positions_and_ranges_over_the_target():
    found = reading.Reading(
        ids=other_tokenizer.tokenizer().encode("a b c d"), first=np.array([1, 1, 3]), past=np.array([2, 3, 5])
    )
    votes = torch.tensor([[9.0, 1, 3, 2, 4], [9.0, 5, 0, 1, 0]])
    assert largest_over(votes, found.first, found.past).tolist() == [[1, 3, 4], [5, 5, 1]]
    assert [found.position_of(at) for at in range(7)] == [0, 0, 1, 2, 2, 3, 4]
    assert (found.range_of(0, 2), found.range_of(1, 3), found.range_of(2, 2)) == ((0, 3), (1, 5), (0, 0))


@pytest.mark.parametrize("which", ["target", "draft"])
def test_a_real_tokenizer_may_be_either(which, tmp_path):
    """The pair's own tokenizer, of 2,048 tokens."""
    pair = AutoTokenizer.from_pretrained("benchmarks/pair/target")
    prompt = other_tokenizer.text(200, 5)
    one, other = (pair, tiny_models.tokenizer()) if which == "target" else (tiny_models.tokenizer(), pair)
    found = OwnTokens(one, other).read(one.encode(prompt, add_special_tokens=False))
    assert found.ids.tolist() == other.encode(prompt, add_special_tokens=False)


class _Slow(PreTrainedTokenizer):
    """In plain Python, a character a token; ids it lacks are an error of the table it has."""

    def __init__(self, table, **more):
        self._table = table
        super().__init__(**more)

    @property
    def vocab_size(self):
        return len(self._table)

    def get_vocab(self):
        return {self._table[at]: at for at in range(len(self._table))}

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.get_vocab().get(token)

    def _convert_id_to_token(self, index):
        return self._table[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)


LETTERS = list("abcdefghij klmnopqrstuvwxyz")
UNKNOWN = {"list": 99, "dict": 99, "characters": 2**21, "fast": 2**40}


def _odd(kind):
    tables = {"list": LETTERS, "dict": dict(enumerate(LETTERS))}
    if kind in tables:
        return _Slow(tables[kind])
    return ByT5Tokenizer() if kind == "characters" else tiny_models.tokenizer()


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_unknown_id_is_said_whatever_error_the_tokenizer_has_for_it(kind):
    """Not only None: IndexError, KeyError, ValueError, OverflowError."""
    tokenizer = _odd(kind)
    ids = tokenizer.encode("the cat", add_special_tokens=False)
    assert Speller(tokenizer).spell(ids).text == "the cat"
    with pytest.raises(UnreadableError, match=str(UNKNOWN[kind])):
        Speller(tokenizer).spell([*ids, UNKNOWN[kind]])
    own = OwnTokens(tokenizer, other_tokenizer.tokenizer())
    assert own.read(ids) is not None
    assert own.read([*ids, UNKNOWN[kind]]) is None


def test_a_tokenizer_without_letters_is_said():
    with pytest.raises(UnreadableError, match="no token for a letter"):
        Speller(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())))
