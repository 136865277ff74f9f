"""Dashboards as code: `python -m monitoring.grafana.build` writes them in the format of Grafana."""
