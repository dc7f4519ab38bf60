"""Writes trl_ppo.json and trl_dpo.json beside itself: what TRL computes on small fixed inputs.

Made with trl 1.12.0 (the last with `trl.experimental.ppo`), torch 2.13.0 and transformers 5.23.0, in an environment of
its own:

    python -m venv trl-environment && trl-environment/bin/pip install torch==2.13.0 trl==1.12.0
    trl-environment/bin/python tests/oracles/make_trl_oracles.py

TRL's PPO has its reward placement, GAE and losses inside one long `train` method, so those lines are cut out of the
installed source by their comments and executed on our inputs; nothing of them is repeated here.
"""

import inspect
import json
import tempfile
import textwrap
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.experimental.ppo import ppo_trainer

HERE = Path(__file__).parent
INVALID = ppo_trainer.INVALID_LOGPROB
ARGUMENTS = SimpleNamespace(
    kl_estimator="k1",
    kl_coef=0.15,
    gamma=0.97,
    lam=0.9,
    cliprange=0.2,
    cliprange_value=0.25,
    vf_coef=1.0,
    whiten_rewards=False,
    missing_eos_penalty=0.75,
)
DPO_BETA = 0.3
WORDS = ["<pad>", "<eos>", "a", "b", "c", "d", "e", "f", "g", "h"]


def source_between(first: str, last: str) -> str:
    """The lines of TRL's `train` from the one holding `first` up to, without, the one holding `last`."""
    lines = inspect.getsource(ppo_trainer.PPOTrainer.train).splitlines()
    start = next(i for i, line in enumerate(lines) if first in line)
    stop = next(i for i, line in enumerate(lines) if last in line and i > start)
    return textwrap.dedent("\n".join(lines[start:stop]))


def execute(source: str, **names) -> dict:
    """The names that `source` leaves behind."""
    space = dict(vars(ppo_trainer)) | {"args": ARGUMENTS, "self": SimpleNamespace(args=ARGUMENTS)} | names
    exec(source, space)
    return space


def listed(tensor: torch.Tensor) -> list:
    """A tensor as lists of plain numbers."""
    return tensor.tolist()


def ppo_oracles() -> dict:
    """Inputs and outputs of the steps of one PPO update."""
    torch.manual_seed(0)
    rows, width = 4, 6
    logprobs, reference_logprobs = -3 * torch.rand(rows, width), -3 * torch.rand(rows, width)
    scores, values = torch.randn(rows), torch.randn(rows, width)
    finished = torch.tensor([True, False, True, False])
    lengths = torch.tensor([6, 3, 4, 1])
    mask = torch.arange(width)[None] < lengths[:, None]
    return {
        "arguments": vars(ARGUMENTS),
        "whiten": whitening(values, mask),
        "rewards": reward_placement(logprobs, reference_logprobs, scores, finished),
        "gae": advantages(torch.randn(rows, width), values, mask),
        "losses": losses(logprobs, mask),
    }


def whitening(values, mask) -> dict:
    """Both kinds of whitening."""
    shifted, kept = (ppo_trainer.masked_whiten(values, mask, shift_mean=shift) for shift in (True, False))
    return {"values": listed(values), "mask": listed(mask), "shifted": listed(shifted), "kept_mean": listed(kept)}


def reward_placement(logprobs, reference_logprobs, scores, finished) -> dict:
    """Token rewards of completions that fill the width: TRL puts the score of shorter ones after EOS, on no token."""
    penalised = execute(
        source_between("if self.args.missing_eos_penalty is not None", '# accelerator.print(f"{scores=}'),
        scores=scores.clone(),
        contain_eos_token=finished,
    )["scores"]
    full = torch.full((len(scores),), logprobs.shape[1] - 1)
    placed = execute(
        source_between("# 4. compute rewards", "# 5. whiten rewards"),
        logprobs=logprobs,
        ref_logprobs=reference_logprobs,
        scores=penalised,
        sequence_lengths=full,
        sequence_lengths_p1=full + 1,
    )
    return {
        "logprobs": listed(logprobs),
        "reference_logprobs": listed(reference_logprobs),
        "scores": listed(scores),
        "finished": listed(finished),
        "penalised_scores": listed(penalised),
        "rewards": listed(placed["rewards"]),
    }


def advantages(rewards, values, mask) -> dict:
    """Whitened advantages and returns of completions of several lengths."""
    rewards, values = rewards * mask, values * mask
    space = execute(
        source_between("# 6. compute advantages", "empty_cache()"),
        rewards=rewards,
        values=values,
        responses=rewards,
        padding_mask=~mask,
    )
    return {
        "rewards": listed(rewards),
        "values": listed(values),
        "mask": listed(mask),
        "whitened_advantages": listed(space["advantages"]),
        "returns": listed(space["returns"]),
    }


def losses(old_logprobs, mask) -> dict:
    """Masked means of the clipped policy and value losses."""
    shape = old_logprobs.shape
    new_logprobs, advantage = old_logprobs + 0.4 * torch.randn(shape), torch.randn(shape)
    old_values, returns = torch.randn(shape), torch.randn(shape)
    values = old_values + 0.4 * torch.randn(shape)
    space = execute(
        source_between("vpredclipped = torch.clamp(", "vf_clipfrac = masked_mean("),
        vpred=values,
        mb_values=old_values,
        mb_return=returns,
        padding_mask_p1=~mask,
        micro_batch_inds=slice(None),
    )
    policy = execute(
        source_between("logprobs_diff = new_logprobs - mb_logprobs", "loss = pg_loss + args.vf_coef"),
        new_logprobs=torch.where(mask, new_logprobs, INVALID),
        mb_logprobs=torch.where(mask, old_logprobs, INVALID),
        mb_advantage=advantage,
        padding_mask=~mask,
        micro_batch_inds=slice(None),
    )
    return {
        "old_logprobs": listed(old_logprobs),
        "logprobs": listed(new_logprobs),
        "advantages": listed(advantage),
        "old_values": listed(old_values),
        "values": listed(values),
        "returns": listed(returns),
        "mask": listed(mask),
        "policy_loss": policy["pg_loss"].item(),
        "value_loss": space["vf_loss"].item(),
    }


def waved(model, phase: float):
    """The model with weights that follow a sine, so that any version of any library can build it again."""
    with torch.no_grad():
        for index, (_, parameter) in enumerate(sorted(model.named_parameters())):
            count = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_((0.4 * torch.sin(1.7 * count + index + phase)).reshape(parameter.shape))
    return model


def tiny_llama() -> LlamaForCausalLM:
    """One layer of width 8."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def dpo_oracles() -> dict:
    """The loss that TRL's DPOTrainer computes for three pairs of different lengths."""
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    rows = [
        {"prompt": "a b c", "chosen": " d e", "rejected": " f g h d"},
        {"prompt": "h", "chosen": " g f e d c", "rejected": " a"},
        {"prompt": "b d f h b", "chosen": " c", "rejected": " c c"},
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.DPOConfig(
            output_dir=folder,
            beta=DPO_BETA,
            loss_type="sigmoid",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            disable_tqdm=True,
        )
        trainer = trl.DPOTrainer(
            waved(tiny_llama(), 0.0),
            waved(tiny_llama(), 0.5),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        encoded = [trainer.train_dataset[index] for index in range(len(rows))]
        inputs = trainer.data_collator(encoded)
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()]).norm()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    pairs = [{key: row[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in encoded]
    return {
        "beta": DPO_BETA,
        "pairs": pairs,
        "loss": loss.item(),
        "gradient_norm": norm.item(),
        "chosen_reward": metrics["rewards/chosen"],
        "rejected_reward": metrics["rewards/rejected"],
        "accuracy": metrics["rewards/accuracies"],
    }


def main():
    made = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    for name, make in (("trl_ppo", ppo_oracles), ("trl_dpo", dpo_oracles)):
        text = json.dumps({"made_with": made, **make()}, indent=1)
        (HERE / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
