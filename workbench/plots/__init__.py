"""Figures: each function takes a DataFrame and returns a plotly Figure."""

from workbench.plots.agreement import (
    plot_agreement_filters,
    plot_agreement_matrix,
    plot_choice_shares,
    plot_labeler_measures,
)
from workbench.plots.frontier import plot_frontier, plot_gains, plot_reward_kl_path, plot_sharpening_control
from workbench.plots.marks import text_table
from workbench.plots.rewards import (
    plot_accuracy_bars,
    plot_accuracy_by_choice,
    plot_accuracy_by_size,
    plot_best_of_n,
    plot_calibration,
    plot_gold_components,
    plot_reward_distributions,
)
from workbench.plots.training import plot_attention_mask, plot_learning_curve, plot_training_panels

__all__ = [
    "plot_accuracy_bars",
    "plot_accuracy_by_choice",
    "plot_accuracy_by_size",
    "plot_agreement_filters",
    "plot_agreement_matrix",
    "plot_attention_mask",
    "plot_best_of_n",
    "plot_calibration",
    "plot_choice_shares",
    "plot_frontier",
    "plot_gains",
    "plot_gold_components",
    "plot_labeler_measures",
    "plot_learning_curve",
    "plot_reward_distributions",
    "plot_reward_kl_path",
    "plot_sharpening_control",
    "plot_training_panels",
    "text_table",
]
