"""A conversation has the same token ids wherever it is read, for every kind of tokenizer and template."""

import functools
import json
import re

import pytest
import torch
from datasets import Dataset
from standard_rows import load_dataset_rows
from tiny_models import tiny_model, word_tokenizer
from tiny_tokenizers import ASKED, EACH, END, TEMPLATES, TOKENIZERS, byte_bpe, sentencepiece
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import workbench.models.rewards
from workbench import WorkbenchError
from workbench.feedback.kinds import training_rows
from workbench.feedback.queues import pair_items
from workbench.models import build_policy, frozen, load_critic, load_policy, load_reward_model, load_tokenizer
from workbench.models.chat_templates import end_ids
from workbench.models.examples import completion_examples, pair_examples, prompt_examples, text_documents
from workbench.models.rewards import EnsembleReward, LearnedReward, rewards_named
from workbench.models.sampling import completion_texts, eos_token_ids, sample
from workbench.models.scoring import completion_logprobs
from workbench.models.tokens import add_control_tokens, collate, encode_texts
from workbench.records import Judgement
from workbench.trainers.reward_model import RewardModelConfig, RewardModelTrainer

LIMITS = {"max_prompt_length": 400, "max_completion_length": 400}
ASK = [{"role": "user", "content": "Question: how long?"}]
TALK = [
    {"role": "system", "content": "answer briefly"},
    {"role": "user", "content": "how long is a day?"},
    {"role": "assistant", "content": "twenty four hours."},
    {"role": "user", "content": "and a night?"},
]
SAID = {"opened": "they sleep.\n</think>\n\ntwelve hours."}  # as a policy says it that was asked to think first


@functools.cache
def model_of(size, auto):
    return frozen(tiny_model(vocab_size=size, context=512, layers=1, auto=auto))


def examples_of(tokenizer, prompt, completion):
    """What a policy is asked with, and what it is trained on."""
    rows = Dataset.from_list([{"prompt": prompt, "completion": completion}])
    (asked,), (trained,) = (
        prompt_examples(rows, tokenizer, max_prompt_length=400),
        completion_examples(rows, tokenizer, **LIMITS),
    )
    return asked, trained


def sampled(tokenizer, prompt_ids, completion_ids):
    """What sampling makes of a policy that says one token after the other, and would go on."""
    wanted, said = [*completion_ids, 5, 5, 5], []
    policy = model_of(len(tokenizer), AutoModelForCausalLM)
    policy.generation_config.eos_token_id = end_ids(tokenizer)
    sample(policy, [prompt_ids], max_completion_length=1, temperature=0.0)  # what tries the model comes first

    def insist(module, inputs, logits):
        said.append(wanted[len(said)])
        logits = torch.zeros_like(logits)
        logits[..., said[-1]] = 100
        return logits

    with policy.lm_head.register_forward_hook(insist):
        return sample(policy, [prompt_ids], max_completion_length=len(wanted), temperature=0.0)


def scored(monkeypatch, tokenizer, prompt, completion, **columns):
    """The ids that a reward model with this tokenizer reads."""
    read = []
    model = model_of(len(tokenizer), AutoModelForSequenceClassification)
    remembered = "workbench.models.rewards.raw_rewards"
    monkeypatch.setattr(remembered, lambda model, batch: read.append(batch) or torch.zeros(1))
    LearnedReward(model, tokenizer, max_length=500)([prompt], [completion], finished=[True], **columns)
    prompt_mask = read[0].attention_mask[0, : read[0].prompt_length]
    return read[0].tokens[0, : read[0].prompt_length][prompt_mask].tolist(), read[0].completions[0].tolist()


def exported(folder, tokenizer, row, completion):
    """The ids that are trained on once an answer was preferred, written down and read again."""
    pool = [{**row, "completion": text, "finished": True} for text in (completion, completion + " or so")]
    items, _ = pair_items(pool)
    verdict = {"item_id": items[0]["item_id"], "labeler": "ana", "kind": "pair", "value": 0, "shown_order": [0, 1]}
    rows, _ = training_rows("pair", items, [Judgement(**verdict, elapsed_ms=0, note="", event_id="1")])
    (folder / "kept.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (pair,) = pair_examples(load_dataset_rows(str(folder / "kept.jsonl"), schema="preferences"), tokenizer, **LIMITS)
    return pair.prompt_ids, pair.chosen_ids


def template_ids(tokenizer, prompt, answer):
    """What the library makes of a conversation, up to the first end behind its prompt."""
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    ids = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], return_dict=False)
    ends = end_ids(tokenizer)
    stops = [place for place, token in enumerate(ids) if token in ends and place >= len(start)]
    ids = ids[: stops[0] + 1] if stops else [*ids, tokenizer.eos_token_id]
    return start, ids


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_training_scoring_sampling_and_exporting_read_the_same_ids(kind, template, tmp_path, monkeypatch):
    tokenizer = TOKENIZERS[kind](chat_template=TEMPLATES[template])
    answer = SAID.get(template, "twelve hours.")
    asked, trained = examples_of(tokenizer, TALK, [{"role": "assistant", "content": answer}])
    assert asked.prompt_ids == trained.prompt_ids
    rollout = sampled(tokenizer, asked.prompt_ids, trained.completion_ids)
    (text,) = completion_texts(tokenizer, rollout)
    columns = {"prompt_messages": [asked.row["prompt_messages"]]}
    ids = (trained.prompt_ids, trained.completion_ids)
    cells = {
        "sample": (asked.prompt_ids, rollout.completions[0].tolist()),
        "score": scored(monkeypatch, tokenizer, asked.row["prompt"], text, **columns),
        "score, of the text alone": scored(monkeypatch, tokenizer, asked.row["prompt"], text),
        "export": exported(tmp_path, tokenizer, asked.row, text),
    }
    print(f"{kind:30} {template:10} " + ", ".join(f"{cell} {found == ids}" for cell, found in cells.items()))
    assert rollout.finished.all()
    assert {cell: found for cell, found in cells.items() if found != ids} == {}
    start, whole = template_ids(tokenizer, TALK, answer)
    assert trained.prompt_ids == start
    if whole[: len(start)] == start:
        assert trained.prompt_ids + trained.completion_ids == whole
    else:  # the request for an answer is not all of a turn, or one token would reach across
        assert template == "opened" or kind not in ("byte-level", "byte-level, adds BOS")
        assert tokenizer.decode(trained.completion_ids, skip_special_tokens=True).strip() == answer


@pytest.mark.parametrize("completion", [" twelve hours.", "twelve hours.", "\n\nhello", " héllo 😀"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_plain_text_is_read_as_prompt_and_completion_in_one(kind, completion, monkeypatch):
    tokenizer, prompt = TOKENIZERS[kind](), "Question: how long is a day?\nAnswer:"
    _, example = examples_of(tokenizer, prompt, completion)
    start, whole = (tokenizer(text)["input_ids"] for text in (prompt, prompt + completion))
    end = tokenizer.eos_token_id
    start = start[:-1] if start[-1] == end else start
    whole = whole if whole[-1] == end else [*whole, end]
    assert example.prompt_ids == start
    assert scored(monkeypatch, tokenizer, prompt, completion) == (example.prompt_ids, example.completion_ids)
    if whole[: len(start)] == start:
        assert example.prompt_ids + example.completion_ids == whole
    else:
        assert kind not in ("byte-level", "byte-level, adds BOS", "byte-level, adds a blank")
    read = tokenizer.decode(example.prompt_ids + example.completion_ids, skip_special_tokens=True)
    assert read.strip() == prompt + completion


SURROUNDED = {  # by a blank before and behind, by a mark that no decoder shows, by the mark that asks
    "blanks": EACH
    + "{{ 'USER: ' + m.content if m.role == 'user' else ' ASSISTANT: ' + m.content + ' <eos>' }}{% endfor %}"
    + ASKED
    + " ASSISTANT:"
    + END,
    "mark": EACH
    + "<turn>{{ m.role }}{{ 'said<end>' if m.role == 'assistant' }}{{ m.content }}<eos>{% endfor %}"
    + ASKED
    + "<turn>assistant"
    + END,
    "asked": EACH + "<turn>{{ m.role }}<end>{{ m.content }}<eos>{% endfor %}" + ASKED + "<turn>assistant<end>" + END,
}


@pytest.mark.parametrize("answer", ["twelve hours.", " twelve", "twelve ", "  twelve\n "])
@pytest.mark.parametrize("template", SURROUNDED)
@pytest.mark.parametrize("kind", ["byte-level", "dummy prefix, adds BOS", "blank before the first"])
def test_an_answer_between_blanks_and_marks_is_scored_as_it_was_said(kind, template, answer, monkeypatch):
    tokenizer = TOKENIZERS[kind](chat_template=SURROUNDED[template])
    asked, trained = examples_of(tokenizer, ASK, [{"role": "assistant", "content": answer}])
    ids = (trained.prompt_ids, trained.completion_ids)
    (text,) = completion_texts(tokenizer, collate(*([each] for each in ids), pad_id=tokenizer.pad_token_id))
    assert text == answer
    for columns in ({}, {"prompt_messages": [ASK]}):
        assert scored(monkeypatch, tokenizer, asked.row["prompt"], text, **columns) == ids
    _, whole = template_ids(tokenizer, ASK, answer)
    assert ids[0] + ids[1] == whole or kind != "byte-level"


@pytest.mark.parametrize("kind", ["byte-level", "dummy prefix, adds BOS"])
def test_an_answer_that_was_cut_is_scored_as_far_as_it_was_said(kind):
    tokenizer = TOKENIZERS[kind](chat_template=SURROUNDED["blanks"])
    _, trained = examples_of(tokenizer, ASK, [{"role": "assistant", "content": "twelve hours and more"}])
    prompt = tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    for length in range(2, len(trained.completion_ids)):
        said = trained.completion_ids[:length]
        texts = completion_texts(tokenizer, collate([trained.prompt_ids], [said], pad_id=tokenizer.pad_token_id))
        assert encode_texts(tokenizer, [prompt], texts, [False]) == ([trained.prompt_ids], [said])


# What ends an answer


def saved(folder, tokenizer, *, auto=AutoModelForCausalLM, spare=0):
    tokenizer.save_pretrained(folder)
    tiny_model(vocab_size=len(tokenizer) + spare, context=512, layers=1, auto=auto).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("template", ["gemma", "phi"])
def test_a_policy_stops_at_the_templates_end_of_turn_also_once_it_is_saved(template, tmp_path):
    tokenizer, _ = load_tokenizer(saved(tmp_path, byte_bpe(chat_template=TEMPLATES[template])))
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end>")}
    policy = load_policy(str(tmp_path), tokenizer)
    policy.save_pretrained(tmp_path / "again")
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    for found in (policy, kept, build_policy("llama-64x2", tokenizer)):
        assert set(eos_token_ids(found).tolist()) == ends and found.config.eos_token_id != tokenizer.eos_token_id
    assert ends < {index for ids in [kept.generation_config.eos_token_id] for index in [*ids, tokenizer.pad_token_id]}


def test_a_mark_that_the_tokenizer_does_not_call_special_ends_an_answer_and_is_no_part_of_its_text():
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<end>"])
    tokenizer.chat_template = EACH + "{{ m.role }} : {{ m.content }} <end> {% endfor %}" + ASKED + "assistant : " + END
    said = [{"role": "assistant", "content": "the sky"}]
    _, example = examples_of(tokenizer, [{"role": "user", "content": "what"}], said)
    assert tokenizer.convert_ids_to_tokens(example.completion_ids) == ["the", "sky", "<end>"]
    rollout = sampled(tokenizer, example.prompt_ids, example.completion_ids)
    assert rollout.finished.all() and completion_texts(tokenizer, rollout) == [" the sky"]


def test_rows_of_an_embedding_without_a_word_are_never_said_nor_likely(tmp_path):
    tokenizer, _ = load_tokenizer(saved(tmp_path, byte_bpe(), spare=40))
    policy = frozen(load_policy(str(tmp_path), tokenizer))
    policy.lm_head.weight[-20:] *= 9
    rollout = sample(policy, [[5, 6, 7]] * 50, max_completion_length=20, generator=torch.Generator().manual_seed(0))
    assert rollout.completions.max() < len(tokenizer)
    torch.testing.assert_close(completion_logprobs(policy, rollout), rollout.logprobs, rtol=1e-4, atol=1e-4)


# What nobody may write


@pytest.mark.parametrize("token", ["<pad>", "<eos>", "<bos>", "<end>", "<turn>", "<|good|>"])
@pytest.mark.parametrize("form", ["completion", "answer", "question"])
def test_a_token_that_is_no_word_is_refused_inside_what_somebody_wrote(form, token):
    tokenizer = byte_bpe(before="<bos>", chat_template=TEMPLATES["gemma"])
    add_control_tokens(tokenizer, ["<|good|>"])
    written = f"four {token} hours"
    row = {"prompt": "how?", "completion": written}
    if form != "completion":
        texts = (written, "x") if form == "question" else ("x", written)
        roles = zip(("user", "assistant"), texts, strict=True)
        row = dict(zip(row, ([{"role": role, "content": text}] for role, text in roles), strict=True))
    with pytest.raises(WorkbenchError, match=rf"Row 1 has '{re.escape(token)}' inside .*remove it there"):
        good = {name: "x" if form == "completion" else [{**value[0], "content": "x"}] for name, value in row.items()}
        completion_examples(Dataset.from_list([good, row]), tokenizer, **LIMITS)


@pytest.mark.parametrize("token", ["<pad>", "<|bad|>"])
def test_padding_and_control_are_refused_in_prompts_and_documents(token):
    tokenizer = byte_bpe(before="<bos>")
    add_control_tokens(tokenizer, ["<|bad|>"])
    with pytest.raises(WorkbenchError, match=rf"Row 0 has '{re.escape(token)}' inside its prompt"):
        prompt_examples(Dataset.from_dict({"prompt": [f"how {token}?"]}), tokenizer, max_prompt_length=9)
    with pytest.raises(WorkbenchError, match=rf"Row 1 has '{re.escape(token)}' inside its text"):
        text_documents(Dataset.from_dict({"text": [" ", f"how {token} long"]}), tokenizer)


def test_eos_inside_a_document_is_refused_unless_it_ends_the_turns_of_a_chat():
    rows = Dataset.from_dict({"text": ["one<eos>two<eos>"]})
    with pytest.raises(WorkbenchError, match="Row 0 has '<eos>' inside its text"):
        text_documents(rows, byte_bpe())
    (document,) = text_documents(rows, byte_bpe(chat_template=TEMPLATES["chatml"]))
    assert document.count(byte_bpe().eos_token_id) == 2


def test_a_prompt_with_eos_inside_is_said():
    rows = Dataset.from_dict({"prompt": ["one<eos>two", "three"]})
    report = prompt_examples(rows, byte_bpe(before="<bos>"), max_prompt_length=30).report
    assert str(report) == "2 rows: 1 prompts with BOS or EOS inside their text."


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("said", [" four <eos> hours", " four<eos>", "<bos> four <pad>"])
def test_what_a_policy_only_spelt_is_text_to_a_reward(said, finished):
    tokenizer = byte_bpe(before="<bos>")
    _, (ids,) = encode_texts(tokenizer, ["how long?"], [said], [finished])
    spelt = said.removesuffix("<eos>") if finished else said
    assert tokenizer.decode(ids).removesuffix("<eos>" if finished else "") == spelt
    assert not {0, 1, 2} & set(ids[:-1]) and (ids[-1] == tokenizer.eos_token_id) == finished


# Cuts


def test_a_cut_prompt_keeps_its_bos_and_says_that_its_system_turn_is_lost():
    tokenizer = byte_bpe(before="<bos>", chat_template=TEMPLATES["gemma"])
    rows = Dataset.from_list([{"prompt": TALK}, {"prompt": ASK}])
    whole, short = prompt_examples(rows, tokenizer, max_prompt_length=400), len(TALK[-1]["content"])
    cut = prompt_examples(rows, tokenizer, max_prompt_length=short)
    for before, after in zip(whole, cut, strict=True):
        assert after.prompt_ids == [tokenizer.bos_token_id, *before.prompt_ids[1 - short :]]
    assert str(cut.report) == "2 rows: 2 prompts cut on the left, 1 system turns lost with that."
    text = Dataset.from_dict({"prompt": ["how long is a day?"]})
    (plain,) = prompt_examples(text, tokenizer, max_prompt_length=3)
    assert tokenizer.decode(plain.prompt_ids) == "<bos> day?"


@pytest.mark.parametrize(("longest", "says"), [(60, "context of 10.*lower max_prompt"), (1, "1 tokens: raise")])
def test_the_setting_that_left_no_room_is_the_one_that_is_named(longest, says):
    rows = Dataset.from_list([{"prompt": "abcdefgh", "chosen": "xy", "rejected": "xw"}])
    with pytest.raises(WorkbenchError, match=f"All pairs are equal in .*{says}"):
        pair_examples(rows, byte_bpe(before="<bos>"), max_prompt_length=60, max_completion_length=longest, context=10)


def test_a_reward_cuts_what_it_reads_as_its_training_did(monkeypatch):
    tokenizer, model = byte_bpe(before="<bos>"), tiny_model(vocab_size=300, auto=AutoModelForSequenceClassification)
    limits = {"max_prompt_length": 9, "max_completion_length": 4}
    texts = [("how long is a day?", "twenty four hours", "five"), ("a?", "b", "c")]
    rows = [dict(zip(("prompt", "chosen", "rejected"), each, strict=True)) for each in texts]
    pairs = pair_examples(Dataset.from_list(rows), tokenizer, **limits, context=12)
    RewardModelTrainer(model, pairs, pairs, RewardModelConfig(batch_size=1))
    model.config.max_position_embeddings = 12
    monkeypatch.setattr(workbench.models.rewards, "model_context", lambda model: 12)
    read = []
    monkeypatch.setattr(
        workbench.models.rewards, "collate", lambda *ids, pad_id: read.append(ids) or collate(*ids, pad_id=0)
    )
    LearnedReward(model, tokenizer, max_length=500)(["how long is a day?"], ["twenty four hours"], finished=[True])
    assert read == [([pairs[0].prompt_ids], [pairs[0].chosen_ids])]
    assert len(pairs[0].prompt_ids) == 9 and len(pairs[0].chosen_ids) == 3


# Two families of models


def test_a_reward_model_of_another_family_reads_its_own_tokens_and_template(tmp_path, capsys):
    own = TOKENIZERS["dummy prefix, adds BOS"](chat_template=TEMPLATES["zephyr"])
    folder = saved(tmp_path / "rm", own, auto=AutoModelForSequenceClassification)
    policys, reference = byte_bpe(chat_template=TEMPLATES["gemma"]), frozen(load_reward_model(folder, own))
    (asked,) = prompt_examples(Dataset.from_list([{"prompt": TALK}]), policys, max_prompt_length=400)
    (reward,) = rewards_named(folder, policys, max_length=500).values()
    columns = {"finished": [True], "prompt_messages": [asked.row["prompt_messages"]], "kind": ["any"]}
    (score,) = reward([asked.row["prompt"]], ["twelve hours."], **columns)
    _, whole = template_ids(own, TALK, "twelve hours.")
    assert score == pytest.approx(reference(input_ids=torch.tensor([whole])).logits.item(), abs=1e-5)
    assert reward.model.get_input_embeddings().num_embeddings == len(own)
    assert capsys.readouterr().out == ""
    reference.config.update({"max_prompt_length": 9, "max_completion_length": 5})
    reference.save_pretrained(folder)
    rewards_named(folder, policys, max_length=15)
    assert "rm reads 9 tokens of a prompt and 5 of a completion, as in its training." in capsys.readouterr().out
    ensemble = EnsembleReward([reward], how="mean", coef=0.0)
    assert ensemble([asked.row["prompt"]], ["twelve hours."], **columns) == pytest.approx([score])


@pytest.mark.parametrize("load", [load_critic, load_reward_model])
def test_a_trained_model_that_reads_other_tokens_is_refused(load, tmp_path):
    own, policys = sentencepiece(), byte_bpe()
    folder = saved(tmp_path, own, auto=AutoModelForSequenceClassification)
    with pytest.raises(WorkbenchError, match=r"another tokenizer .*is not the same token in both.*policy's family"):
        load(folder, policys)
    own.add_special_tokens({"additional_special_tokens": ["<|good|>"]})  # more of the same is no other tokenizer
    assert load(folder, own).get_input_embeddings().num_embeddings == len(own)
