"""Dashboards as code: `python -m monitoring.grafana.build` writes them as Grafana reads them."""
