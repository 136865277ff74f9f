"""What watches the servers from outside: rules of Prometheus, routes of Alertmanager, dashboards of Grafana."""
