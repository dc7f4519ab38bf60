"""Policies, reward models and critics: built, loaded, sampled from and read off."""

from workbench.models.load import (  # noqa: F401
    add_lora,
    build_policy,
    frozen,
    listed_folders,
    load_critic,
    load_own_tokenizer,
    load_policy,
    load_reward_model,
    load_tokenizer,
    local_folders,
    merge_lora,
    model_context,
    seeded,
    without_dropout,
)
