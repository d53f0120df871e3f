"""The selection bench's tasks: prompts of their length, answers that a reader of the text finds, evidence with them."""

import re
from collections import Counter

import pytest
from transformers import AutoTokenizer

from benchmarks import launch, text
from benchmarks.quality import forms
from benchmarks.real_model import cache
from benchmarks.selection import paragraphs, patterns, source_code, tasks, words
from benchmarks.text import haystack

NUMBERS = range(3)
LENGTH = 1024
SPLIT = "held_out"
AVAILABLE = [task for task in tasks.TASKS if tasks.available(task) is None]
CHAT = "{{ '<user> ' + messages[0]['content'] + ' <assistant> ' }}"


@pytest.fixture(scope="module")
def tokenizer():
    """The real model's where it has been made, else the shipped pair's with a chat format; nothing is downloaded."""
    made = cache.made()
    loaded = AutoTokenizer.from_pretrained(made or launch.DRAFT)
    if made is None:
        loaded.chat_template = CHAT
    return loaded


@pytest.fixture(scope="module")
def read(tokenizer):
    """An example with its texts: before the question, the question, the judged part of the answer, each evidence."""

    def parts(task, number, length=LENGTH, split=SPLIT):
        made = tasks.example(task, number, length, tokenizer, split)
        start, end = made.question
        judged = [token for token, counts in zip(made.answer, made.judged, strict=True) if counts]
        evidence = [tokenizer.decode(made.ids[first:last]) for first, last in made.evidence]
        return (
            made,
            tokenizer.decode(made.ids[:start]),
            tokenizer.decode(made.ids[start:end]),
            tokenizer.decode(judged),
            evidence,
        )

    return parts


@pytest.mark.parametrize("task", AVAILABLE)
def test_examples_are_repeatable_differ_and_have_their_length(task, tokenizer):
    seen = []
    for length, number, split in ((LENGTH, 0, SPLIT), (LENGTH, 1, SPLIT), (LENGTH, 0, "calibration"), (2048, 0, SPLIT)):
        one = tasks.example(task, number, length, tokenizer, split)
        assert one == tasks.example(task, number, length, tokenizer, split)
        assert 0.9 * length <= len(one.ids) <= length
        seen.append(tuple(one.ids))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("task", AVAILABLE)
def test_spans_lie_in_the_prompt_evidence_before_the_question_and_some_answer_tokens_count(task, read):
    for number in NUMBERS:
        made, _, question, judged, _ = read(task, number)
        start, end = made.question
        assert 0 < start < end <= len(made.ids)
        assert start > 0.8 * len(made.ids)
        assert question.strip()
        assert all(0 < first < last <= start for first, last in made.evidence)
        assert len(made.judged) == len(made.answer)
        assert judged.strip()
        assert not made.judged[0]


@pytest.mark.parametrize("task", AVAILABLE)
def test_evidence_is_where_a_question_names_what_it_wants(task, read):
    made, *_ = read(task, 0)
    assert bool(made.evidence) == (task in tasks.NAMED)


def test_the_chat_format_waits_for_the_assistant(tokenizer):
    made = tasks.example("needle", 0, LENGTH, tokenizer, SPLIT)
    ending = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(made.ids).endswith(ending[ending.index("?") :])


@pytest.mark.parametrize(("task", "asked"), [("needle", 1), ("multi_key", 1), ("multi_query", 3)])
def test_pass_keys_are_read_from_the_text(task, asked, read):
    for number in NUMBERS:
        _, body, question, judged, evidence = read(task, number)
        stated = dict(re.findall(r"The pass key for (\w+) is (\d{5})\.", body))
        keys = re.findall(r"\w+", question.split(" for ")[1].replace(" and ", " "))
        assert len(keys) == asked
        assert judged.split() == [stated[key] for key in keys]
        assert [re.findall(r"\d{5}", one) for one in evidence] == [[stated[key]] for key in keys]


def test_variables_are_followed_through_two_hops(read):
    for number in NUMBERS:
        _, body, question, judged, evidence = read("variables", number)
        equals = dict(re.findall(r"The variable (\w+) equals (\w+)\.", body))
        asked = re.search(r"variable (\w+)\?", question)[1]
        assert judged.split() == [equals[asked], equals[equals[asked]]]
        assert "".join(evidence).index(equals[equals[asked]]) < "".join(evidence).index(asked)


def test_quotations_follow_the_words_given(read):
    for number in NUMBERS:
        _, body, question, judged, evidence = read("cloze", number)
        given = re.search(r'"(.*)"', question, re.DOTALL)[1]
        assert body.count(given) == 1
        rest = body.split(given)[1]
        assert rest.startswith(judged)
        assert len(judged.split()) == 8
        assert evidence[0].strip() == given + judged


def test_questions_about_people_are_answered_by_a_sentence(read):
    for number in NUMBERS:
        _, body, question, judged, evidence = read("facts", number)
        name, verb = re.search(r"(\w+) (live|carry|sell|paint)", question).groups()
        said = {"live": "lives near", "carry": "carries", "sell": "sold", "paint": "painted"}[verb]
        assert re.findall(rf"{name} {said} the (\w+)\.", body) == [judged.strip()]
        assert evidence[0].strip() == f"{name} {said} the{judged}."


@pytest.mark.parametrize("length", [1024, 4096])
def test_the_word_with_most_votes_is_counted(length, read):
    for number in NUMBERS:
        _, body, _, judged, _ = read("votes", number, length)
        votes = Counter(re.findall(r"One vote goes to (\w+)\.", body)).most_common()
        assert votes[0][0] == judged.strip()
        assert votes[0][1] > 1.5 * votes[1][1]
        assert sum(many for _, many in votes) == pytest.approx(18 * length / 1000, abs=2)


def test_labels_follow_from_the_class_of_the_word(read):
    classes = patterns._CLASSES[1]
    for number in NUMBERS:
        _, body, question, judged, _ = read("fewshot", number)
        of_class: dict[int, set[str]] = {}
        for line in body.split("\n"):
            for at, members in enumerate(classes):
                if "=>" in line and set(line.split()) & set(members.split()):
                    of_class.setdefault(at, set()).add(line.split("=> ")[1].strip())
        (asked,) = [at for at, members in enumerate(classes) if set(question.split()) & set(members.split())]
        assert of_class[asked] == {judged.strip()}
        (word,) = set(question.split()) & set(classes[asked].split())
        assert f" {word} " not in body


def test_the_name_is_completed_from_its_only_definition(read):
    for number in NUMBERS:
        _, body, question, judged, evidence = read("code", number)
        begun = re.search(r"begins with (\w+)\.", question)[1] + "_"
        assert re.findall(rf"\b{begun}(\w+)", body) == [judged]
        assert f"def {begun}{judged}(" in evidence[0]
        assert body.index(begun) < 0.6 * len(body)


def test_prose_goes_on_in_the_book(read):
    for number in NUMBERS:
        made, body, question, judged, _ = read("prose", number)
        last = re.search(r'"(.*)"', question, re.DOTALL)[1]
        books = [" ".join(text.book(name, held_out=True).split()) for name in text.BOOKS]
        ending = " ".join(body.split()[-30:])
        assert ending.endswith(last)
        assert any(f"{ending} {' '.join(judged.split())}" in book for book in books)
        assert sum(made.judged) == 48


@pytest.mark.skipif(paragraphs.missing() is not None, reason="XQuAD's file is absent")
@pytest.mark.parametrize(("task", "asked"), [("squad", 1), ("squad2", 2)])
def test_answers_of_questions_stand_in_their_evidence(task, asked, read):
    for number in NUMBERS:
        made, _, _, _, evidence = read(task, number)
        runs = re.findall("1+", "".join(str(int(one)) for one in made.judged))
        assert len(evidence) == len(runs) == asked
        judged = read(task, number)[3]
        if asked == 1:
            assert judged.strip() in evidence[0]
        assert all(word in "".join(evidence) for word in judged.split()[:1] + judged.split()[-1:])


@pytest.mark.skipif("ruler_vt" not in AVAILABLE, reason="lm-eval is not installed")
def test_rulers_chain_is_followed_and_its_words_are_counted(read):
    for number in NUMBERS:
        _, body, question, judged, evidence = read("ruler_vt", number)
        value = re.search(r"value (\d+)", question)[1]
        held = re.findall(rf"VAR (\w+) = {value}", body)
        while further := re.findall(rf"VAR (\w+) = VAR {held[-1]}\b", body):
            held += further
        assert judged.split() == held
        assert len(held) == 5
        assert [one.split()[1] for one in evidence] == held
        _, body, _, judged, _ = read("ruler_fwe", number)
        coded = Counter(re.findall(r"\b[a-z]{6}\b", body.split("coded words. ")[1]))
        assert judged.split() == [word for word, _ in coded.most_common(3)]


def test_ruler_leaves_the_random_numbers_of_the_process_alone(tokenizer):
    import random

    random.seed(3)
    expected = random.random()
    random.seed(3)
    tasks.example("needle", 0, LENGTH, tokenizer, SPLIT)
    if "ruler_vt" in AVAILABLE:
        tasks.example("ruler_vt", 0, LENGTH, tokenizer, SPLIT)
    assert random.random() == expected


def test_the_splits_share_no_material():
    for all_of in (
        lambda held_out: set(words._NOUNS[int(held_out) :: 2]),
        lambda held_out: set(words.names(held_out=held_out)),
    ):
        assert all_of(True)
        assert not all_of(True) & all_of(False)
    assert set(words.names(held_out=True)) < set(forms.NAMES)
    assert not set(source_code.modules(held_out=True)) & set(source_code.modules(held_out=False))
    assert not set(" ".join(patterns._CLASSES[0]).split()) & set(" ".join(patterns._CLASSES[1]).split())
    if paragraphs.missing() is None:
        contexts = [{one["context"] for one in paragraphs._paragraphs(paragraphs.file(), side)} for side in (True, False)]
        assert contexts[0]
        assert not contexts[0] & contexts[1]


def test_missing_material_is_said_and_refused(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("SPECPREFILL_XQUAD", str(tmp_path / "nothing.json"))
    assert "SPECPREFILL_XQUAD" in tasks.available("squad")
    assert tasks.available("needle") is None
    with pytest.raises(ValueError, match="SPECPREFILL_XQUAD"):
        tasks.example("squad", 0, LENGTH, tokenizer, SPLIT)
    with pytest.raises(ValueError, match="no task 'nonsense'"):
        tasks.example("nonsense", 0, LENGTH, tokenizer, SPLIT)


def test_filler_stays_in_its_budget_beside_a_table_of_numbers():
    def count(piece):
        return len(piece.replace(" ", ""))

    table = " ".join(["12345678"] * 40)
    filler = haystack.filled(["ab cd.", table], 30, count)
    assert filler[0] == "ab cd."
    assert 0 < count(filler[1]) <= 26


def test_every_task_has_a_family():
    assert set(tasks.FAMILY) == set(tasks.TASKS)
    assert set(tasks.TASKS) >= tasks.NAMED
    assert len(set(tasks.FAMILY.values())) >= 5
