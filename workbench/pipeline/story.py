"""What the stages of one pipeline came to, in five sentences made of their key numbers, and the words these use."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

# Filled in with the key numbers of the notebooks' stages; a clause whose numbers were not measured is left out.
SENTENCES = (
    "a model of {pretrain[parameters]:,} weights reads text until it loses {pretrain[held-out loss]:.2f} nats per "
    "token of other text; its answers earn {pretrain[gold at T = 1]:.2f} of gold reward; "
    "after demonstrations they earn {sft[gold at T = 1]:.2f} of gold",
    "two labelers agree on {preferences[labeler agreement]:.0%} of pairs of answers; "
    "what they choose is better by gold in {preferences[agreement with gold]:.0%} of pairs; "
    "the reward model orders {reward_model[accuracy vs labels]:.0%} of held-out pairs as labelers do; "
    "it orders {reward_model[accuracy vs gold]:.0%} as gold does",
    "{policy_gradient[algorithm]} with a price of {policy_gradient[kl_coef]:g} per nat of KL moves "
    "{policy_gradient[kl at T = 1]:.1f} nats, to a score of {policy_gradient[proxy at T = 1]:.2f} by the reward model; "
    "its gold is {policy_gradient[gold at T = 1]:.2f}, a change of {policy_gradient[gold gain at T = 1]:+.2f}",
    "without a price {free[algorithm]} moves {free[kl at T = 1]:.1f} nats, to a score of {free[proxy at T = 1]:.2f} by "
    "the reward model; its gold is {free[gold at T = 1]:.2f}, a change of {free[gold gain at T = 1]:+.2f}",
    "with no training, the best of {best_of_n[n at the peak]} answers by the reward model have "
    "{best_of_n[gold at its peak]:.2f} of gold; "
    "{direct_alignment[method]}, trained on comparisons alone, moves {direct_alignment[kl at T = 1]:.1f} nats; "
    "its gold is {direct_alignment[gold at T = 1]:.2f}",
)
GLOSSARY = {
    "gold": "the true reward, which nobody has outside a toy world: measured here, never trained on",
    "reward model": "fitted to comparisons; its score, the proxy, stands in for gold while a policy is trained",
    "demonstrations": "answers that were written for prompts, imitated in supervised fine-tuning (SFT)",
    "labelers": "those, people or simulated, who say which of two answers is better",
    "nat": "unit of loss and KL: one nat more of loss, and a text is e times less likely",
    "KL": "how far a policy has moved from the one it started from, in nats per answer",
    "price": "what a nat of KL costs in reward during training (kl_coef)",
    "PPO": "trains a policy on the reward model's scores of its own answers, in small steps",
    "DPO": "trains a policy on comparisons directly, without a reward model",
    "the best of": "draw so many answers to each prompt, and keep the one that the reward model likes most",
}


def story(stages: Iterable[tuple[str, Mapping[str, object]]]) -> list[str]:
    """Sentences of stages, each (name of the notebook, key numbers); only of notebooks run once, 06 once free of KL."""
    found = defaultdict(list)
    for notebook, numbers in stages:
        free = notebook == "06_policy_gradient" and numbers.get("kl_coef") == 0
        found["free" if free else notebook[3:]].append(numbers)
    facts = {name: runs[0] for name, runs in found.items() if len(runs) == 1}
    told = ["; ".join(filter(None, (_filled(each, facts) for each in text.split("; ")))) for text in SENTENCES]
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in told if sentence]


def _filled(clause: str, facts: Mapping[str, Mapping[str, object]]) -> str:
    try:
        text = clause.format_map(facts)
    except (KeyError, TypeError, ValueError):  # not measured
        return ""
    text = re.sub(r"(?<![\w-])(a2c|[a-z]{1,3}po|rloo)\b", lambda name: name[0].upper(), text)
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def words_of(sentences: Iterable[str]) -> dict[str, str]:
    """The entries of the glossary that these sentences use."""
    text = " ".join(sentences)
    return {word: said for word, said in GLOSSARY.items() if re.search(rf"\b{word}", text, re.IGNORECASE)}
