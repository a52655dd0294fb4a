"""Where hosts may run, which share of a card they get, and what is said when they can run nowhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.models import Resources
from cluster.errors import Unavailable, Unprocessable
from cluster.placement import (
    ACCELERATOR_LABEL,
    GPU_MEMORY_LABEL,
    NODE_ID_LABEL,
    Node,
    check_free_gpu_memory,
    check_free_memory,
    could_take,
    gpu_memory_gb,
    place,
    static_options,
)

GIB = 2**30
CPU = Node(id="cpu-node", resources={"CPU": 8, "memory": 16 * GIB})
H100 = Node(id="h100-node", resources={"CPU": 16, "GPU": 2, "memory": 128 * GIB}, labels={ACCELERATOR_LABEL: "H100"})
T4 = Node(id="t4-node", resources={"CPU": 4, "GPU": 1, "accelerator_type:T4": 1})
ODD = Node(id="odd-node", resources={"CPU": 4, "GPU": 1}, labels={GPU_MEMORY_LABEL: "48"})


def test_cpu_hosts_are_kept_off_gpu_nodes_when_there_are_others() -> None:
    """A CPU host names the cards it must not sit beside, known ones that may join later too, and the GPU nodes whose
    card has no label."""
    placement = place(Resources(cpus=2), [CPU, H100, T4])
    selector = placement.options["label_selector"]
    assert {"H100", "T4", "A100", "L4"} <= set(selector[ACCELERATOR_LABEL].removeprefix("!in(").rstrip(")").split(","))
    assert selector[NODE_ID_LABEL] == "!in(t4-node)"
    assert placement.nodes == ("cpu-node",)
    assert placement.reason == "kept off the GPU nodes"
    assert NODE_ID_LABEL not in place(Resources(cpus=2), [CPU]).options["label_selector"]


def test_cpu_hosts_may_use_gpu_nodes_when_nothing_else_can_take_them() -> None:
    """A cluster of GPU nodes only still runs CPU hosts; so does one whose CPU nodes are too small."""
    assert "label_selector" not in place(Resources(cpus=2), [H100]).options
    assert place(Resources(cpus=12), [CPU, H100]).nodes == ("h100-node",)


def test_gpu_hosts_never_go_to_a_cpu_node() -> None:
    """A host with GPUs asks Ray for them, so that no node without any qualifies."""
    placement = place(Resources(cpus=1, gpus=1), [CPU, H100])
    assert placement.options["num_gpus"] == 1
    assert placement.nodes == ("h100-node",)


def test_a_share_of_a_card_follows_from_its_memory() -> None:
    """20 GiB of a 79 GiB card is a quarter, rounded up so that shares never add up to more than the card."""
    placement = place(Resources(cpus=1, vram_gb=20), [CPU, H100])
    assert placement.options["num_gpus"] == pytest.approx(0.2532)
    assert placement.options["num_gpus"] >= 20 / 79


def test_the_smallest_card_that_fits_is_taken() -> None:
    """Where several kinds of card would do, the bigger ones stay free, and the kind is named to keep the share true."""
    placement = place(Resources(cpus=1, vram_gb=10), [CPU, H100, T4])
    assert placement.nodes == ("t4-node",)
    assert placement.options["num_gpus"] == pytest.approx(0.6667)
    assert placement.options["accelerator_type"] == "T4"  # it has Ray's resource, and not Ray's label
    assert place(Resources(cpus=1, vram_gb=30), [CPU, H100, T4]).nodes == ("h100-node",)


def test_a_model_larger_than_a_card_takes_several() -> None:
    """100 GiB need two cards of 79; a node with one card does not qualify."""
    assert place(Resources(cpus=1, vram_gb=100), [T4, H100]).options["num_gpus"] == 2


def test_a_card_can_be_asked_for_by_type_and_memory_by_label() -> None:
    """`accelerator` narrows the nodes; a label tells the memory of a card that the table does not know."""
    placement = place(Resources(cpus=1, vram_gb=10, accelerator="H100"), [H100, T4])
    assert placement.options["label_selector"] == {ACCELERATOR_LABEL: "H100"}
    assert placement.nodes == ("h100-node",)
    assert gpu_memory_gb(ODD) == 48
    odd = place(Resources(cpus=1, vram_gb=12), [ODD]).options
    assert odd["num_gpus"] == 0.25
    assert odd["label_selector"] == {GPU_MEMORY_LABEL: "48"}


def test_a_share_names_the_card_it_was_computed_for() -> None:
    """A quarter of the one card there is must not become a quarter of a smaller one that joins later."""
    placement = place(Resources(cpus=1, vram_gb=20, labels={"zone": "!b"}), [CPU, H100])
    assert placement.options["label_selector"] == {ACCELERATOR_LABEL: "H100", "zone": "!b"}


def test_cards_of_one_kind_and_different_memory_are_told_apart() -> None:
    """The label of the memory decides where the kind does not, and the node's own name where nothing else does."""
    small, large = (
        Node(
            id=f"n{gib}",
            resources={"CPU": 4, "GPU": 1},
            labels={ACCELERATOR_LABEL: "A100", GPU_MEMORY_LABEL: f"{gib}"},
        )
        for gib in (39, 79)
    )
    placement = place(Resources(cpus=1, vram_gb=20), [small, large])
    assert placement.options["label_selector"] == {GPU_MEMORY_LABEL: "39"}
    unlabelled = Node(id="n0", resources={"CPU": 4, "GPU": 1}, labels={ACCELERATOR_LABEL: "A100"})
    placement = place(Resources(cpus=1, vram_gb=20), [unlabelled, large])
    assert placement.options["label_selector"] == {NODE_ID_LABEL: "n0"}
    too_small = Node(id="n1", resources={"CPU": 0.5, "GPU": 1}, labels={ACCELERATOR_LABEL: "A100"})
    placement = place(Resources(cpus=1, vram_gb=20), [unlabelled, too_small])
    assert placement.options["label_selector"] == {ACCELERATOR_LABEL: "A100"}


def test_nodes_that_the_autoscaler_may_add_count() -> None:
    """What fits only on a kind of node that is not there yet is no impossible request, and such a node is named."""
    group = Node(id="gpu-workers", resources={"CPU": 8, "GPU": 1, "accelerator_type:L4": 1}, addable=True)
    placement = place(Resources(cpus=4, vram_gb=11, labels={"zone": "a"}), [CPU, group])
    assert placement.options["num_gpus"] == 0.5
    assert placement.options["label_selector"] == {ACCELERATOR_LABEL: "L4", "zone": "a"}
    assert place(Resources(cpus=2), [CPU, group]).nodes == ("cpu-node",)
    with pytest.raises(Unprocessable, match=r"nodes of gpu-workers, which may be added: 8 CPU, 1 GPU \(L4\)"):
        place(Resources(cpus=9), [CPU, group])


@pytest.mark.parametrize(
    ("resources", "nodes", "says"),
    [
        (Resources(cpus=99), [CPU, H100], "asks for 99 CPU. The cluster has: cpu-node: 8 CPU, no GPU, 16.0 GiB"),
        (Resources(cpus=1, gpus=3), [CPU, H100], "asks for 1 CPU, 3 GPU"),
        (Resources(cpus=1, vram_gb=10, accelerator="A100"), [H100], "accelerator A100. The cluster has: h100-node"),
        (Resources(cpus=1, labels={"zone": "a"}), [CPU], "label zone=a"),
        (Resources(cpus=1, memory=64 * GIB), [CPU], "64.0 GiB of memory"),
        (Resources(cpus=1, gpus=1), [], "no live node"),
    ],
)
def test_an_impossible_request_says_what_was_asked_and_what_there_is(
    resources: Resources, nodes: list[Node], says: str
) -> None:
    """Instead of waiting for ever, a host that fits nowhere is refused with the cluster's nodes."""
    with pytest.raises(Unprocessable) as caught:
        place(resources, nodes)
    assert says in caught.value.message


def test_a_card_of_unknown_memory_asks_for_a_label() -> None:
    """`vram_gb` cannot become a share of a card that nobody knows."""
    unknown = Node(id="n", resources={"CPU": 4, "GPU": 1})
    with pytest.raises(Unprocessable, match=GPU_MEMORY_LABEL):
        place(Resources(cpus=1, vram_gb=4), [unknown])


@pytest.mark.parametrize("label", ["0", "-1", "nan", "inf", "many"])
def test_a_label_that_is_no_memory_says_nothing(label: str) -> None:
    """A card whose label states no memory that a card can have is a card of unknown memory."""
    odd = Node(id="n", resources={"CPU": 4, "GPU": 1}, labels={GPU_MEMORY_LABEL: label})
    with pytest.raises(Unprocessable, match=GPU_MEMORY_LABEL):
        place(Resources(cpus=1, vram_gb=4), [odd])


def test_dead_nodes_do_not_count() -> None:
    """A node that is gone cannot take a host."""
    dead = Node(id="d", resources={"CPU": 64}, alive=False)
    assert place(Resources(cpus=2), [CPU, dead]).nodes == ("cpu-node",)
    with pytest.raises(Unprocessable):
        place(Resources(cpus=32), [CPU, dead])


def test_labels_are_matched_as_ray_does() -> None:
    """Equality, exclusion, and both with lists; an absent label satisfies an exclusion."""
    labelled = Node(id="l", resources={"CPU": 4}, labels={"zone": "a"})
    for wanted, nodes in [
        ("a", ("l",)), ("!a", ("p",)), ("in(a,b)", ("l",)), ("!in(a, b)", ("p",)), ("!c", ("l", "p")),
    ]:  # fmt: skip
        plain = Node(id="p", resources={"CPU": 4})
        assert place(Resources(cpus=1, labels={"zone": wanted}), [labelled, plain]).nodes == nodes


@given(
    sizes=st.lists(st.floats(0.01, 79), min_size=1, max_size=30),
)
def test_hosts_whose_shares_fit_a_card_fit_its_memory(sizes: list[float]) -> None:
    """Whatever is packed onto a card by shares never declares more memory than the card has."""
    share = memory = 0.0
    for size in sizes:
        asked = place(Resources(cpus=1, vram_gb=size), [H100]).options["num_gpus"]
        if share + asked > 1:
            break
        share += asked
        memory += size
    assert memory <= 79 + 1e-6


def test_really_free_memory_is_checked_before_loading() -> None:
    """Another process on the card is found out before any weight is loaded, with the figures."""
    check_free_gpu_memory(Resources(vram_gb=10), free_bytes=11 * GIB, total_bytes=79 * GIB, card="H100")
    check_free_gpu_memory(Resources(gpus=1), free_bytes=0, total_bytes=79 * GIB, card="H100")
    with pytest.raises(Unavailable, match=r"H100 has 3\.0 GiB free of 79\.0 GiB, .* vram_gb: 10"):
        check_free_gpu_memory(Resources(vram_gb=10), free_bytes=3 * GIB, total_bytes=79 * GIB, card="H100")


def test_the_memory_of_the_node_is_checked_before_loading() -> None:
    """Weights for which the node has no memory are refused with the figures, for ever or for now."""
    check_free_memory(Resources(), weights_bytes=0, available_bytes=0, total_bytes=8 * GIB)
    check_free_memory(Resources(), weights_bytes=2 * GIB, available_bytes=2 * GIB, total_bytes=8 * GIB)
    with pytest.raises(
        Unprocessable, match=r"has weights of 9\.00 GiB, .* 6\.00 GiB available of 8\.00 GiB: it can never"
    ):
        check_free_memory(Resources(), weights_bytes=9 * GIB, available_bytes=6 * GIB, total_bytes=8 * GIB)
    with pytest.raises(Unavailable, match=r"declares memory of 4\.00 GiB, and its node has 3\.00 GiB available"):
        check_free_memory(Resources(memory=4 * GIB), weights_bytes=GIB, available_bytes=3 * GIB, total_bytes=8 * GIB)


def test_options_without_a_node_list() -> None:
    """Away from a cluster the declared numbers are passed on; a share cannot be computed."""
    assert static_options(Resources(cpus=2, gpus=1, accelerator="L4")) == {
        "num_cpus": 2,
        "num_gpus": 1,
        "accelerator_type": "L4",
    }
    with pytest.raises(Unprocessable, match="node list"):
        static_options(Resources(vram_gb=4))


def test_options_that_no_node_can_meet_any_more_are_known() -> None:
    """After nodes have gone, what a host was deployed with is compared with the nodes that are left."""
    kept_off = place(Resources(cpus=2), [CPU, H100]).options
    assert could_take(kept_off, [CPU, H100])
    assert not could_take(kept_off, [H100])
    assert not could_take(kept_off, [Node(id="cpu-node", resources={"CPU": 8}, alive=False), H100])
    share = place(Resources(cpus=1, vram_gb=20), [H100, T4]).options
    assert could_take(share, [H100])
    assert not could_take(share, [T4, CPU])
    typed = place(Resources(cpus=1, vram_gb=10), [T4]).options
    assert could_take(typed, [T4])
    assert not could_take(typed, [H100])
    unlabelled = Node(id="x", resources={"CPU": 4, "GPU": 1})
    assert not could_take(place(Resources(cpus=1), [CPU, unlabelled]).options, [unlabelled])


@given(
    cpus=st.sampled_from([0.5, 2, 6, 12]),
    vram=st.sampled_from([None, 5, 20, 60, 100]),
    accelerator=st.sampled_from([None, "H100", "T4"]),
    nodes=st.lists(st.sampled_from([CPU, H100, T4, ODD]), min_size=1, max_size=4, unique_by=lambda node: node.id),
)
def test_what_is_asked_for_can_be_met_by_the_nodes_that_were_chosen_and_by_no_other_card(
    cpus: float, vram: float | None, accelerator: str | None, nodes: list[Node]
) -> None:
    """Whatever the cluster: Ray's choice by these options is among the nodes that the placement names."""
    resources = Resources(cpus=cpus, vram_gb=vram, accelerator=accelerator if vram else None)
    try:
        placement = place(resources, nodes)
    except Unprocessable:
        return
    able = {node.id for node in nodes if could_take(placement.options, [node])}
    assert able == set(placement.nodes)
