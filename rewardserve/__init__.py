"""RewardServe: reward models for RLHF training, trained and served.

The import name of the folders `model/`, `service/` and `training/` of the repository, which are linked here.
"""
