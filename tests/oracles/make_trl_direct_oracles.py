"""Writes trl_direct.json into the folder it is given, or beside itself: what TRL's direct losses and trainers compute.

    make conformance    makes it again in an environment of its own and compares

Every number comes out of a method of a TRL trainer. For the single losses a model answers with fixed log-probabilities,
one item per call because the trainers return means; the whole trainers run a tiny Llama on texts.
"""

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
import trl
from datasets import Dataset
from tiny_llama import WORDS, waved_llama, word_tokenizer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

PEER = "trl==1.16.0"
HERE = Path(__file__).parent
PHASES = {"policy": 0.0, "reference": 0.5}
KTO_PHASES = {"policy": 0.5, "reference": 0.0}  # so that z0 is above 0
PAIRS = [
    {"prompt": "a b c", "chosen": " d e", "rejected": " f g h d"},
    {"prompt": "h", "chosen": " g f e d c", "rejected": " a"},
    {"prompt": "b d f h b", "chosen": " c", "rejected": " c c"},
]
LABELLED = [
    {"prompt": "a b c", "completion": " d e", "label": True},
    {"prompt": "h", "completion": " g f e d c", "label": False},
    {"prompt": "b d f h b", "completion": " c", "label": False},
    {"prompt": "e g", "completion": " a a h", "label": True},
]
LOGPROBS = {  # nats, sums over completions of these lengths
    "chosen_logprobs": [-4.0, -7.0, -31.5, -0.02, -12.0],
    "rejected_logprobs": [-9.0, -3.0, -30.25, -8.0, -12.0],
    "reference_chosen_logprobs": [-6.0, -5.0, -35.0, -2.5, -11.0],
    "reference_rejected_logprobs": [-8.0, -6.0, -24.0, -3.0, -14.5],
    "chosen_lengths": [3, 5, 17, 2, 9],
    "rejected_lengths": [4, 2, 21, 6, 9],
}
MISMATCHED = {
    "above": {"mismatched_logprobs": [-20.0, -31.0, -9.5], "reference_mismatched_logprobs": [-22.5, -30.0, -13.0]},
    "below": {"mismatched_logprobs": [-24.0, -31.0, -19.5], "reference_mismatched_logprobs": [-22.5, -30.0, -13.0]},
}
DPO_LOSSES = {  # name of our function: TRL's settings
    "dpo_loss": {"loss_type": "sigmoid", "beta": 0.3},
    # TRL's smoothed sigmoid is left in aot, which sorts a batch; a batch of one is sorted
    "conservative_dpo_loss": {"loss_type": "aot", "beta": 0.3, "label_smoothing": 0.2},
    "robust_dpo_loss": {"loss_type": "robust", "beta": 0.3, "label_smoothing": 0.2},
    "ipo_normalised_loss": {"loss_type": "ipo", "beta": 0.3},
    "hinge_loss": {"loss_type": "hinge", "beta": 0.3},
    "apo_zero_loss": {"loss_type": "apo_zero", "beta": 0.3},
    "apo_down_loss": {"loss_type": "apo_down", "beta": 0.3},
    "forward_kl_dpo_loss": {"loss_type": "sigmoid", "beta": 0.3, "f_divergence_type": "forward_kl"},
    "jensen_shannon_dpo_loss": {"loss_type": "sigmoid", "beta": 0.3, "f_divergence_type": "js_divergence"},
    "alpha_dpo_loss": {
        "loss_type": "sigmoid",
        "beta": 0.3,
        "f_divergence_type": "alpha_divergence",
        "f_alpha_divergence_coef": 0.4,
    },
}
CPO_LOSSES = {
    "cpo_loss": {"loss_type": "sigmoid", "beta": 0.3},
    "simpo_loss": {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "cpo_alpha": 0.0},
    "ipo_loss": {"loss_type": "ipo", "beta": 0.3},  # of sums: given log-ratios in place of log-probabilities
}
KTO = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.75}
ORPO = {"beta": 0.4}


def built(trainer_class, config_class, rows, *, phases: dict[str, float], **settings):
    """A trainer of TRL's on those rows, with models of those phases, all rows in a batch."""
    folder = tempfile.mkdtemp()
    quiet = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [], "disable_tqdm": True}
    arguments = config_class(output_dir=folder, per_device_train_batch_size=len(rows), **quiet, **settings)
    models = [waved_llama(phase) for phase in phases.values()]
    dataset = Dataset.from_list(rows)
    trainer = trainer_class(*models, args=arguments, train_dataset=dataset, processing_class=word_tokenizer())
    trainer.model.eval()
    return trainer


class FixedModel:
    """Answers with log-probabilities that were written down: the whole sum on the first completion token."""

    def __init__(self, answers: dict[int, torch.Tensor], training: bool = False):
        self.answers, self.training = answers, training  # by the number of rows asked for

    def __call__(self, *, input_ids, labels, **_):
        rows, width = labels.shape
        first = (labels[:, 1:] != -100).int().argmax(1)
        places = torch.arange(width - 1)[None] == first[:, None]
        log_probs = places * self.answers[rows][:, None]
        nothing = torch.zeros(rows, width - 1)
        return SimpleNamespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def item(index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One pair as TRL batches it: a chosen and a rejected row of the given lengths behind a prompt of one token."""
    lengths = torch.tensor([LOGPROBS["chosen_lengths"][index], LOGPROBS["rejected_lengths"][index]])
    places = torch.arange(int(lengths.max()) + 1)[None]
    mask = (places >= 1) & (places <= lengths[:, None])
    inputs = {
        "input_ids": torch.full(mask.shape, 2),
        "attention_mask": (mask | (places == 0)).long(),
        "completion_mask": mask.long(),
        "ref_chosen_logps": torch.tensor([LOGPROBS["reference_chosen_logprobs"][index]]),
        "ref_rejected_logps": torch.tensor([LOGPROBS["reference_rejected_logprobs"][index]]),
    }
    sums = [LOGPROBS["chosen_logprobs"][index], LOGPROBS["rejected_logprobs"][index]]
    return torch.tensor(sums, requires_grad=True), inputs


def dpo_losses() -> dict:
    """Loss and gradient of every pair by every loss of DPOTrainer that we have."""
    made = {}
    for name, settings in DPO_LOSSES.items():
        trainer = built(trl.DPOTrainer, trl.DPOConfig, PAIRS, phases=PHASES, **settings)
        trainer.precompute_ref_logps = True  # the reference's log-probabilities come with the inputs
        values, gradients = [], []
        for index in range(len(LOGPROBS["chosen_logprobs"])):
            sums, inputs = item(index)
            loss = trainer._compute_loss(FixedModel({2: sums}), inputs, return_outputs=False)
            loss.backward()
            values.append(loss.item())
            gradients.append(sums.grad.tolist())
        made[name] = {"settings": settings, "values": values, "gradients": gradients}
    return made


def cpo_losses() -> dict:
    """What CPOTrainer's and ORPOTrainer's methods make of sums, means per token and log-ratios."""
    tensors = {name: torch.tensor(values) for name, values in LOGPROBS.items()}
    sums = tensors["chosen_logprobs"], tensors["rejected_logprobs"]
    means = sums[0] / tensors["chosen_lengths"], sums[1] / tensors["rejected_lengths"]
    ratios = sums[0] - tensors["reference_chosen_logprobs"], sums[1] - tensors["reference_rejected_logprobs"]
    given = {"cpo_loss": sums, "simpo_loss": means, "ipo_loss": ratios}
    made = {}
    for name, settings in CPO_LOSSES.items():
        trainer = built(CPOTrainer, CPOConfig, PAIRS, phases={"policy": PHASES["policy"]}, **settings)
        made[name] = {"settings": settings, "values": trainer.cpo_loss(*given[name])[0].tolist()}
    trainer = built(ORPOTrainer, ORPOConfig, PAIRS, phases={"policy": PHASES["policy"]}, **ORPO)
    values = (-trainer.odds_ratio_loss(*means)[0]).tolist()  # TRL subtracts them
    return made | {"orpo_loss": {"settings": ORPO, "values": values}}


def kto_losses() -> dict:
    """KTOTrainer's loss of each chosen completion as desirable and each rejected as undesirable, and its z0."""
    trainer = built(trl.KTOTrainer, trl.KTOConfig, LABELLED, phases=KTO_PHASES, **KTO)
    trainer.precompute_ref_logps = True
    made = {"settings": KTO, "mismatched": MISMATCHED}
    for name, mismatched in MISMATCHED.items():
        values, gradients = [], []
        for side, label in (("chosen", True), ("rejected", False)):
            for index, logprob in enumerate(LOGPROBS[f"{side}_logprobs"]):
                reference = LOGPROBS[f"reference_{side}_logprobs"][index]
                inputs = kto_inputs(label, reference, mismatched["reference_mismatched_logprobs"])
                one = torch.tensor([logprob], requires_grad=True)
                model = FixedModel({1: one, 3: torch.tensor(mismatched["mismatched_logprobs"])})
                loss = trainer._compute_loss(model, inputs, return_outputs=False)
                loss.backward()
                values.append(loss.item())
                gradients.append(one.grad.item())
        reference_point = trainer._metrics["eval"]["kl"][-1]
        made[name] = {"values": values, "gradients": gradients, "reference_point": reference_point}
    return made


def kto_inputs(label: bool, reference: float, mismatched_references: list[float]) -> dict[str, torch.Tensor]:
    """A batch of one labelled completion and, for z0, of three mismatched ones."""
    inputs = {"label": torch.tensor([label]), "ref_logps": torch.tensor([reference])}
    inputs["ref_KL_logps"] = torch.tensor(mismatched_references)
    for prefix, rows in (("", 1), ("KL_", len(mismatched_references))):
        inputs[f"{prefix}input_ids"] = torch.full((rows, 3), 2)
        inputs[f"{prefix}attention_mask"] = torch.ones(rows, 3, dtype=torch.long)
        inputs[f"{prefix}completion_mask"] = torch.tensor([[0, 1, 1]] * rows)
    return inputs


def whole_trainers() -> dict:
    """Loss, gradient and rewards that trainers compute from texts with tiny models."""
    made = {}
    for name, settings in DPO_LOSSES.items():
        if settings["loss_type"] == "aot":  # sorts the batch
            continue
        made[name] = whole_step(built(trl.DPOTrainer, trl.DPOConfig, PAIRS, phases=PHASES, **settings))
    kto = built(trl.KTOTrainer, trl.KTOConfig, LABELLED, phases=KTO_PHASES, **KTO)
    made["kto_loss"] = whole_step(kto)
    one = PAIRS[:1]  # the likelihood is a mean over the tokens of a batch, ours over those of a completion: one is one
    for name in ("cpo_loss", "simpo_loss"):
        made[name] = whole_step(
            built(CPOTrainer, CPOConfig, one, phases={"policy": PHASES["policy"]}, **CPO_LOSSES[name])
        )
    made["orpo_loss"] = whole_step(built(ORPOTrainer, ORPOConfig, PAIRS, phases={"policy": PHASES["policy"]}, **ORPO))
    return made


def whole_step(trainer) -> dict:
    """One loss, its gradient's norm and the metrics of one batch that holds the whole dataset."""
    encoded = [trainer.train_dataset[index] for index in range(len(trainer.train_dataset))]
    inputs = trainer.data_collator(encoded)
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()]).norm()
    kept = trainer._metrics["eval"] if hasattr(trainer, "_metrics") else trainer._stored_metrics["train"]
    metrics = {name: float(values[-1]) for name, values in kept.items()}
    names = {"chosen_reward": "rewards/chosen", "rejected_reward": "rewards/rejected", "reference_point": "kl"}
    names["log_odds_ratio"] = "log_odds_ratio"  # ORPO adds a likelihood of prompt and completion, we of the completion
    found = {ours: metrics[theirs] for ours, theirs in names.items() if theirs in metrics}
    return {"loss": loss.item(), "gradient_norm": norm.item(), **found}


def encoded(rows: list[dict[str, str]]) -> list[dict]:
    """Rows as token ids, completions with EOS."""
    words = {word: index for index, word in enumerate(WORDS)}
    ids = [
        {name: [words[word] for word in text.split()] for name, text in row.items() if name != "label"} for row in rows
    ]
    ended = [{name: value if name == "prompt" else [*value, 1] for name, value in row.items()} for row in ids]
    return [
        row | ({"label": given["label"]} if "label" in given else {}) for row, given in zip(ended, rows, strict=True)
    ]


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    assert f"trl=={trl.__version__}" == PEER, f"this is trl {trl.__version__}, not {PEER}"
    made = {
        "made_with": {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "logprobs": LOGPROBS,
        "losses": dpo_losses() | cpo_losses(),
        "kto": kto_losses(),
        "pairs": encoded(PAIRS),
        "labelled": encoded(LABELLED),
        "phases": {"kto_loss": KTO_PHASES, "others": PHASES},
        "trainers": whole_trainers(),
    }
    (folder / "trl_direct.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
