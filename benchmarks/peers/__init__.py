"""Compare servers over HTTP: RewardServe and common alternatives, on the same texts, cores and client.

`record` defines a peer, one file each describes one, `servers` holds the scripts of peers that are libraries. `install`
creates their environments, `processes` starts, measures and stops them, `client` sends requests, `__main__` runs the
comparison.
"""
