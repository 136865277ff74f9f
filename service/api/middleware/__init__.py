"""What runs around every route: request log, authentication, body limits, idempotency."""
