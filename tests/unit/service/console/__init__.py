"""Parts of the console without a server."""
