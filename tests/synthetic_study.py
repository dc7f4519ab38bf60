"""Run folders of a small overoptimization study without any model: gold follows planted laws of KL."""

import numpy as np
import pandas as pd
from measured import as_measured

from workbench.runs import Run

PROMPTS, SAMPLES = 12, 16
STEPS = (0, 5, 10, 20, 30, 40)
KL = np.array([0.0, 0.25, 1.0, 4.0, 9.0, 16.0])  # of a policy that nothing holds, at STEPS
# experiment -> traits of its reward model and the b of gold = d (1 - b log d): a higher b peaks earlier
MODELS = {
    "05_reward_model": ({"pairs": 4000}, 0.6),
    "05_split": ({"pairs": 4000, "half": 2}, 0.6),
    "05_seed101": ({"pairs": 4000, "seed": 101}, 0.6),
    "05_pairs250": ({"pairs": 250}, 0.9),
    "05_pairs1000": ({"pairs": 1000}, 0.75),
    "05_scratch_small": ({"pairs": 4000, "start": "scratch", "preset": "small"}, 0.9),
    "05_scratch_large": ({"pairs": 4000, "start": "scratch", "preset": "large"}, 0.7),
    "05_noise": ({"pairs": 4000, "label_noise": 0.25}, 0.8),
    "05_labeler_ana": ({"pairs": 1000, "half": 0, "labelers": "ana"}, 0.7),
}
WEIGHTS = {"small": 20_000, "large": 180_000}


def write_study(folder, *, worlds=(0, 1), seeds=(0, 1), gold=True, models=tuple(MODELS), rl=True):
    """Writes the runs of every (world, seed) below `folder` and returns it."""
    for world in worlds:
        for seed in seeds:
            unit = f"_world{world}_seed{seed}"
            for name in models:
                write_reward_model(folder, name, unit)
            write_pool(folder, unit, gold=gold, models=models)
            if rl:
                write_policies(folder, unit, gold=gold, models=models)
    return folder


def write_policies(folder, unit, *, gold, models):
    judges = [name for name in ("05_split", "05_seed101") if name in models]
    write_policy(folder, "06_ppo_kl0", unit, "05_reward_model", judges=judges, gold=gold)
    write_policy(folder, "06_ppo_kl0.5", unit, "05_reward_model", kl_coef=0.5, judges=judges, gold=gold)
    for name in set(models) & {"05_pairs250", "05_pairs1000", "05_scratch_small", "05_scratch_large"}:
        write_policy(folder, f"06_{name[3:]}", unit, name, gold=gold)
    for how in ("mean", "min"):
        members = [name for name in ("05_reward_model", "05_seed101") if name in models]
        write_policy(folder, f"06_ensemble_{how}", unit, ",".join(members), ensemble=how, gold=gold)


def finished(folder, name, parameters, tables, *, summary=None):
    run = Run.open(folder / name, {"world_seed": int(name.split("world")[1][0]), "seed": int(name[-1]), **parameters})
    for table, frame in as_measured(tables).items():
        run.save_table(table, frame)
    run.summary(summary or {"x": 1})
    run.finish()
    return run


def write_reward_model(folder, name, unit):
    traits = {"start": "sft", "preset": "", "half": 1, "label_noise": 0.0, "labelers": ""} | MODELS[name][0]
    accuracy = pd.DataFrame({"group": ["all"], "measured_against": ["gold"], "accuracy": [0.7]})
    summary = {"pairs": traits["pairs"], "parameters": WEIGHTS.get(traits["preset"], 60_000), "accuracy vs gold": 0.7}
    return finished(folder, name + unit, traits, {"accuracy": accuracy}, summary=summary)


def offset(unit):
    """What makes a unit different: the same for all its runs."""
    return 0.05 * int(unit[6]) + 0.02 * int(unit[-1])


def law(kl, b):
    """Gold gained at `kl` nats."""
    root = np.sqrt(kl)
    return root * (1 - b * np.log(np.where(root > 0, root, 1.0)))


def write_policy(folder, name, unit, reward_model, *, kl_coef=0.0, judges=(), ensemble="", gold=True):
    """A policy whose gold follows the law of its reward model; a price stops it at a nat, where gold still rises."""
    b = MODELS[reward_model.split(",")[0]][1] - (0.1 if ensemble else 0.0)
    rng = np.random.default_rng(sum(map(ord, name + unit)))
    rows = []
    for step, kl in zip(STEPS, np.minimum(KL, 1.0) if kl_coef else KL, strict=True):
        for row in range(PROMPTS):
            text = "mix the egg . " * int(1 + kl) + " ".join(f"word{i}" for i in range(6))
            line = {"step": step, "row": row, "prompt": f"prompt {row}", "kind": "qa", "completion": text}
            line |= {"finished": True, "completion_length": 10 + kl, "kl": kl, "proxy": 0.6 * kl**0.5}
            if gold:
                line["gold"] = law(kl, b) + offset(unit) + 0.05 * (row - 5.5) + 0.01 * rng.normal()
                line |= {"gold_helpful": 0.5, "gold_repetition": line["gold"] - 0.5}
            line |= {f"judge_{judge}{unit}": (0.6 - 0.1 * i) * kl**0.5 for i, judge in enumerate(judges, 1)}
            rows.append(line)
    models = ",".join(f"runs/{model}{unit}" for model in reward_model.split(","))
    parameters = {"model": f"runs/02_sft{unit}", "reward_model": models, "algorithm": "ppo", "kl_coef": kl_coef}
    parameters |= {"ensemble": ensemble or "mean", "kl_target": 0.0}
    return finished(folder, name + unit, parameters, {"path": pd.DataFrame(rows)}, summary={"kl_coef": kl_coef})


def write_pool(folder, unit, *, gold, models, name="07_best_of_n"):
    """A pool whose reward models see gold through errors of their own, larger the higher their b."""
    rng = np.random.default_rng(sum(map(ord, unit)))
    truth = rng.normal(size=(PROMPTS, SAMPLES))
    table = {"prompt_index": np.repeat(np.arange(PROMPTS), SAMPLES)}
    table |= {"prompt": [f"prompt {i}" for i in table["prompt_index"]]}
    table |= {"completion": [f"answer {i}" for i in range(truth.size)], "logprob": -9.0}
    for i, model in enumerate(models):
        scores = truth + 2 * MODELS[model][1] * rng.normal(size=truth.shape)
        table["proxy" if i == 0 else f"judge_{model}{unit}"] = scores.ravel()
    if gold:
        table["gold"] = truth.ravel()
    parameters = {"model": f"runs/02_sft{unit}", "reward_model": ", ".join(f"runs/{model}{unit}" for model in models)}
    return finished(folder, name + unit, parameters, {"pool": pd.DataFrame(table)})
