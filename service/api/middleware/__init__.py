"""Middleware of all routes: request log, authentication, body limits, idempotency."""
