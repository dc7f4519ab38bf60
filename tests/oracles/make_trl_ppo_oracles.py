"""Writes trl_ppo.json into the folder it is given, or beside itself: what TRL's PPO computes on small fixed inputs.

    make conformance    makes it again in an environment of their own and compares

TRL's PPO has its reward placement, GAE and losses inside one long `train` method, so those lines are cut out of the
installed source by their comments and executed on our inputs; nothing of them is repeated here.
"""

import inspect
import json
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
import trl
from trl.experimental.ppo import ppo_trainer

PEER = "trl==1.12.0"  # the last with trl.experimental.ppo
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


def main(folder: Path):
    made = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    (folder / "trl_ppo.json").write_text(json.dumps({"made_with": made, **ppo_oracles()}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
