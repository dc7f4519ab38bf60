"""Writes trl_reward.json into the folder it is given, or beside itself: what TRL's RewardTrainer computes.

    make conformance    makes it again in an environment of its own and compares

The trainer's own `compute_loss` is called on a tiny classifier with pairs of different lengths.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset
from tiny_llama import waved, waved_llama
from tiny_llama import word_tokenizer as tokenizer
from transformers import LlamaForSequenceClassification

PEER = "trl==1.16.0"
HERE = Path(__file__).parent
PAIRS = [  # 1 is EOS
    {"prompt_ids": [2, 3, 4], "chosen_ids": [5, 6, 1], "rejected_ids": [7, 8, 9, 5, 1], "margin": 0.0},
    {"prompt_ids": [9], "chosen_ids": [8, 7, 6, 5, 4, 1], "rejected_ids": [2, 1], "margin": 0.75},
    {"prompt_ids": [3, 5, 7, 9, 3], "chosen_ids": [4, 1], "rejected_ids": [4, 4, 1], "margin": 2.0},
]
PHASE, HEAD = 0.3, 20.0
CASES = {
    "plain": {},
    "margin": {"margin": True},
    "centred": {"center_rewards_coefficient": 0.1},
    "margin_centred": {"margin": True, "center_rewards_coefficient": 0.1},
}
METRICS = ("accuracy", "margin", "mean_reward", "min_reward", "max_reward")


def classifier() -> LlamaForSequenceClassification:
    """The tiny model with one output, whose head is so strong that rewards differ."""
    config = waved_llama(PHASE).config
    config.num_labels = 1
    model = waved(LlamaForSequenceClassification(config), PHASE)
    model.score.weight.data *= HEAD
    return model


def rows(*, margin: bool) -> Dataset:
    """The pairs as the trainer has them once they are tokenised."""
    texts = [{side: pair["prompt_ids"] + pair[side] for side in ("chosen_ids", "rejected_ids")} for pair in PAIRS]
    return Dataset.from_list(
        [row | ({"margin": pair["margin"]} if margin else {}) for row, pair in zip(texts, PAIRS, strict=True)]
    )


def computed(*, margin: bool = False, center_rewards_coefficient: float | None = None) -> dict:
    """Loss, gradient norm and metrics of one batch."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.RewardConfig(
            output_dir=folder,
            center_rewards_coefficient=center_rewards_coefficient,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            disable_tqdm=True,
        )
        dataset = rows(margin=margin)
        trainer = trl.RewardTrainer(classifier(), arguments, train_dataset=dataset, processing_class=tokenizer())
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))
        loss.backward()
    gradients = [parameter.grad.flatten() for parameter in trainer.model.parameters() if parameter.grad is not None]
    metrics = {name: trainer._metrics["train"][name][-1] for name in METRICS}
    return {"loss": loss.item(), "gradient_norm": torch.cat(gradients).norm().item(), "metrics": metrics}


def main(folder: Path):
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    sections = {"made_with": versions, "inputs": {"pairs": PAIRS, "phase": PHASE, "head": HEAD}}
    sections |= {name: {"settings": settings, **computed(**settings)} for name, settings in CASES.items()}
    lines = [f"{json.dumps(name)}: {json.dumps(section)}" for name, section in sections.items()]
    (folder / "trl_reward.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
