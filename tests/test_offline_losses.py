"""Losses of implicit Q-learning: scipy's expectiles, value iteration on a chain, where the gradient stops."""

import numpy as np
import pytest
import torch
from scipy import stats

from workbench.losses.offline import conservative_loss, expectile_loss, td_loss

# Four states in a row. "go" (1) leads on, and from the last state to the end with reward 1; "stop" (0) ends with LEFT.
LEFT = [0.5, 0.1, 0.2, 0.3]
GAMMA = 0.9


def minimised(loss_of, *shapes, steps=1500, learning_rate=0.05) -> list[torch.Tensor]:
    """The tables of numbers at which a loss is lowest, by gradient descent with a rate that falls to 0."""
    tables = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    optimizer = torch.optim.Adam(tables, lr=learning_rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        optimizer.zero_grad()
        loss_of(*tables).backward()
        optimizer.step()
    return [table.detach() for table in tables]


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9, 0.99])
def test_regression_finds_the_expectile_that_scipy_computes(expectile):
    targets = torch.from_numpy(np.random.default_rng(0).gamma(1.0, 1.0, 400))
    (value,) = minimised(lambda value: expectile_loss(targets, value.expand(400), expectile=expectile).mean(), ())
    assert value.item() == pytest.approx(stats.expectile(targets.numpy(), expectile), abs=1e-3)


def value_iteration() -> np.ndarray:
    """Optimal Q of the chain, (states, actions)."""
    q_values = np.zeros((4, 2))
    for _ in range(50):
        best = q_values.max(1)
        q_values = np.array([[LEFT[state], 1.0 if state == 3 else GAMMA * best[state + 1]] for state in range(4)])
    return q_values


def chain_loss(expectile: float):
    """Both value losses over every transition of the chain, each met equally often; Q is its own target."""
    states = torch.arange(4).repeat_interleave(2)
    actions = torch.tensor([0, 1] * 4)
    rewards = torch.tensor([LEFT[s] if a == 0 else float(s == 3) for s, a in zip(states, actions, strict=True)])

    def loss_of(q_table, v_table):
        q_values, values = q_table[states, actions][:, None], v_table[states][:, None]
        following = torch.where((actions == 1) & (states < 3), v_table[(states + 1).clamp(max=3)], 0)[:, None]
        errors = td_loss(q_values, rewards[:, None].double(), following, gamma=GAMMA)
        return (errors + expectile_loss(q_values, values, expectile=expectile)).sum()

    return loss_of


def test_on_a_chain_the_optimal_values_are_found_as_the_expectile_nears_one():
    q_table, v_table = minimised(chain_loss(0.999), (4, 2), (4,))
    optimal = value_iteration()
    np.testing.assert_allclose(q_table.numpy(), optimal, atol=5e-3)
    np.testing.assert_allclose(v_table.numpy(), optimal.max(1), atol=5e-3)
    assert optimal.argmax(1).tolist() == q_table.argmax(1).tolist() == [1, 1, 1, 1]


def test_at_one_half_the_values_are_those_of_the_data():
    q_table, _ = minimised(chain_loss(0.5), (4, 2), (4,))
    value, expected = 0.0, []
    for state in reversed(range(4)):  # half of the data stops in every state
        go = 1.0 if state == 3 else GAMMA * value
        expected.append([LEFT[state], go])
        value = (LEFT[state] + go) / 2
    np.testing.assert_allclose(q_table.numpy(), expected[::-1], atol=1e-3)


def test_the_gradient_stops_at_both_targets():
    q_values, next_values, values = (torch.randn(2, 3, requires_grad=True) for _ in range(3))
    td_loss(q_values, torch.zeros(2, 3), next_values, gamma=0.9).sum().backward()
    assert next_values.grad is None and q_values.grad.abs().min() > 0
    q_values.grad = None
    expectile_loss(q_values, values, expectile=0.7).sum().backward()
    assert q_values.grad is None and values.grad.abs().min() > 0


def test_shapes_are_per_token_and_nothing_is_summed():
    q_values = torch.randn(2, 3, 5)
    losses = conservative_loss(q_values, torch.zeros(2, 3, dtype=torch.long))
    assert losses.shape == (2, 3)
    for row in range(2):
        for column in range(3):
            share = q_values[row, column].exp() / q_values[row, column].exp().sum()
            assert losses[row, column].item() == pytest.approx(-share[0].log().item(), abs=1e-6)


def test_the_conservative_loss_lowers_what_was_not_written_and_raises_what_was():
    q_values = torch.zeros(1, 1, 4, requires_grad=True)
    conservative_loss(q_values, torch.tensor([[2]])).sum().backward()
    assert q_values.grad[0, 0].tolist() == pytest.approx([0.25, 0.25, -0.75, 0.25])
