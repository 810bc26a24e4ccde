"""How models are fine-tuned: recipes as files, those of the paper among them."""

from mmsurgery.recipes.recipe import Recipe, find_recipe, shipped_recipes

__all__ = ["Recipe", "find_recipe", "shipped_recipes"]
