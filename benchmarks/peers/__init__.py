"""Servers side by side over HTTP: ours and the ones that people use instead, on the same texts, cores and client.

`record` says what a peer is, one file each describes one, `servers` holds those that need code of ours to run at all.
`install` makes their environments, `processes` starts, counts and ends them, `client` asks, `__main__` runs all of it.
"""
