"""What a version's application asks of Serve and Ray, and what travels to its host."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import SecretStr

from cluster.config.models import SecretRef, VersionConfig
from cluster.errors import InvalidConfig
from cluster.placement import Node, place
from serve_apps.hosts.app import deployment_options, host_env, threads_of, version_wire


def version(**settings: Any) -> VersionConfig:
    return VersionConfig.model_validate({"provider": "python", "class": "m:C", **settings})


def test_enough_requests_are_let_in_to_fill_the_queue() -> None:
    """Waiting happens in the batch queue, which knows priorities and deadlines, and not before it."""
    options = deployment_options(version(batching={"max_batch_size": 8, "queue": 200}), None)
    assert options["max_ongoing_requests"] == 208
    assert options["num_replicas"] == 1


def test_autoscaling_replaces_the_fixed_number_of_replicas() -> None:
    """`min_replicas: 0` lets an idle version go to zero after `idle_s`."""
    settings = {"min_replicas": 0, "max_replicas": 3, "idle_s": 60}
    options = deployment_options(version(autoscaling=settings), None)
    assert "num_replicas" not in options
    assert options["autoscaling_config"]["min_replicas"] == 0
    assert options["autoscaling_config"]["downscale_delay_s"] == 60
    quick = deployment_options(version(autoscaling={**settings, "idle_s": 3}), None)["autoscaling_config"]
    slow = options["autoscaling_config"]["look_back_period_s"]
    assert quick["look_back_period_s"] < slow <= 60, "a longer memory of calls would keep it busy for longer"


def test_threads_follow_the_cpus_asked_for() -> None:
    """A share of a CPU gets one thread; `cpu_threads` wins."""
    assert threads_of(version(resources={"cpus": 0.5})) == 1
    assert threads_of(version(resources={"cpus": 4})) == 4
    assert threads_of(version(resources={"cpus": 4}, cpu_threads=2)) == 2
    assert host_env(version(cpu_threads=2))["OMP_NUM_THREADS"] == "2"


def test_the_placement_and_the_environment_reach_the_actor() -> None:
    """Ray's options hold the placement's and the host's environment variables."""
    placement = place(version(resources={"cpus": 2}).resources, [Node(id="n", resources={"CPU": 4})])
    options = deployment_options(version(), placement, env={"HEADRACE_SECRETS_FILE": "/x"})["ray_actor_options"]
    assert options["num_cpus"] == 2
    assert options["runtime_env"]["env_vars"]["HEADRACE_SECRETS_FILE"] == "/x"
    assert "MALLOC_MMAP_THRESHOLD_" in options["runtime_env"]["env_vars"]


def test_no_secret_travels_to_a_host() -> None:
    """Only the variable's name goes into Serve's config; a written-out key is refused without being shown."""
    endpoint = {"provider": "openai_compatible", "endpoint": "http://x"}
    named = version_wire(
        VersionConfig.model_validate({**endpoint, "api_key": SecretRef(variable="KEY", default=SecretStr("s3cret"))})
    )
    assert named["api_key"] == {"variable": "KEY"}
    assert "s3cret" not in json.dumps(named)
    assert VersionConfig.model_validate(named).api_key == SecretRef(variable="KEY")
    with pytest.raises(InvalidConfig) as caught:
        version_wire(VersionConfig.model_validate({**endpoint, "api_key": SecretStr("s3cret")}))
    assert "s3cret" not in str(caught.value)


def test_a_version_survives_the_wire() -> None:
    """What the host reads is what was configured."""
    original = version(
        config={"a": [1, {"b": None}]}, warmup=[{"text": "x"}], seed=3, batching={"max_batch_size": 4}, cpu_threads=2
    )
    assert VersionConfig.model_validate(json.loads(json.dumps(version_wire(original)))) == original


def test_pure_parts_import_neither_ray_nor_torch() -> None:
    """Planning, placement, signatures and the packaged classes' names can be used without the heavy packages."""
    modules = (
        "serve_apps.batching, serve_apps.signature, serve_apps.hosts.host, serve_apps.hosts.app, "
        "cluster.placement, cluster.weights, serve_apps.providers, serve_apps.providers.load, "
        "serve_apps.hosts.packaged.text, serve_apps.hosts.packaged.embedding, serve_apps.hosts.packaged.vision"
    )
    code = f"import sys, {modules}; print([m for m in ('ray', 'torch', 'transformers', 'fsspec') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
