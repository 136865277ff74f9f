"""RewardServe: reward models for RLHF training, trained and served.

The import package of the folders `model/`, `service/` and `training/` of the repository, which are linked here.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("rewardserve")
except PackageNotFoundError:  # a checkout on the path of an environment in which it is not installed
    __version__ = "0"
