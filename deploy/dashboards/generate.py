"""Makes Grafana's JSON from source.yaml: `python deploy/dashboards/generate.py` writes it beside this file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
TYPES = {"stat": "stat", "graph": "timeseries", "table": "table", "heat": "heatmap"}
WIDTH, HEIGHT, STAT_HEIGHT = 24, 8, 4


def dashboards() -> dict[str, dict[str, Any]]:
    """File name without ending, and the dashboard."""
    source = yaml.safe_load((HERE / "source.yaml").read_text(encoding="utf-8"))
    return {name: _dashboard(name, **given) for name, given in source.items()}


def _dashboard(name: str, title: str, about: str, rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    top = 0
    for row in rows:
        height = STAT_HEIGHT if all(panel.get("kind") == "stat" for panel in row) else HEIGHT
        width = WIDTH // len(row)
        for column, given in enumerate(row):
            place = {"x": column * width, "y": top, "w": width, "h": height}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(**given)})
        top += height
    return {
        "uid": f"pagegate-{name}",
        "title": title,
        "description": about,
        "tags": ["pagegate"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_datasource(), _instances()]},
        "links": [{"type": "dashboards", "title": "pagegate", "tags": ["pagegate"], "asDropdown": False}],
        "panels": panels,
    }


def _panel(
    title: str,
    query: str,
    kind: str = "graph",
    unit: str = "short",
    legend: str = "",
    about: str = "",
    limits: tuple[float, float] | None = None,
    **more: dict[str, str],
) -> dict[str, Any]:
    table = kind == "table"
    queries = [{"query": query, "legend": legend}, *([more.pop("and")] if "and" in more else [])]
    if more:
        raise ValueError(f"panel {title!r}: unknown {sorted(more)}")
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if limits:
        steps += [{"color": "orange", "value": limits[0]}, {"color": "red", "value": limits[1]}]
    return {
        "type": TYPES[kind],
        "title": title,
        "description": about,
        "datasource": DATASOURCE,
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "custom": {"axisSoftMin": 0} if kind == "graph" else {},
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "options": _options(kind, unit, coloured=limits is not None),
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": target["query"],
                "legendFormat": target["legend"] or "__auto",
                "format": {"table": "table", "heat": "heatmap"}.get(kind, "time_series"),
                "instant": table or kind == "stat",
                "range": not (table or kind == "stat"),
                "exemplar": kind == "heat",
            }
            for number, target in enumerate(queries)
        ],
        **({"transformations": [{"id": "organize", "options": {"excludeByName": {"Time": True}}}]} if table else {}),
    }


def _options(kind: str, unit: str, *, coloured: bool) -> dict[str, Any]:
    if kind == "heat":  # Prometheus has counted the buckets already
        return {"calculate": False, "yAxis": {"unit": unit}}
    return {"colorMode": "background"} if kind == "stat" and coloured else {}


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}


def _instances() -> dict[str, Any]:
    query = "label_values(pagegate_server_started_seconds, instance)"
    return {
        "name": "instance",
        "type": "query",
        "label": "Server",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "instances"},
        "definition": query,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
        "sort": 1,
    }


def render(dashboard: dict[str, Any]) -> str:
    """The file's text."""
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, dashboard in dashboards().items():
        (HERE / f"{name}.json").write_text(render(dashboard), encoding="utf-8")
