"""How the cluster and its key are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InvalidConfig, Unavailable
from headrace.connection import find_connection, read_credentials, write_credentials
from headrace.transports import AsyncHttpTransport, HttpTransport


def saved(folder: Path, environment: str = "dev", url: str = "http://127.0.0.1:8000") -> Path:
    path = folder / ".headrace" / environment / "credentials.json"
    write_credentials(path, url=url, api_key="hr_saved")
    return path


def test_what_up_left_is_found_from_a_folder_below(tmp_path: Path) -> None:
    """URL and key of `headrace up` are found from any folder of the project, and the file is private."""
    path = saved(tmp_path)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    found = find_connection({}, start=below)
    assert (found.url, found.api_key) == ("http://127.0.0.1:8000", "hr_saved")
    assert path.stat().st_mode & 0o777 == 0o600
    assert "hr_saved" not in repr(found)


def test_variables_win_and_the_saved_key_goes_to_its_own_url_only(tmp_path: Path) -> None:
    """HEADRACE_URL wins; the saved key is never sent to another URL."""
    saved(tmp_path)
    other = find_connection({"HEADRACE_URL": "https://prod.example.com"}, start=tmp_path)
    assert (other.url, other.api_key) == ("https://prod.example.com", None)
    same = find_connection({}, url="http://127.0.0.1:8000/", start=tmp_path)
    assert same.api_key == "hr_saved"
    given = find_connection({"HEADRACE_API_KEY": "hr_mine"}, start=tmp_path)
    assert given.api_key == "hr_mine"


def test_inside_a_ray_job_the_cluster_around_is_used(tmp_path: Path) -> None:
    """The entrypoint of a Ray job without a URL uses the router's handle; with a URL it uses HTTP."""
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_ADDRESS": "127.0.0.1:6379"}
    saved(tmp_path)
    assert find_connection(job, start=tmp_path).url is None
    assert find_connection({**job, "HEADRACE_URL": "http://x"}, start=tmp_path).url == "http://x"


def test_ray_address_is_the_last_resort(tmp_path: Path) -> None:
    """RAY_ADDRESS of a cluster is used when nothing else is known; the job server's http address is not a cluster."""
    assert find_connection({"RAY_ADDRESS": "10.0.0.1:6379"}, start=tmp_path).url is None
    with pytest.raises(Unavailable):
        find_connection({"RAY_ADDRESS": "http://10.0.0.1:8265"}, start=tmp_path)


def test_environments_do_not_mix(tmp_path: Path) -> None:
    """Credentials of dev are not used for staging."""
    saved(tmp_path)
    with pytest.raises(Unavailable, match="no staging cluster"):
        find_connection({}, environment="staging", start=tmp_path)
    with pytest.raises(Unavailable, match="headrace up"):
        find_connection({"HEADRACE_ENV": "prod"}, start=tmp_path)


def test_state_dir_by_variable(tmp_path: Path) -> None:
    """A state folder elsewhere is found by the variable that put it there."""
    write_credentials(tmp_path / "state" / "dev" / "credentials.json", url="http://a", api_key=None)
    found = find_connection({"HEADRACE__CLUSTER__STATE_DIR": str(tmp_path / "state")}, start=tmp_path)
    assert (found.url, found.api_key) == ("http://a", None)


def test_state_dir_by_configuration(tmp_path: Path) -> None:
    """A state folder that the environment's file names is found, also while its variables are not set."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.yaml").write_text("cluster: {state_dir: ./kept}\n")
    (tmp_path / "configs" / "staging.yaml").write_text('storage: {url: "${BUCKET}"}\n')
    write_credentials(tmp_path / "kept" / "staging" / "credentials.json", url="http://a", api_key="hr_a")
    assert find_connection({}, environment="staging", start=tmp_path).api_key == "hr_a"
    with pytest.raises(Unavailable, match="headrace up"):
        find_connection({}, environment="dev", start=tmp_path)


def test_a_key_with_a_line_end_is_the_key(tmp_path: Path) -> None:
    """A key that was read from a file may bring the file's last line end along."""
    found = find_connection({"HEADRACE_URL": "http://h", "HEADRACE_API_KEY": "hr_a\n"}, start=tmp_path)
    assert found.api_key == "hr_a"


@pytest.mark.parametrize("make", [HttpTransport, AsyncHttpTransport])
def test_a_key_or_url_that_cannot_be_used_is_told_without_the_key(make: Any) -> None:
    """What no header can carry is refused before the HTTP library sees it, which would show it in its error."""
    for key in ("hr_se cret\nX: y", "hr_sécret", " hr_secret"):
        with pytest.raises(InvalidConfig, match="API key") as caught:
            make("http://h", key, timeout_s=1)
        assert "cret" not in str(caught.value)
    for url in ("http://[::1", "http://", "ftp://h", "http://h:port"):
        with pytest.raises(InvalidConfig, match="URL"):
            make(url, "hr_secret", timeout_s=1)


@pytest.mark.parametrize(
    ("url", "proxied"),
    [
        ("http://127.0.0.1:8000", False),
        ("http://localhost:8000", False),
        ("http://[::1]:8000", False),
        ("http://cluster.example.com", True),
        ("http://10.0.0.7", True),
    ],
)
def test_no_proxy_stands_before_a_cluster_on_this_machine(url: str, proxied: bool) -> None:
    """A proxy that the environment names is for other machines: it cannot reach this one's ports."""
    transport = HttpTransport(url, None, timeout_s=1)
    assert transport._http.trust_env is proxied
    transport.close()


def test_bad_values_are_told(tmp_path: Path) -> None:
    """A URL that is none and a damaged file are errors with a sentence."""
    with pytest.raises(InvalidConfig, match="not an http"):
        find_connection({}, url="localhost:8000", start=tmp_path)
    path = saved(tmp_path)
    path.write_text("{}")
    with pytest.raises(InvalidConfig, match="headrace up"):
        read_credentials(path)
