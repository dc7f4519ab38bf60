"""A notebook-driven workbench for reinforcement learning from human feedback."""
