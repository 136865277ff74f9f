"""The replies of this server, each described once: the encoder writes these records, and the OpenAPI document has their schemas.

Replies in the wire formats of other servers are in `dialects`.
"""
