"""The files for Grafana and Prometheus: what is checked in under `generated/`, and the small files around it.

Needs nothing but the standard library and YAML, so that it works on any machine that has headrace.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

__all__ = ["BOARDS", "EDITABLE", "FOLDER", "RULES", "boards", "bundle", "scrape_config"]

FOLDER = Path(__file__).parent / "generated"
BOARDS = ("serving.json", "workflows.json", "releases.json")
RULES = "headrace.rules.yaml"
EDITABLE = ("prometheus/prometheus.yml", "alertmanager/alertmanager.yml")
"""Files of an export that people make their own."""


def boards() -> list[dict[str, Any]]:
    """The three dashboards."""
    return [json.loads((FOLDER / name).read_text(encoding="utf-8")) for name in BOARDS]


def bundle(*, environment: str, discovery: str, url: str) -> dict[str, str]:
    """Every file of an export, by its path in it.

    `discovery`: Ray's service discovery file (`prom_metrics_service_discovery.json`); `url`: where Alertmanager reaches
    headrace's routers.
    """
    found = {f"grafana/dashboards/{name}": (FOLDER / name).read_text(encoding="utf-8") for name in BOARDS}
    found["grafana/provisioning/dashboards/headrace.yaml"] = _text(_provider())
    found[f"prometheus/{RULES}"] = (FOLDER / RULES).read_text(encoding="utf-8")
    found["prometheus/prometheus.yml"] = _text(scrape_config(environment=environment, discovery=discovery))
    found["alertmanager/alertmanager.yml"] = _text(_alertmanager(url))
    return found


def scrape_config(*, environment: str, discovery: str) -> dict[str, Any]:
    """A whole configuration of Prometheus: scrape every Ray node of one environment, evaluate the rules."""
    return {
        "global": {"scrape_interval": "10s", "evaluation_interval": "10s"},
        "rule_files": [RULES],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": ["127.0.0.1:9093"]}]}]},
        "scrape_configs": [
            {
                "job_name": f"headrace-{environment}",
                "file_sd_configs": [{"files": [discovery]}],
                # Ray's own label `job` would stand in the way of this one's name.
                "relabel_configs": [
                    {"target_label": "job", "replacement": f"headrace-{environment}"},
                    {"target_label": "environment", "replacement": environment},
                ],
            }
        ],
    }


def _provider() -> dict[str, Any]:
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": "headrace",
                "folder": "headrace",
                "folderUid": "headrace",
                "type": "file",
                "options": {"path": "/var/lib/grafana/dashboards/headrace"},
            }
        ],
    }


def _alertmanager(url: str) -> dict[str, Any]:
    return {
        "route": {
            "receiver": "people",
            "group_by": ["alertname", "environment", "model"],
            "group_wait": "10s",
            "routes": [
                {
                    "receiver": "headrace",
                    "matchers": ['headrace_action="rollback"'],
                    "group_wait": "0s",
                    "group_interval": "10s",
                    "continue": True,
                },
                {"receiver": "people"},
            ],
        },
        "receivers": [
            {"name": "people"},
            {
                "name": "headrace",
                "webhook_configs": [
                    {
                        "url": f"{url}/admin/alerts",
                        "send_resolved": False,
                        "http_config": {
                            "authorization": {"credentials_file": "/etc/alertmanager/headrace-operate-key"}
                        },
                    }
                ],
            },
        ],
    }


def _text(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
