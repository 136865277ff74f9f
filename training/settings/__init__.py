"""The settings of a training run: records, recipes in YAML, and their checks."""
