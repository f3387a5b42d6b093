"""One training run: recipe, data, model, loop, checkpoints, and what is measured at its end."""
