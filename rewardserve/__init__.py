"""RewardServe: reward models for RLHF training, trained and served.

The import package of the folders `model/`, `service/` and `training/` of the repository, which are linked here.
"""
