"""`rewardserve compare`: score a file with two reward models, and tell how far they agree.

Stands on `service` (scoring without HTTP) and `training` (preference files and their figures), which do not know each other.
"""
