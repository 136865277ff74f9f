"""`rewardserve demo`: a server with two runs, of which one is hacked."""
