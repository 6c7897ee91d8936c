"""Recipes: `get_config(argument)` in each file returns a ConfigDict."""
