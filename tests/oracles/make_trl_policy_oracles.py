"""Writes trl_policy.json into the folder it is given, or beside itself: what TRL's GRPO and RLOO trainers compute.

    make conformance    makes it again in an environment of its own and compares

The trainers' own methods are called on a tiny model: only what the policy samples and what it scores is fixed. After
the sampling the policy moves a little, so that the ratios are not 1.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset
from tiny_llama import waved, waved_llama, word_tokenizer

PEER = "trl==1.16.0"
HERE = Path(__file__).parent
GROUP_SIZE = 4
PROMPTS = ["a b c", "h", "b d f h b"]
COMPLETIONS = [  # four of each prompt; 1 is EOS, and those without it hit the length limit
    [[3, 4, 1], [5, 6, 7, 8, 9, 2], [1], [9, 9, 1]],
    [[2, 2, 2, 2, 2, 1], [7, 1], [3, 8, 4, 1], [6, 5, 4, 3, 2, 9]],
    [[4, 1], [4, 4, 1], [8, 3, 6, 1], [5, 1]],
]
SCORES = [[0.3, -1.2, 2.0, 0.7], [1.0, 1.0, -0.5, 0.1], [0.1, 0.1, 0.1, 0.1]]  # the last group is of equal scores
REFERENCE_PHASE, SAMPLING_PHASE, LEARNING_PHASE = 0.5, 0.0, 1.2
ARGUMENTS = {"temperature": 0.9, "epsilon": 0.1, "max_completion_length": 6}
METRICS = ("kl", "clip_ratio/low_mean", "clip_ratio/high_mean")
GRPO = {
    "grpo": {"loss_type": "grpo"},
    "grpo_with_kl": {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False},
    "grpo_with_weighted_kl": {"loss_type": "grpo", "beta": 0.3},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.15},
    "dapo_mini_batch": {"loss_type": "dapo", "epsilon_high": 0.15, "steps_per_generation": 3},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04},
}
RLOO = {"rloo": {"beta": 0.0}, "rloo_with_kl": {"beta": 0.3}}


class Recorder:
    """Stands in for a trainer's method that scores completions: the same results, kept with their gradients."""

    def __init__(self, trainer):
        self.compute, self.kept = trainer._get_per_token_logps_and_entropies, []
        trainer._get_per_token_logps_and_entropies = self

    def __call__(self, *positional, **named):
        results = self.compute(*positional, **named)
        if results[0].requires_grad:
            results[0].retain_grad()
        self.kept.append(results[0])
        return results


def completion_ids() -> list[list[int]]:
    """What the policy samples, prompt after prompt."""
    return [ids for group in COMPLETIONS for ids in group]


def scores(**_) -> list[float]:
    """What the completions score."""
    return [score for group in SCORES for score in group]


def trainer_of(kind, config, folder: Path, generated, settings: dict):
    """A trainer whose reference is the model in `folder`, with a policy of other weights and fixed samples."""
    waved_llama(REFERENCE_PHASE).save_pretrained(folder / "reference")
    word_tokenizer().save_pretrained(folder / "reference")
    steps = settings.get("steps_per_generation", 1)
    arguments = config(
        output_dir=str(folder),
        num_generations=GROUP_SIZE,
        per_device_train_batch_size=len(PROMPTS) * GROUP_SIZE // steps,
        num_iterations=2,
        model_init_kwargs={"dtype": "float32"},
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        **(ARGUMENTS | settings),
    )
    rows = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
    trainer = kind(model=str(folder / "reference"), reward_funcs=scores, args=arguments, train_dataset=rows)
    trainer._generate_single_turn = lambda *_: generated
    trainer.current_gradient_accumulation_steps = 1
    waved(trainer.model.train(), SAMPLING_PHASE)
    return trainer


def part(inputs: dict, rows: int) -> dict:
    """The first rows of what belongs to completions; a count of the whole generation stays."""
    return {name: value[:rows] if value.dim() else value for name, value in inputs.items()}


def computed(trainer, *, rows: int) -> tuple[dict, dict]:
    """The samples as tensors, and what the trainer makes of them: advantages, and the loss of the first `rows` rows."""
    recorder = Recorder(trainer)
    prompts = [{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP_SIZE)]
    inputs = trainer._generate_and_score_completions(prompts)
    samples = {"mask": inputs["completion_mask"].bool(), "old_logprobs": recorder.kept[0]}
    if len(recorder.kept) > 1:
        samples["reference_logprobs"] = recorder.kept[1]
    waved(trainer.model, LEARNING_PHASE)
    loss = trainer._compute_loss(trainer.model, part(inputs, rows))
    loss.backward()
    logprobs = samples["logprobs"] = recorder.kept[-1]
    norm = torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()]).norm()
    results = {"advantages": inputs["advantages"].tolist(), "loss": loss.item(), "gradient": logprobs.grad.tolist()}
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if name in METRICS}
    return samples, results | {"gradient_norm": norm.item()} | metrics


def oracles() -> dict:
    """The samples, which are the same for every row of the tables above, and each row's numbers."""
    samples, made = {}, {}
    for table, kind, config, generated in (
        (GRPO, trl.GRPOTrainer, trl.GRPOConfig, (completion_ids(), None)),
        (RLOO, trl.RLOOTrainer, trl.RLOOConfig, completion_ids()),
    ):
        for name, settings in table.items():
            with tempfile.TemporaryDirectory() as folder:
                trainer = trainer_of(kind, config, Path(folder), generated, settings)
                rows = trainer.args.per_device_train_batch_size
                seen, results = computed(trainer, rows=rows)
            for key, tensor in seen.items():
                torch.testing.assert_close(tensor, samples.setdefault(key, tensor)[: len(tensor)])
            made[name] = {"settings": ARGUMENTS | settings, **results}
    return {"samples": {key: tensor.tolist() for key, tensor in samples.items()}, **made}


def main(folder: Path):
    inputs = {"group_size": GROUP_SIZE, "scores": scores(), "completion_ids": completion_ids(), "phase": LEARNING_PHASE}
    inputs["prompt_ids"] = [word_tokenizer()(prompt)["input_ids"] for prompt in PROMPTS for _ in range(GROUP_SIZE)]
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    sections = {"made_with": versions, "inputs": inputs, **oracles()}
    lines = [f"{json.dumps(name)}: {json.dumps(section)}" for name, section in sections.items()]
    (folder / "trl_policy.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
