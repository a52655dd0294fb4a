"""Resources and images of steps."""

from __future__ import annotations

import pytest

from cluster.config.models import ImageConfig, Resources
from pipelines.executor.errors import ImageUnavailable
from pipelines.executor.shapes import NodeShape, impossible, plan_image, slots, task_options

GIB = 1024**3
SMALL = NodeShape(resources={"CPU": 2.0, "memory": 4.0 * GIB}, labels={"zone": "a"})
GPU = NodeShape(resources={"CPU": 8.0, "GPU": 1.0, "memory": 64.0 * GIB, "accelerator_type:L4": 1.0})


@pytest.mark.parametrize(
    ("resources", "missing"),
    [
        (Resources(), None),
        (Resources(cpus=8, gpus=1), None),
        (Resources(cpus=16), "16 CPU"),
        (Resources(gpus=2), "2 GPU"),
        (Resources(memory=100 * GIB), "100.0 GiB memory"),
        (Resources(accelerator="H100"), "H100"),
        (Resources(labels={"zone": "b"}), "zone=b"),
        (Resources(labels={"zone": "in(b,c)"}), None),
        (Resources(cpus=8, labels={"zone": "a"}), "8 CPU, zone=a"),
    ],
)
def test_a_step_that_fits_on_no_node_is_told_what_there_is(resources: Resources, missing: str | None) -> None:
    """All needs must meet on one node; the sentence names the needs and the nodes."""
    reason = impossible(resources, [SMALL, GPU])
    if missing is None:
        assert reason is None
    else:
        assert reason is not None
        assert missing in reason
        assert "2 CPU, 4.0 GiB memory" in reason


def test_resources_become_options_of_the_ray_task() -> None:
    """Every field reaches Ray, and Ray never retries by itself."""
    full = Resources(cpus=2, gpus=0.5, memory=GIB, accelerator="L4", labels={"zone": "a"})
    assert task_options(full, "img:1") == {
        "num_cpus": 2,
        "num_gpus": 0.5,
        "memory": GIB,
        "accelerator_type": "L4",
        "label_selector": {"zone": "a"},
        "runtime_env": {"image_uri": "img:1"},
        "max_retries": 0,
    }


def test_the_images_table_decides_what_an_image_is() -> None:
    """A callable, the folder's own script, a container; an image outside the table is a container's name."""
    table = {
        "a": ImageConfig(callable="m:f"),
        "b": ImageConfig(local=True),
        "c": ImageConfig(container="registry/c:2"),
    }
    assert plan_image(None, table, has_engine=False).callable_path is None
    assert plan_image("a", table, has_engine=False).callable_path == "m:f"
    assert plan_image("b", table, has_engine=True).container is None
    assert plan_image("c", table, has_engine=True).container == "registry/c:2"
    assert plan_image("d:1", table, has_engine=True).container == "d:1"
    for image in ("c", "d:1"):
        with pytest.raises(ImageUnavailable, match="no container engine"):
            plan_image(image, table, has_engine=False)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (Resources(cpus=1), 12),
        (Resources(cpus=0.1), 120),
        (Resources(cpus=8), 1),
        (Resources(cpus=0.25, memory=GIB), 24),
        (Resources(cpus=0.5, gpus=0.5), 4),
        (Resources(cpus=1, accelerator="L4"), 8),
        (Resources(cpus=1, labels={"zone": "b"}), 4),
        (Resources(cpus=0), 12),
        (Resources(cpus=64), 1),
    ],
)
def test_slots_are_what_fits_on_all_nodes_together(resources: Resources, expected: int) -> None:
    """Each node takes as many tasks as its scarcest resource allows; there is always one, if only to wait."""
    nodes = [
        NodeShape(resources={"CPU": 8, "GPU": 2, "memory": 16 * GIB, "accelerator_type:L4": 1}, labels={"zone": "a"}),
        NodeShape(resources={"CPU": 4, "memory": 8 * GIB}, labels={"zone": "b"}),
    ]
    assert slots(resources, nodes) == expected
