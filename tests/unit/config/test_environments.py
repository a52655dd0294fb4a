"""The rules that keep environments apart."""

from __future__ import annotations

import pytest

from cluster.config.environments import (
    Evidence,
    RuleBroken,
    RuleOverride,
    broken_rules,
    content_fingerprint,
    enforce,
)
from cluster.config.loader import load_text
from cluster.config.models import Config
from cluster.errors import Forbidden, InvalidInput
from cluster.promotions import PromotionRecord, read_promotions, record_promotion
from cluster.storage.testing import MemoryBucket


def config(environment: str, *, endpoint: str, key: str = "", seed: int = 1, bucket: str = "") -> Config:
    return load_text(
        f"environment: {environment}\n"
        f"storage: {{url: 's3://{bucket or environment}-runs'}}\n"
        f"models:\n  m:\n    provider: openai_compatible\n    endpoint: {endpoint}\n    seed: {seed}\n"
        + (f"    api_key: ${{{key}}}\n" if key else ""),
        env={key: "x"} if key else {},
    )


def evidence_for(staging: Config) -> Evidence:
    version = staging.models["m"].versions["1.0.0"]
    return Evidence(promoted={("m", "1.0.0"): content_fingerprint(version)})


def names(broken: list[RuleBroken]) -> list[str]:
    return [rule.name for rule in broken]


STAGING = config("staging", endpoint="https://api.staging.example.com/v1", key="STAGING_KEY")
PROD = config("prod", endpoint="https://api.example.com/v1", key="PROD_KEY")


def test_a_version_promoted_in_staging_may_go_to_prod() -> None:
    """Promoted content passes, although endpoint and key differ by environment."""
    assert broken_rules(PROD, others={"staging": STAGING}, evidence=evidence_for(STAGING)) == []


def test_prod_refuses_what_staging_never_promoted() -> None:
    """Without a recorded promotion, or when the record cannot be read, prod refuses the version."""
    for evidence in (Evidence(promoted={}), None):
        assert names(broken_rules(PROD, others={}, evidence=evidence)) == ["unpromoted:m-1.0.0"]


def test_prod_refuses_other_content_under_a_promoted_number() -> None:
    """A version whose content differs from what was promoted under its number is refused."""
    changed = config("prod", endpoint="https://api.example.com/v1", key="PROD_KEY", seed=2)
    (rule,) = broken_rules(changed, others={}, evidence=evidence_for(STAGING))
    assert "another content" in rule.message


def test_a_test_endpoint_or_key_cannot_reach_prod() -> None:
    """The accident of the past: dev's endpoint and key in prod's file are refused by their words alone."""
    wrong = config("prod", endpoint="https://api.dev.example.com/v1", key="DEV_API_KEY")
    found = names(broken_rules(wrong, others={}, evidence=evidence_for(STAGING)))
    assert found == ["foreign-endpoint:m-1.0.0", "foreign-key:m-1.0.0"]


def test_prod_refuses_what_another_environment_uses_too() -> None:
    """An endpoint, key or bucket without a telling name is refused when another environment's file has it."""
    dev = config("dev", endpoint="https://api.example.com/v1", key="THE_KEY", bucket="shared")
    prod = config("prod", endpoint="https://api.example.com/v1", key="THE_KEY", bucket="shared")
    found = names(broken_rules(prod, others={"dev": dev}, evidence=evidence_for(STAGING)))
    assert found == ["foreign-endpoint:m-1.0.0", "foreign-key:m-1.0.0", "foreign-bucket:storage"]


def test_dev_may_not_use_prods_key_or_bucket() -> None:
    """The other way round too: dev with prod's key or bucket is refused."""
    dev = config("dev", endpoint="https://api.example.com/v1", key="PROD_KEY", bucket="prod")
    assert "foreign-key:m-1.0.0" in names(broken_rules(dev, others={"prod": PROD}, evidence=None))


def test_prod_refuses_values_from_outside_the_files() -> None:
    """Models changed by a variable or flag, and files with uncommitted changes, are refused in prod only."""
    arguments = {
        "others": {},
        "changed_outside_files": [("models.m.replicas", "--set"), ("router.port", "HEADRACE__ROUTER__PORT")],
        "uncommitted": ["configs/prod.yaml"],
    }
    found = broken_rules(PROD, evidence=evidence_for(STAGING), **arguments)  # type: ignore[arg-type]
    assert names(found) == ["dirty:models.m.replicas", "dirty:configs/prod.yaml"]
    assert broken_rules(STAGING, evidence=None, **arguments) == []  # type: ignore[arg-type]


def test_override_by_name_with_a_reason_is_recorded() -> None:
    """The rules that an operator overrode come back for the record; the others still stop the deployment."""
    broken = broken_rules(PROD, others={}, evidence=None, uncommitted=["configs/prod.yaml"])
    first = RuleOverride(name="unpromoted:m-1.0.0", reason="hot fix 12", by="ada")
    with pytest.raises(Forbidden, match="dirty:configs/prod") as caught:
        enforce(broken, [first], environment="prod")
    assert [rule["name"] for rule in caught.value.details["rules"]] == ["dirty:configs/prod.yaml"]
    second = RuleOverride(name="dirty:configs/prod.yaml", reason="same", by="ada")
    assert enforce(broken, [first, second], environment="prod") == [first, second]


def test_override_needs_a_reason_and_a_broken_rule() -> None:
    """An override without a reason, or of a rule that is not broken, is refused."""
    broken = broken_rules(PROD, others={}, evidence=None)
    with pytest.raises(InvalidInput, match="--reason"):
        enforce(broken, [RuleOverride(name="unpromoted:m-1.0.0", reason=" ", by="ada")], environment="prod")
    with pytest.raises(InvalidInput, match="not broken"):
        enforce(broken, [RuleOverride(name="unpromoted:m-9.9.9", reason="x", by="ada")], environment="prod")


async def test_promotions_are_kept_in_the_bucket() -> None:
    """A promotion is recorded once, and the newest content of each version is read back."""
    bucket = MemoryBucket()
    first = PromotionRecord(environment="staging", model="m", version="1.0.0", fingerprint="aa", at=1.0)
    second = PromotionRecord(environment="staging", model="m", version="1.0.0", fingerprint="bb", at=2.0)
    assert await record_promotion(bucket, first)
    assert not await record_promotion(bucket, first)
    assert await record_promotion(bucket, second)
    assert await read_promotions(bucket) == {("m", "1.0.0"): "bb"}
