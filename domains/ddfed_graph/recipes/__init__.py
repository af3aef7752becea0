"""The methods for graphs. Light: declarations only."""

from ddfed.recipes.base import Recipe
from ddfed_graph.recipes import matching, sets, structure

#: By the name of the constant.
RECIPES: dict[str, Recipe] = {
    target: value
    for module in (matching, structure, sets)
    for target, value in vars(module).items()
    if isinstance(value, Recipe)
}
# The registry finds a recipe as an attribute of this module.
globals().update(RECIPES)
