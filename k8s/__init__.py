"""Manifests for Kubernetes. The only code here writes one of them."""
