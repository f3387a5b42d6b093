"""Questions with rationales: tables of them, the built-in ones, and how answers are read."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.training.data import DataSpec, load
from flatminima.training.data.answers import completion, normalized, parse, prompt
from flatminima.training.data.arithmetic import MODULUS, problem

ROWS = [
    {"question": f"Is {n} even?", "rationale": f"{n} is twice {n / 2}.", "answer": n % 2 == 0}
    for n in range(40)
]


@pytest.fixture
def table(tmp_path):
    def write(rows, name="strategy.jsonl"):
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write


def read(file, **given):
    return load(DataSpec(str(file), task="rationales", **given), 0)


def test_a_table_of_questions_rationales_and_answers_is_read(table):
    data = read(table(ROWS))
    assert (data.task, data.classes, data.kind) == ("rationales", (), "text")
    assert [len(data.train), len(data.validation), len(data.test)] == [29, 3, 8]
    parts = (data.train, data.validation, data.test)
    together = {tuple(entry) for part in parts for entry in part.inputs}
    assert together == {
        (r["question"], r["rationale"], "yes" if r["answer"] else "no") for r in ROWS
    }
    assert "targets" not in data.report["train"]


def test_columns_of_other_names_can_be_named_and_steps_may_be_a_list(table):
    rows = [{"q": r["question"], "facts": ["One.", "Two."], "label": 3} for r in ROWS]
    data = read(table(rows), text_column="q, facts", label_column="label")
    assert {entry[1:] for entry in data.train.inputs} == {("One. Two.", "3")}


def test_a_missing_rationale_means_the_answer_at_once(table):
    data = read(table([{**row, "rationale": None} for row in ROWS]))
    assert {entry[1] for entry in data.train.inputs} == {""}
    assert completion("", "yes") == " The answer is yes."


def test_splits_of_a_folder_are_kept(table):
    table(ROWS[:20], "train.jsonl")
    folder = table(ROWS[20:25], "test.jsonl").parent
    data = read(folder)
    assert [entry[0] for entry in data.test.inputs] == [r["question"] for r in ROWS[20:25]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("rationale"), "no column 'rationale' .*the columns are question"),
        (lambda row: row.update(answer=None), "row 1 of strategy.jsonl has no answer"),
        (lambda row: row.update(question="  "), "the question in row 1 .* is empty"),
        (lambda row: row.update(rationale={"a": 1}), "the rationale in row 1 .* is a dict"),
    ],
)
def test_rows_that_cannot_be_used_are_named(table, change, message):
    rows = [dict(row) for row in ROWS[:8]]
    for row in rows if "column" in message else rows[:1]:
        change(row)
    with pytest.raises(InputError, match=message):
        read(table(rows))


def test_what_does_not_go_with_rationales_is_refused(table):
    with pytest.raises(InputError, match="give at least 4"):
        read(table(ROWS[:3]))
    with pytest.raises(InputError, match="name two columns"):
        read(table(ROWS), text_column="question")
    with pytest.raises(InputError, match="--task rationales does not fit digits"):
        read("digits")
    with pytest.raises(InputError, match="label-noise draws classes anew"):
        read(table(ROWS), label_noise=0.1)
    known = "classification, contrastive, masked-images, rationales, regression"
    with pytest.raises(InputError, match=rf"--task.*known are {known}"):
        DataSpec("digits", task="rationale")


@pytest.mark.parametrize(
    ("generated", "wanted", "found"),
    [
        (" It flies. The answer is yes.", "yes", "yes"),
        (" The answer is no. So: the answer is: YES, it is.", "Yes", "yes"),
        (" The answer is (B) a river.", "b", "b"),
        (" THE ANSWER IS B) a river", "B", "b"),
        (" The answer is about $1,200.00 a year.", "1200", "1200"),
        (" The answer is a river (B).", "b", "b"),
        (" The answer is -0.50", "-0.5", "-0.5"),
        (" The answer is The Nile. It is long.", "the nile", "the nile"),
        (" The answer is\n4", "5", "4"),
        (" The answer is maybe.", "yes", None),
        (" The answer is", "yes", None),
        (" It is 4.", "4", None),
        (" The answer is St. Louis. It is in Missouri.", "St. Louis", "st. louis"),
        (" The answer is .5 of them.", "0.5", "0.5"),
        (" The answer is 0.5.", ".5", "0.5"),
        (" The answer is ...5", "5", "5"),
    ],
)
def test_answers_are_read_off_generated_text(generated, wanted, found):
    assert parse(generated, wanted) == found


@given(
    st.sampled_from(["yes", "no", "A", "e", "(C)", "The Nile", "St. Louis", "a. b. c", ".25"])
    | st.integers().map(str)
    | st.integers().map(lambda n: f"{n:,}")
    | st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str),
    st.text(st.characters(codec="ascii", exclude_characters="\n")),
)
@settings(max_examples=200, deadline=None)
def test_what_is_trained_on_parses_to_its_own_answer(answer, rationale):
    assert parse(completion(rationale, answer), answer) == normalized(answer)


def test_a_rationale_is_worked_step_by_step_from_left_to_right():
    numbers = np.random.default_rng(0)
    for steps in (1, 2, 5):
        for _ in range(200):
            question, worked, answer = problem(numbers, steps)
            value, shown = int(question[0]), []
            for sign, operand in zip(question[1::2], question[2::2], strict=True):
                work = {"+": int.__add__, "*": int.__mul__}[sign]
                result = work(value, int(operand)) % MODULUS
                shown.append(f"{value}{sign}{operand}={result}")
                value = result
            assert (worked, answer) == (" ".join(shown), str(value))


def test_the_answer_is_uniform_whatever_all_steps_but_one_are():
    numbers = np.random.default_rng(1)
    answers = [int(problem(numbers, 3)[2]) for _ in range(7000)]
    counts = np.bincount(answers, minlength=MODULUS)
    # Four degrees of freedom: 18.5 is the 99.9 % point of chi-squared.
    assert ((counts - 1400) ** 2 / 1400).sum() < 18.5


def test_no_problem_of_one_part_is_in_another_and_the_source_has_no_steps():
    data = load(DataSpec("arithmetic(steps=2;train=60;validation=30;test=60;source=500)"), 0)
    parts = [[e[0] for e in p.inputs] for p in (data.train, data.validation, data.test)]
    assert [len(set(part)) for part in parts] == [60, 30, 60]
    questions = {question for part in parts for question in part}
    assert len(questions) == 150
    source = {entry[0] for entry in data.source.inputs}
    assert not source & questions
    assert {len(question) for question in source} == {3, 5}
    assert {entry[1] for entry in data.source.inputs} == {""}


def test_without_rationales_the_problems_are_the_same():
    with_steps = load(DataSpec("arithmetic(train=20)"), 4)
    direct = load(DataSpec("arithmetic(train=20;rationales=false)"), 4)
    for part in ("train", "validation", "test", "source"):
        one, other = getattr(with_steps, part).inputs, getattr(direct, part).inputs
        assert [(q, "", a) for q, _, a in one] == list(other)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("arithmetic(step=4)", "did you mean 'steps'"),
        ("arithmetic(steps=0)", "steps is 0"),
        ("arithmetic(rationales=1)", "rationales is 1: give true or false"),
        ("arithmetic(steps=1;train=100)", "there are 45 problems of 1 steps"),
    ],
)
def test_settings_of_arithmetic_that_cannot_be_are_refused(asked, message):
    with pytest.raises(InputError, match=message):
        load(DataSpec(asked), 0)


def test_a_prompt_ends_where_the_answer_begins():
    assert prompt("3+5") + completion("3+5=1", "1") == "Q: 3+5\nA: 3+5=1 The answer is 1."
