"""`rewardserve mine`: find responses that a reward model pays and a judge does not, and write an audit queue for labelling.

Stands on `service` (scoring without HTTP, features of attribution), `training` (rows of files) and `compare`. It trains nothing:
`rewardserve train --counterexamples` reads the queue with its labels.
"""
