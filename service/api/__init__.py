"""The wire: JSON in, records to `scoring`, records back, JSON out."""
