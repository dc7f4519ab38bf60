"""Running notebooks: recipes, sweeps, processes, the report."""
