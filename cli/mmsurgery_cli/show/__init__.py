"""Results as people read them: a few lines, a table, a heatmap, and what to do next."""
