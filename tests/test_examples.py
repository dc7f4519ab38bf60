"""Standard columns -> token ids: boundaries, chat templates, cuts and their report."""

from itertools import chain

import pytest
from datasets import Dataset
from tiny_tokenizers import CHAT_TEMPLATE, byte_bpe

from workbench import WorkbenchError
from workbench.models.examples import (
    completion_examples,
    labelled_examples,
    pair_completions,
    pair_examples,
    prompt_examples,
    ranking_examples,
    stepwise_examples,
    text_documents,
)

ASK = [{"role": "user", "content": "how long?"}]
ANSWER = [{"role": "assistant", "content": "four hours"}]


def ids(tokenizer, text):
    """The tokenizer's own encoding of a text whose special tokens are written out."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def demonstrations(**columns):
    return Dataset.from_dict(columns or {"prompt": ["Question?"], "completion": [" twenty four"]})


def test_a_demonstration_is_bos_prompt_and_completion_eos():
    tokenizer = byte_bpe(before="<bos>", after="<eos>")
    (example,) = completion_examples(demonstrations(), tokenizer, max_prompt_length=50, max_completion_length=50)
    assert example.prompt_ids == ids(tokenizer, "<bos>Question?")
    assert example.completion_ids == ids(tokenizer, " twenty four<eos>")


def test_a_long_prompt_keeps_its_last_tokens_and_a_long_completion_its_first_without_eos():
    tokenizer = byte_bpe()
    examples = completion_examples(
        demonstrations(prompt=["abcdefgh", "x"], completion=["01234567", "9"]),
        tokenizer,
        max_prompt_length=3,
        max_completion_length=4,
    )
    assert [tokenizer.decode(e.prompt_ids) for e in examples] == ["fgh", "x"]
    assert [tokenizer.decode(e.completion_ids) for e in examples] == ["0123", "9<eos>"]
    assert (examples.report.rows, examples.report.cut_prompts, examples.report.cut_completions) == (2, 1, 1)
    assert "2 rows: 1 prompts cut" in str(examples.report)


def test_a_completion_that_just_fits_with_its_eos_is_not_cut():
    dataset = demonstrations(prompt=["a"], completion=["123"])
    examples = completion_examples(dataset, byte_bpe(), max_prompt_length=1, max_completion_length=4)
    assert len(examples[0].completion_ids) == 4 and examples.report.cut_completions == 0


def test_prompt_and_completion_fit_the_context_together():
    tokenizer = byte_bpe()
    dataset = demonstrations(prompt=["abcdef"], completion=["0123456789"])
    (example,) = completion_examples(dataset, tokenizer, max_prompt_length=9, max_completion_length=9, context=8)
    assert tokenizer.decode(example.prompt_ids + example.completion_ids) == "abcdef01"


def test_a_prompt_that_fills_the_context_is_refused_by_its_row():
    dataset = Dataset.from_dict({"prompt": ["a", "abcdef"]})
    with pytest.raises(WorkbenchError, match=r"Row 1 has a prompt of 6 tokens.*context of 6.*below 6"):
        prompt_examples(dataset, byte_bpe(), max_prompt_length=10, context=6)
    assert len(prompt_examples(dataset, byte_bpe(), max_prompt_length=5, context=6)) == 2


def test_prompt_examples_carry_their_row_for_reward_functions():
    tokenizer = byte_bpe()
    dataset = Dataset.from_dict({"prompt": ["2+2=", "3+3="], "solution": ["4", "6"]})
    first, second = prompt_examples(dataset, tokenizer, max_prompt_length=10)
    assert first.row == {"prompt": "2+2=", "solution": "4"}
    assert tokenizer.decode(second.prompt_ids) == "3+3="


def test_a_conversation_ends_its_prompt_where_the_template_asks_for_an_answer():
    tokenizer = byte_bpe(before="<bos>", chat_template=CHAT_TEMPLATE)
    dataset = demonstrations(prompt=[ASK], completion=[ANSWER])
    (example,) = completion_examples(dataset, tokenizer, max_prompt_length=99, max_completion_length=99)
    assert example.prompt_ids == ids(tokenizer, "<|user|>how long?<eos>\n<|assistant|>")
    assert example.completion_ids == ids(tokenizer, "four hours<eos>")  # without the line break after EOS
    (prompt,) = prompt_examples(dataset, tokenizer, max_prompt_length=99)
    assert prompt.prompt_ids == example.prompt_ids
    assert prompt.row["prompt"] == "<|user|>how long?<eos>\n<|assistant|>"


def test_a_template_that_does_not_end_answers_gets_an_eos():
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    tokenizer = byte_bpe(chat_template=template)
    dataset = demonstrations(prompt=[ASK], completion=[ANSWER])
    (example,) = completion_examples(dataset, tokenizer, max_prompt_length=99, max_completion_length=99)
    assert (
        tokenizer.decode(example.prompt_ids + example.completion_ids)
        == "[user] how long?\n[assistant] four hours\n<eos>"
    )


def test_a_conversation_without_a_chat_template_is_refused_with_what_to_do():
    with pytest.raises(WorkbenchError, match=r"Row 0 .* no chat template: use the tokenizer of a chat model"):
        prompt_examples(Dataset.from_dict({"prompt": [ASK]}), byte_bpe(), max_prompt_length=9)


def test_a_template_that_refuses_the_roles_is_quoted_with_the_row():
    tokenizer = byte_bpe(chat_template="{{ raise_exception('only users may speak') }}")
    with pytest.raises(WorkbenchError, match=r"row 0, whose roles are user \(only users may speak\)"):
        prompt_examples(Dataset.from_dict({"prompt": [ASK]}), tokenizer, max_prompt_length=9)


def test_a_template_whose_prompt_changes_once_answered_is_refused():
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    dataset = demonstrations(prompt=[ASK], completion=[ANSWER])
    with pytest.raises(WorkbenchError, match="prompt of row 0 differently"):
        completion_examples(dataset, byte_bpe(chat_template=template), max_prompt_length=9, max_completion_length=9)


def test_keys_that_only_some_messages_have_do_not_reach_the_template_as_none():
    template = "{% for m in messages %}{{ m.content }}{% if m.name is defined %}@{{ m.name }}{% endif %}{% endfor %}"
    messages = [{"role": "user", "content": "a", "name": "ada"}, {"role": "user", "content": "b"}]
    (example,) = prompt_examples(
        Dataset.from_dict({"prompt": [messages]}), byte_bpe(chat_template=template), max_prompt_length=9
    )
    assert example.row["prompt"] == "a@adab"


def test_pairs_share_the_prompt_and_carry_their_margin():
    tokenizer = byte_bpe()
    dataset = Dataset.from_dict(
        {"prompt": ["p", "p"], "chosen": ["a", "c"], "rejected": ["b", "d"], "margin": [1.5, None]}
    )
    first, second = pair_examples(dataset, tokenizer, max_prompt_length=5, max_completion_length=5)
    assert [tokenizer.decode(side) for side in (first.prompt_ids, first.chosen_ids, first.rejected_ids)] == [
        "p",
        "a<eos>",
        "b<eos>",
    ]
    assert (first.margin, second.margin) == (1.5, 0.0)


def test_pairs_carry_the_probability_that_the_chosen_one_is_better():
    dataset = Dataset.from_dict(
        {"prompt": ["p"] * 2, "chosen": ["a", "c"], "rejected": ["b", "d"], "preference": [0.5, None]}
    )
    pairs = pair_examples(dataset, byte_bpe(), max_prompt_length=5, max_completion_length=5)
    assert [pair.preference for pair in pairs] == [0.5, 1.0]
    certain = pair_examples(
        dataset.remove_columns("preference"), byte_bpe(), max_prompt_length=5, max_completion_length=5
    )
    assert [pair.preference for pair in certain] == [1.0, 1.0]


def test_pairs_that_a_cut_makes_equal_are_dropped_and_counted():
    dataset = Dataset.from_dict({"prompt": ["p", "p"], "chosen": ["xyz1", "a"], "rejected": ["xyz2", "b"]})
    examples = pair_examples(dataset, byte_bpe(), max_prompt_length=5, max_completion_length=3)
    assert len(examples) == 1 and examples.report.dropped_pairs == 1 and examples.report.cut_completions == 2
    with pytest.raises(WorkbenchError, match="raise max_completion_length"):
        pair_examples(dataset.select([0]), byte_bpe(), max_prompt_length=5, max_completion_length=3)


def test_documents_end_with_one_eos_and_empty_lines_are_left_out():
    tokenizer = byte_bpe(before="<bos>", after="<eos>")
    documents = text_documents(Dataset.from_dict({"text": ["a day", "  \n", "four<eos>"]}), tokenizer)
    assert documents == [ids(tokenizer, "<bos>a day<eos>"), ids(tokenizer, "<bos>four<eos>")]
    with pytest.raises(WorkbenchError, match="'text' are empty"):
        text_documents(Dataset.from_dict({"text": [" "]}), tokenizer)


@pytest.mark.parametrize(
    ("prompt", "completion", "named"), [(0, 5, "max_prompt_length is 0"), (5, 0, "max_completion")]
)
def test_lengths_below_one_are_refused(prompt, completion, named):
    with pytest.raises(WorkbenchError, match=named):
        completion_examples(demonstrations(), byte_bpe(), max_prompt_length=prompt, max_completion_length=completion)


def test_a_prompt_of_no_tokens_is_refused_by_its_row():
    with pytest.raises(WorkbenchError, match="Row 1 has a prompt of 0 tokens"):
        prompt_examples(Dataset.from_dict({"prompt": ["a", ""]}), byte_bpe(), max_prompt_length=5)


def test_examples_know_their_rows_when_some_are_dropped():
    pairs = Dataset.from_dict({"prompt": ["p", "q", "r"], "chosen": ["abx", "c", "d"], "rejected": ["aby", "d", "e"]})
    examples = pair_examples(pairs, byte_bpe(), max_prompt_length=9, max_completion_length=2)
    assert examples.rows == [1, 2]
    prompts = prompt_examples(pairs, byte_bpe(), max_prompt_length=9)
    assert prompts.rows == [0, 1, 2]


def test_the_completions_of_pairs_are_the_texts_that_were_given():
    rows = {"prompt": ["Is it?", "So?"], "chosen": [" yes", " it is so"], "rejected": [" no", " not"]}
    found = pair_completions(Dataset.from_dict(rows))
    assert [(row["prompt"], row["completion"]) for row in found] == [
        ("Is it?", " yes"),
        ("Is it?", " no"),
        ("So?", " it is so"),
        ("So?", " not"),
    ]
    assert all(row["finished"] for row in found)


def test_the_report_mentions_only_what_was_cut():
    rows = Dataset.from_dict({"prompt": ["abcd", "a"], "completion": ["a", "b"]})
    limits = {"max_completion_length": 9}
    assert str(completion_examples(rows, byte_bpe(), max_prompt_length=9, **limits).report) == (
        "2 rows: nothing had to be cut."
    )
    assert str(completion_examples(rows, byte_bpe(), max_prompt_length=2, **limits).report) == (
        "2 rows: 1 prompts cut on the left."
    )


# What people said of completions


def test_a_labelled_completion_carries_what_was_said_of_it_as_a_number():
    tokenizer = byte_bpe(before="<bos>")
    rows = Dataset.from_dict({"prompt": ["p", "q"], "completion": [" a", " b"], "label": [True, False]})
    limits = {"max_prompt_length": 5, "max_completion_length": 5}
    first, second = labelled_examples(rows, tokenizer, **limits)
    assert (first.prompt_ids, first.completion_ids) == (ids(tokenizer, "<bos>p"), ids(tokenizer, " a<eos>"))
    assert (first.label, second.label) == (1.0, 0.0)
    rated = labelled_examples(rows.rename_column("label", "rating"), tokenizer, column="rating", **limits)
    assert [example.label for example in rated] == [1.0, 0.0]


def test_a_ranking_keeps_its_completions_in_their_places():
    tokenizer = byte_bpe()
    rows = Dataset.from_dict({"prompt": ["p"], "completions": [["a", "bc", "d"]], "ranking": [[2, 0, 1]]})
    (example,) = ranking_examples(rows, tokenizer, max_prompt_length=5, max_completion_length=5)
    assert [tokenizer.decode(ids) for ids in example.completion_ids] == ["a<eos>", "bc<eos>", "d<eos>"]
    assert (example.prompt_ids, example.ranking) == (ids(tokenizer, "p"), [2, 0, 1])


def test_a_ranked_conversation_goes_through_the_chat_template():
    tokenizer = byte_bpe(chat_template=CHAT_TEMPLATE)
    other = [{"role": "assistant", "content": "five"}]
    rows = Dataset.from_dict({"prompt": [ASK], "completions": [[ANSWER, other]], "ranking": [[1, 0]]})
    (example,) = ranking_examples(rows, tokenizer, max_prompt_length=99, max_completion_length=99)
    assert example.completion_ids == [ids(tokenizer, "four hours<eos>"), ids(tokenizer, "five<eos>")]


def test_rankings_that_a_cut_makes_equal_are_dropped_and_counted():
    rows = Dataset.from_dict(
        {"prompt": ["p", "q"], "completions": [["a", "xyz1", "xyz2"], ["a", "b", "c"]], "ranking": [[0, 1, 2]] * 2}
    )
    examples = ranking_examples(rows, byte_bpe(), max_prompt_length=5, max_completion_length=3)
    assert (len(examples), examples.rows, examples.report.dropped_rankings) == (1, [1], 1)
    assert "1 rankings dropped" in str(examples.report) and examples.report.cut_completions == 2
    with pytest.raises(WorkbenchError, match=r"All rankings .* raise max_completion_length"):
        ranking_examples(rows.select([0]), byte_bpe(), max_prompt_length=5, max_completion_length=3)


def steps(*texts, labels=None):
    return Dataset.from_dict({"prompt": ["p"], "completions": [list(texts)], "labels": [labels or [True] * len(texts)]})


def test_steps_joined_are_the_completion_that_a_policy_would_have_written():
    tokenizer = byte_bpe()
    texts = ["how long is a day?", "\nAnswer: twenty", " four hours."]
    rows = steps(*texts, labels=[True, False, True])
    (example,) = stepwise_examples(rows, tokenizer, max_prompt_length=9, max_completion_length=99)
    assert list(chain(*example.step_ids)) == ids(tokenizer, "".join(texts) + "<eos>")
    assert [tokenizer.decode(step) for step in example.step_ids] == [*texts[:2], texts[2] + "<eos>"]
    assert example.labels == [True, False, True]


def test_a_token_that_reaches_into_the_next_step_belongs_to_it():
    tokenizer = byte_bpe()
    (token,) = ids(tokenizer, " four")
    (example,) = stepwise_examples(steps("so fo", "ur"), tokenizer, max_prompt_length=9, max_completion_length=99)
    assert example.step_ids == [ids(tokenizer, "so"), [token, tokenizer.eos_token_id]]
    with pytest.raises(WorkbenchError, match=r"Row 0: step 0 .* no token that ends in it"):
        stepwise_examples(steps(" fo", "ur"), tokenizer, max_prompt_length=9, max_completion_length=99)


def test_steps_that_do_not_fit_whole_are_dropped_with_their_labels_and_counted():
    tokenizer = byte_bpe()
    rows = steps("abc", "def", "ghi", labels=[True, True, False])
    found = {}
    for length in (10, 9, 8, 3):
        (example,) = examples = stepwise_examples(rows, tokenizer, max_prompt_length=9, max_completion_length=length)
        found[length] = ([tokenizer.decode(step) for step in example.step_ids], examples.report.dropped_steps)
        assert len(example.labels) == len(example.step_ids)
    assert found == {
        10: (["abc", "def", "ghi<eos>"], 0),
        9: (["abc", "def", "ghi"], 0),
        8: (["abc", "def"], 1),
        3: (["abc"], 2),
    }
    with pytest.raises(WorkbenchError, match="All first steps are longer than 2 tokens"):
        stepwise_examples(rows, tokenizer, max_prompt_length=9, max_completion_length=2)
