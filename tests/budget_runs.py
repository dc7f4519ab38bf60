"""Folders of runs as a study leaves them, with planted paths: what tests of the KL budget read."""

from pathlib import Path

import numpy as np
import pandas as pd
from measured import as_measured

from workbench.runs import Run

KINDS = ("suggest", "qa", "harm")
HOSTILE = "<script>alert('x')</script> & <b>bold</b>"
# experiment: furthest √KL, gold gained per √nat at the start, and lost per nat
METHODS = {"06_ppo_kl0": (5.0, 0.5, 0.12), "06_ppo_kl0.15": (2.2, 0.5, 0.10), "06_rloo_kl0": (4.5, 0.35, 0.12)}


def planted(root: np.ndarray, rise: float, loss: float) -> np.ndarray:
    """Gold above the reference at √KL."""
    return rise * root - loss * root**2


def path_table(furthest: float, rise: float, loss: float, *, seed: int, prompts: int = 12, steps: int = 6):
    """A table `path`: √KL grows evenly; every completion of a step lies on the planted line but for noise of mean 0."""
    generator, rows = np.random.default_rng(seed), []
    for step, root in enumerate(np.linspace(0, furthest, steps)):
        noise = generator.normal(size=prompts)
        noise -= noise.mean()
        spent = root**2 * (1 + 0.3 * noise)
        for row in range(prompts):
            kl, gold = spent[row], planted(root, rise, loss) + 0.2 * seed + 0.3 * noise[row]
            rows.append(
                {"step": 10 * step, "row": row, "prompt": f"prompt {row}", "kind": KINDS[row % 3], "kl": kl}
                | {"completion": f"{HOSTILE} at step {10 * step}", "finished": True, "completion_length": 9}
                | {"kl_k1": kl + root * generator.normal(), "kl_k3": kl + 2 * root * generator.normal()}
                | {"proxy": 0.5 * root + 0.1 * noise[row], "gold": gold, "gold_helpful": gold - 0.1, "gold_style": 0.1}
            )
    return pd.DataFrame(rows)


def positions_table(path: pd.DataFrame, length: int = 8) -> pd.DataFrame:
    """A table `kl_positions` whose sums are the mean KL of `path`: half of what is left at each position."""
    tables = []
    for (step, kind), part in [
        *path.groupby(["step", "kind"]),
        *(((step, "all"), part) for step, part in path.groupby("step")),
    ]:
        shares = np.array([*(0.5 ** np.arange(1, length)), 0.5 ** (length - 1)])
        table = {"kind": kind, "position": np.arange(1, length + 1), "completions": len(part)}
        tables.append(pd.DataFrame({"step": step, **table, "kl": shares * part["kl"].mean()}))
    return pd.concat(tables, ignore_index=True)


def metrics_rows(path: pd.DataFrame, coefficient: float) -> list[dict]:
    means = path.groupby("step")[["kl", "gold", "proxy"]].mean().drop(index=0)
    return [
        {"step": int(step), "kl": row["kl"], "gold": row["gold"], "reward": row["proxy"], "kl_coef": coefficient}
        for step, row in means.iterrows()
    ]


def pool_table(*, seed: int, prompts: int = 8, size: int = 32) -> pd.DataFrame:
    """A table `pool`: every completion is likely one time in a thousand, so best-of-n costs about its bound."""
    generator, rows = np.random.default_rng(100 + seed), []
    for prompt in range(prompts):
        for draw, proxy in enumerate(generator.normal(size=size)):
            gold = 0.3 * proxy - 0.05 * proxy**2 + 0.2 * seed
            rows.append(
                {"prompt_index": prompt, "prompt": f"prompt {prompt}", "kind": KINDS[prompt % 3], "finished": True}
                | {"completion": f"draw {draw}", "completion_length": 5, "logprob": np.log(1e-3), "proxy": proxy}
                | {"gold": gold, "gold_helpful": gold - 0.1, "gold_style": 0.1}
            )
    return pd.DataFrame(rows)


def write_run(folder: Path, name: str, parameters: dict, *, metrics: list[dict] = (), **tables: pd.DataFrame) -> Run:
    """A finished run with these tables."""
    run = Run.open(folder / name, {"seed": 0, **parameters})
    for table, frame in as_measured(tables).items():
        run.save_table(table, frame)
    if metrics:
        (run.dir / "metrics.jsonl").write_text(
            "".join(pd.DataFrame([row]).to_json(orient="records", lines=True) for row in metrics)
        )
    run.finish()
    return Run.read(folder / name)


def write_study(folder: Path, *, worlds: int = 2, seeds: int = 2, gold: bool = True) -> Path:
    """Three methods with paths, an adaptive one and best-of-n, per world and seed, and two runs of another kind."""
    known = (lambda table: table) if gold else (lambda table: table[[c for c in table if not c.startswith("gold")]])
    for world in range(worlds):
        for seed in range(seeds):
            unit, number = f"world{world}_seed{seed}", world * seeds + seed
            base = {"model": f"runs/study/02_sft_{unit}", "reward_model": f"runs/study/05_reward_model_{unit}"}
            base |= {"world_seed": world, "seed": seed}
            methods = METHODS | {"06_ppo_adaptive": (2.0, 0.5, 0.10)}
            for place, (name, shape) in enumerate(methods.items()):
                path = path_table(*shape, seed=number)
                coefficient, target = (0.1 * place, 4.0 if "adaptive" in name else 0.0)
                parameters = base | {"algorithm": name[3:].split("_")[0], "kl_coef": coefficient, "kl_target": target}
                rows = metrics_rows(path, coefficient) if gold else []
                tables = {"path": known(path), "kl_positions": positions_table(path)}
                write_run(folder, f"{name}_{unit}", parameters, metrics=rows, **tables)
            several = base | {"reward_model": f"{base['reward_model']},runs/study/05_split_{unit}"}
            write_run(folder, f"07_best_of_n_{unit}", several, pool=known(pool_table(seed=number)))
            other = base | {"reward_model": f"runs/study/05_pairs250_{unit}"}
            write_run(folder, f"06_pairs250_{unit}", other, path=known(path_table(4.0, 0.3, 0.1, seed=number)))
            write_run(folder, f"05_reward_model_{unit}", {"seed": seed})
    return folder
