"""A conversation has the same token ids wherever it is read, for every kind of tokenizer and template."""

import functools
import json

import pytest
import torch
from datasets import Dataset
from tiny_models import tiny_model
from tiny_tokenizers import TEMPLATES, TOKENIZERS
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import workbench.rewards
from workbench.chat_templates import end_ids
from workbench.datasets import load_dataset_rows
from workbench.examples import completion_examples, pair_examples, prompt_examples
from workbench.feedback.items import pair_items
from workbench.feedback.rankings import preference_rows
from workbench.models import frozen, load_policy, load_tokenizer
from workbench.records import Judgement
from workbench.rewards import LearnedReward
from workbench.sampling import completion_texts, sample

LIMITS = {"max_prompt_length": 400, "max_completion_length": 400}
ASK = [{"role": "user", "content": "Question: how long?"}]
TALK = [
    {"role": "system", "content": "answer briefly"},
    {"role": "user", "content": "how long is a day?"},
    {"role": "assistant", "content": "twenty four hours."},
    {"role": "user", "content": "and a night?"},
]
SAID = {"opened": "they sleep.\n</think>\n\ntwelve hours."}  # as a policy says it that was asked to think first


def loaded(folder, made):
    """The tokenizer and a policy as a notebook loads them."""
    made.save_pretrained(folder)
    tiny_model(vocab_size=len(made) + 3, context=512, layers=1).save_pretrained(folder)  # with rows to spare
    tokenizer, _ = load_tokenizer(str(folder))
    return tokenizer, frozen(load_policy(str(folder), tokenizer))


@functools.cache
def model_of(size, auto):
    return frozen(tiny_model(vocab_size=size, context=512, layers=1, auto=auto))


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
    monkeypatch.setattr(workbench.rewards, "raw_rewards", lambda model, batch: read.append(batch) or torch.zeros(1))
    LearnedReward(model, tokenizer, max_length=500)([prompt], [completion], finished=[True], **columns)
    prompt_mask = read[0].attention_mask[0, : read[0].prompt_length]
    return read[0].tokens[0, : read[0].prompt_length][prompt_mask].tolist(), read[0].completions[0].tolist()


def exported(folder, tokenizer, row, completion):
    """The ids that are trained on once an answer was preferred, written down and read again."""
    pool = [{**row, "completion": text, "finished": True} for text in (completion, completion + " or so")]
    items, _ = pair_items(pool)
    verdict = {"item_id": items[0]["item_id"], "labeler": "ana", "kind": "pair", "value": 0, "shown_order": [0, 1]}
    rows, _ = preference_rows(items, [Judgement(**verdict, elapsed_ms=0, note="", event_id="1")])
    (folder / "kept.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (pair,) = pair_examples(load_dataset_rows(str(folder / "kept.jsonl"), schema="preferences"), tokenizer, **LIMITS)
    return pair.prompt_ids, pair.chosen_ids


def template_ids(tokenizer, prompt, answer):
    """What the library makes of a conversation, up to the first end behind its prompt."""
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    ids = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], return_dict=False)
    stops = [place for place, token in enumerate(ids) if token in end_ids(tokenizer) and place >= len(start)]
    ids = ids[: stops[0] + 1] if stops else [*ids, tokenizer.eos_token_id]
    return start, ids


@pytest.mark.parametrize("prompt", [ASK, TALK], ids=["one turn", "system and turns"])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_training_scoring_sampling_and_exporting_read_the_same_ids(kind, template, prompt, tmp_path, monkeypatch):
    tokenizer = TOKENIZERS[kind](chat_template=TEMPLATES[template])
    answer = SAID.get(template, "twelve hours.")
    row = {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]}
    (trained,) = completion_examples(Dataset.from_list([row]), tokenizer, **LIMITS)
    (asked,) = prompt_examples(Dataset.from_list([row]), tokenizer, max_prompt_length=400)
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
    start, whole = template_ids(tokenizer, prompt, answer)
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
    rows = Dataset.from_list([{"prompt": prompt, "completion": completion}])
    (example,) = completion_examples(rows, tokenizer, **LIMITS)
    end, start, whole = (
        tokenizer.eos_token_id,
        *(tokenizer(text)["input_ids"] for text in (prompt, prompt + completion)),
    )
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
