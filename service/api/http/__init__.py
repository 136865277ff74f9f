"""Sockets, connections and load shedding, below the routes."""
