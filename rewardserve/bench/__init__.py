"""Measure a server over HTTP: requests from concurrent clients, then throughput, latency and failures by code."""
