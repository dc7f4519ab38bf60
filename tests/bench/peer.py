"""The peer's side of one case, in the peer's own environment, at its fastest settings: one RESULT line."""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).parent))
import cases
import torch
import transformers
import trl
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    TrainerCallback,
)


class Clock(TrainerCallback):
    """CPU and wall time at the beginning and after every step, and what was logged."""

    def __init__(self, device: str):
        self.device = device
        self.times, self.logs = [], []

    def on_train_begin(self, *arguments, **named):
        self.times.append(cases.now(self.device))

    def on_step_end(self, *arguments, **named):
        self.times.append(cases.now(self.device))

    def on_log(self, args, state, control, logs=None, **named):
        self.logs.append(dict(logs or {}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.device == "cpu":
        cases.keep_memory()
    transformers.logging.set_verbosity_error()
    case = cases.fitted(cases.CASES[given.case], cases.MODELS[given.model].width, given.device)
    folder = cases.build(given.model, given.folder)
    for command in cases.commands():
        side = Peer(case, folder, given.device, Path(command["dump"]) if "dump" in command else None)
        with contextlib.redirect_stdout(io.StringIO()):
            found = side.generate() if case.method == "generate" else side.train()
        cases.report(side=f"trl {trl.__version__}", transformers=transformers.__version__, **found)


class Peer:
    """A case on the peer's trainers."""

    def __init__(self, case: cases.Case, folder: Path, device: str, dump: Path | None):
        self.case, self.folder, self.device, self.dump = case, folder, device, dump
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
        self.vocabulary = len(self.tokenizer)
        self.clock, self.sampled = Clock(device), []

    def model(self, part: str = "policy"):
        """One of the models of the folder; bf16 on a GPU."""
        auto = AutoModelForCausalLM if part == "policy" else AutoModelForSequenceClassification
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        return auto.from_pretrained(self.folder / part, dtype=dtype)

    def settings(self) -> dict:
        """Trainer arguments: no checkpointing of activations, no evaluation, no tracker, fused AdamW."""
        case = self.case
        sequential = self.dump is not None
        return {
            "output_dir": tempfile.mkdtemp(),
            "per_device_train_batch_size": case.batch_size,
            "gradient_accumulation_steps": 1,
            "learning_rate": case.learning_rate,
            "lr_scheduler_type": "constant",
            "adam_beta2": 0.95,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "optim": "adamw_torch_fused",
            "use_cpu": self.device == "cpu",
            "bf16": False,  # the weights themselves are bf16 on a GPU
            "gradient_checkpointing": False,
            "report_to": "none",
            "logging_steps": 1 if sequential else 1000,
            "save_strategy": "no",
            "eval_strategy": "no",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "seed": 0,
        }

    def train(self) -> dict:
        """Train for the case's steps; CPU seconds of each step and what was logged."""
        trainer = getattr(self, self.case.method)()
        trainer.train()
        if self.dump is not None:
            self.dump.write_text(json.dumps({"sampled": self.sampled, "logs": self.clock.logs}))
        return cases.measured(self.clock.times, self.device)

    def sft(self):
        case, count = self.case, self.case.batch_size * self.case.steps
        rows = {
            "prompt": [cases.text(ids) + " " for ids in cases.prompts(case, self.vocabulary, count)],
            "completion": [cases.text(ids) for ids in cases.completions(case, self.vocabulary, count, seed=1)],
        }
        order = "sequential" if self.dump else "group_by_length" if case.variable else "random"
        config = trl.SFTConfig(
            **self.settings(),
            max_steps=case.steps,
            max_length=case.prompt_length + case.completion_length,
            train_sampling_strategy=order,
        )
        return trl.SFTTrainer(self.model(), config, train_dataset=Dataset.from_dict(rows), **self.parts())

    def pairs(self) -> Dataset:
        """Comparisons as text; the peer appends EOS."""
        case, count = self.case, self.case.batch_size * self.case.steps
        sides = {name: cases.completions(case, self.vocabulary, count, seed=seed) for name, seed in SIDES.items()}
        prompts = [cases.text(ids) + " " for ids in cases.prompts(case, self.vocabulary, count)]
        return Dataset.from_dict(
            {"prompt": prompts} | {name: list(map(cases.text, ids)) for name, ids in sides.items()}
        )

    def dpo(self):
        case = self.case
        config = trl.DPOConfig(
            **self.settings(),
            max_steps=case.steps,
            beta=case.beta,
            max_length=case.prompt_length + case.completion_length,
            train_sampling_strategy="sequential" if self.dump else "random",
        )
        reference = self.model()
        return trl.DPOTrainer(self.model(), reference, config, train_dataset=self.pairs(), **self.parts())

    def reward_model(self):
        case = self.case
        config = trl.RewardConfig(
            **self.settings(),
            max_steps=case.steps,
            max_length=case.prompt_length + case.completion_length,
            train_sampling_strategy="sequential" if self.dump else "random",
        )
        return trl.RewardTrainer(self.model("reward"), config, train_dataset=self.pairs(), **self.parts())

    def grpo(self):
        return self.group_trainer(trl.GRPOTrainer, trl.GRPOConfig, loss_type="grpo")

    def rloo(self):
        return self.group_trainer(trl.RLOOTrainer, trl.RLOOConfig)

    def group_trainer(self, trainer, config, **named):
        case = self.case

        def reward(completion_ids, **columns):
            self.sampled.append([[int(token) for token in ids] for ids in completion_ids])
            return [cases.score([token for token in ids if token >= cases.ENDING]) for ids in completion_ids]

        config = config(
            **self.settings(),
            max_steps=case.steps,
            num_generations=case.group,
            max_completion_length=case.completion_length,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            beta=case.beta,
            log_completions=False,
            shuffle_dataset=False,
            **named,
        )
        count = case.batch_size // case.group * case.steps
        prompts = [cases.text(ids) for ids in cases.prompts(case, self.vocabulary, count)]
        rows = Dataset.from_dict({"prompt": prompts})
        return trainer(self.model(), reward, config, train_dataset=rows, **self.parts())

    def ppo(self):
        from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

        case = self.case
        batch_generation = ppo_trainer.batch_generation

        def remembering(*arguments, **named):
            found = batch_generation(*arguments, **named)
            self.sampled.append(found[0].tolist())
            return found

        ppo_trainer.batch_generation = remembering
        settings = {key: value for key, value in self.settings().items() if key != "max_grad_norm"}
        config = PPOConfig(
            **settings,
            adam_epsilon=1e-5,
            total_episodes=case.batch_size * case.steps,
            num_ppo_epochs=case.passes,
            num_mini_batches=1,
            response_length=case.completion_length,
            local_rollout_forward_batch_size=case.batch_size,
            num_sample_generations=0,
            temperature=1.0,
            kl_coef=case.beta,
            vf_coef=1.0,
            cliprange=0.2,
            cliprange_value=0.2,
            gamma=1.0,
            lam=0.95,
            missing_eos_penalty=None,
            stop_token="eos",  # else it goes on after the end
        )
        rows = Dataset.from_dict({"input_ids": cases.prompts(case, self.vocabulary, case.batch_size * case.steps)})
        models = (self.model(), self.model(), self.model("reward"))
        trainer = PPOTrainer(
            config,
            self.tokenizer,
            *models,
            train_dataset=rows,
            value_model=self.model("value"),
            eval_dataset=rows.select(range(case.batch_size)),
            callbacks=[self.clock],
        )
        if self.dump:  # it has no setting for the order of its prompts
            loader = DataLoader(rows, case.batch_size, collate_fn=trainer.data_collator)
            trainer.dataloader = trainer.accelerator.prepare(loader)
        return trainer

    def parts(self) -> dict:
        return {"processing_class": self.tokenizer, "callbacks": [self.clock]}

    def generate(self) -> dict:
        """`model.generate` on the same prompts, with endings."""
        case, model = self.case, self.model().to(self.device).eval()
        settings = GenerationConfig(
            max_new_tokens=case.completion_length,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            pad_token_id=cases.PAD,
            eos_token_id=list(range(1, cases.ENDING)),
        )
        rows = cases.prompts(case, self.vocabulary, case.batch_size * case.steps)
        torch.manual_seed(0)
        times, tokens = [cases.now(self.device)], 0
        for step in range(case.steps):
            batch = torch.tensor(rows[step * case.batch_size : (step + 1) * case.batch_size], device=self.device)
            with torch.inference_mode():
                out = model.generate(
                    batch,
                    attention_mask=torch.ones_like(batch),
                    generation_config=settings,
                    return_dict_in_generate=True,
                    output_logits=True,  # the log-probabilities of what was sampled are part of the job
                )
                logits = torch.stack(out.logits, 1).float()
                chosen = out.sequences[:, batch.shape[1] :]
                (logits.gather(-1, chosen[..., None])[..., 0] - logits.logsumexp(-1)).sum()
            tokens += int((chosen != cases.PAD).sum())
            times.append(cases.now(self.device))
        return cases.measured(times, self.device) | {"tokens": tokens}


SIDES = {"chosen": 1, "rejected": 2}  # with the seeds of their completions


if __name__ == "__main__":
    main()
