"""One training run: a recipe goes in, the folder of the run comes out.

`load_recipe` reads a recipe, `fit` trains it, and every file of the folder is written whole or not
at all, so that a run which was killed goes on where it stopped.
"""
