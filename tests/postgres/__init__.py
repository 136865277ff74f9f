"""The review store on a real Postgres."""
