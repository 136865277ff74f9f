"""The review store: samples of runs that people read and label, with the alerts that point to them."""
