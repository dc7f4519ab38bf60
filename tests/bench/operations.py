"""Arithmetic that a method needs, counted by hand."""

import cases


def useful_operations(size: cases.ModelSize, case: cases.Case, device: str) -> float:
    """Multiplications and additions of one step that the method needs on real tokens, every row on its own.

    A backward pass counts twice its forward pass. The same number serves both sides: work on padding, a pass that is
    made twice, or one that is saved by sharing a prompt shows in the share of the peak.
    """
    case = cases.fitted(case, size.width, device)
    count = case.batch_size * case.steps
    prompts = [len(ids) for ids in cases.prompts(case, size.vocabulary, count)]
    sides = [[len(ids) + 1 for ids in cases.completions(case, size.vocabulary, count, seed=seed)] for seed in (1, 2)]
    full = [case.completion_length] * count

    def forward(answers: list[int], *, head: bool) -> float:
        return sum(_forward(size, p + c, c if head else 0) for p, c in zip(prompts, answers, strict=True)) / case.steps

    logits, scalar = forward(full, head=True), forward(full, head=False)
    both = sum(forward(side, head=True) for side in sides)
    return {
        "sft": lambda: 3 * forward(sides[0], head=True),
        "dpo": lambda: 4 * both,
        "reward_model": lambda: 3 * sum(forward(side, head=False) for side in sides),
        "rloo": lambda: 5 * logits,
        "grpo": lambda: 5 * logits,
        "ppo": lambda: 2 * logits + 2 * scalar + 3 * case.passes * (logits + scalar),
        "generate": lambda: _generated(size, case),
    }[case.method]()


def _forward(size: cases.ModelSize, tokens: int, head_positions: int) -> float:
    """Operations of one row's forward pass: matrix products, causal attention, and the head where it is read."""
    ways = 2 if size.family == "gpt2" else 3
    matrices = size.layers * (4 * size.width**2 + ways * size.width * size.feed_forward)
    attention = size.layers * 2 * size.width * tokens**2
    return 2 * matrices * tokens + attention + 2 * size.width * size.vocabulary * head_positions


def _generated(size: cases.ModelSize, case: cases.Case) -> float:
    """Operations of sampling a batch whose rows end with the same probability at every token."""
    ending = (cases.ENDING - 1) / (size.vocabulary - 1)
    alive = [(1 - ending) ** step for step in range(case.completion_length)]
    lengths = sum(alive)
    return case.batch_size * _forward(size, case.prompt_length + round(lengths), round(lengths))
