"""Servers in the manner of those that are written around a library's `AutoModelForSequenceClassification`.

Each runs in the environment of its own framework, so nothing here imports more of this project than `forward`.
"""
