"""Servers built around `AutoModelForSequenceClassification`, as is common for each library.

Each runs in the environment of its framework, so these modules import nothing of this project but `forward`.
"""
