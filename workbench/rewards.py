"""Rewards: any callable `(prompts, completions, *, finished, **columns) -> list[float]`.

The learned one reads texts, as every other does, so it can serve a policy with another tokenizer.
"""

import torch

from workbench.batches import collate, encode_texts
from workbench.errors import WorkbenchError
from workbench.scoring import sequence_rewards


class LearnedReward:
    """A reward model as a reward: its output at mean 0 and standard deviation 1 on reference samples.

    The shift and scale live in the model's config (`reward_mean`, `reward_std`), so that they travel with its folder.
    """

    def __init__(self, model, tokenizer, *, max_length: int, batch_size: int = 512):
        self.model, self.tokenizer = model, tokenizer
        self.max_length, self.batch_size = max_length, batch_size  # tokens of prompt + completion; rows per forward

    def __call__(self, prompts, completions, *, finished, **columns) -> list[float]:
        raw = self.raw(prompts, completions, finished=finished)
        config = self.model.config
        return ((raw - getattr(config, "reward_mean", 0.0)) / getattr(config, "reward_std", 1.0)).tolist()

    @torch.no_grad()
    def raw(self, prompts, completions, *, finished) -> torch.Tensor:
        """Unnormalised outputs, (N,) fp32: the unit of the training loss, in which differences are log-odds."""
        prompt_ids, completion_ids = encode_texts(self.tokenizer, list(prompts), list(completions), list(finished))
        completion_ids = [ids[: self.max_length - 1] for ids in completion_ids]  # the prompt keeps one token or more
        pairs = zip(prompt_ids, completion_ids, strict=True)
        prompt_ids = [ids[len(completion) - self.max_length :] for ids, completion in pairs]
        order = sorted(range(len(prompts)), key=lambda row: len(prompt_ids[row]) + len(completion_ids[row]))
        scores = torch.zeros(len(prompts))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            ids = [prompt_ids[row] for row in rows], [completion_ids[row] for row in rows]
            batch = collate(*ids, pad_id=self.tokenizer.pad_token_id)
            scores[rows] = sequence_rewards(self.model, batch.to(self.model.device)).cpu()
        return scores


def normalise(reward: LearnedReward, prompts, completions, *, finished) -> dict[str, float]:
    """Set the model's shift and scale so that these reference samples score mean 0 and standard deviation 1.

    Ziegler et al. 2019 normalise on samples of the starting policy; the KL coefficient has a meaning only in this unit.
    Returns the raw mean and standard deviation. Raises WorkbenchError where the raw scores do not vary.
    """
    raw = reward.raw(prompts, completions, finished=finished)
    mean, std = raw.mean().item(), raw.std().item()
    if not std > 0:
        raise WorkbenchError(
            f"The reward model gives all {len(raw)} reference samples {mean:.3g}: train it longer or give more samples."
        )
    reward.model.config.reward_mean, reward.model.config.reward_std = mean, std
    return {"reward_mean": mean, "reward_std": std}
