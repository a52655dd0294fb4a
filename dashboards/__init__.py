"""Grafana dashboards and Prometheus alert rules as code. Of headrace it knows the names of the metrics, nothing else.

`dashboards.bundle` gives the files as they are checked in under `generated/`; `python -m dashboards.generate` makes
them anew (only that needs grafana-foundation-sdk).
"""
