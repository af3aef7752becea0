"""The methods, by family. A recipe is a declaration; the loop is `ddfed.distill`."""

from ddfed.recipes.base import Preset, Published, Recipe

__all__ = ["Preset", "Published", "Recipe"]
