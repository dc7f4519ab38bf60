"""A policy-gradient trainer on tiny models, which remembers what it was given, and its samples without padding."""

from tiny_models import tiny_model, word_tokenizer
from transformers import AutoModelForTokenClassification

from workbench.records import CompletionExample, PromptExample
from workbench.trainers.policy_gradient import PolicyGradientConfig, PolicyGradientTrainer

STARTS = ["user : what colour is the sky assistant :", "the grass", "user : thanks assistant :", "is red", "no"]
STARTS += ["sky is", "what is green", "the the sky"]
TEXTS = [f"{first} {start}" for start in STARTS for first in ("please", "yes")]


def prompts_with(texts=TEXTS, **columns) -> list[PromptExample]:
    rows = [{"prompt": text, **{name: values[i] for name, values in columns.items()}} for i, text in enumerate(texts)]
    return [PromptExample(prompt_ids=word_tokenizer()(row["prompt"])["input_ids"], row=row) for row in rows]


def texts_for_pretraining() -> list[CompletionExample]:
    ids = [word_tokenizer()(text)["input_ids"] for text in TEXTS]
    return [CompletionExample(prompt_ids=row[:1], completion_ids=row[1:]) for row in ids]


def colourful(prompts, completions, *, finished, **columns) -> list[float]:
    return [0.25 + sum(text.split().count(word) for word in ("red", "green", "blue")) for text in completions]


def constant(prompts, completions, *, finished, **columns) -> list[float]:
    return [1.0] * len(prompts)


UNPRICED = {"kl_coef": 0.0, "missing_eos_penalty": 0.0}  # the reward alone


def tiny_critic(family="llama", seed=5):
    return tiny_model(family, auto=AutoModelForTokenClassification, seed=seed)


class Watched(PolicyGradientTrainer):
    """Keeps what each update was given and each mini-batch it made of it, with the log-probabilities there."""

    parts_seen, logprobs_seen = (), ()

    def update(self, experience):
        self.seen, self.parts_seen, self.logprobs_seen = experience, (), ()
        return super().update(experience)

    def policy_loss(self, batch, rows=slice(None), **given):
        loss, logprobs, report = super().policy_loss(batch, rows, **given)
        self.parts_seen += (batch.rows(rows),)
        self.logprobs_seen += (logprobs.detach(),)
        return loss, logprobs, report


def trainer_for(
    policy=None,
    reference=None,
    *,
    critic=None,
    reward=colourful,
    prompts=None,
    held_out=None,
    monitors=None,
    pretraining=(),
    **config,
) -> Watched:
    sizes = {"steps": 4, "batch_size": 8, "max_completion_length": 6, "warmup_steps": 0, "learning_rate": 1e-2}
    config = PolicyGradientConfig(**sizes | config)
    return Watched(
        policy=policy or tiny_model(),
        reference=reference or tiny_model(),
        critic=tiny_critic() if critic is None and config.has_critic else critic,
        reward=reward,
        prompts=prompts_with() if prompts is None else prompts,
        held_out=prompts_with()[:3] if held_out is None else held_out,
        tokenizer=word_tokenizer(),
        config=config,
        monitors=monitors or {},
        pretraining=pretraining,
    )


def plain_rows(rollout):
    """Prompt and completion of each row, without padding."""
    for row in range(len(rollout)):
        counted, attended = rollout.completion_mask[row], rollout.attention_mask[row]
        tokens = rollout.tokens[row]
        split = rollout.prompt_length
        yield tokens[:split][attended[:split]].tolist(), tokens[split:][counted].tolist()
