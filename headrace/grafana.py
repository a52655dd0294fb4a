"""Brings the dashboards into a Grafana server over its HTTP API, and says in plain words what went wrong.

It blocks (`grafana_api` is synchronous): call it from a thread where there is an event loop.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cluster.errors import (
    DeadlineExceeded,
    Forbidden,
    HeadraceError,
    InvalidInput,
    NotFound,
    Unauthorized,
    Unavailable,
    UpstreamError,
)

__all__ = ["FOLDER_UID", "push_dashboards"]

T = TypeVar("T")
FOLDER_UID = "headrace"


def push_dashboards(
    dashboards: Sequence[Mapping[str, Any]], *, url: str, token: str, folder: str = "headrace", timeout_s: float = 10.0
) -> list[dict[str, Any]]:
    """Create or replace each dashboard in headrace's folder, which is made with the title `folder` where it is missing.
    Returns `{uid, title, url, version}` of each.

    Raises:
        InvalidInput: the URL cannot be one.
        Unavailable, DeadlineExceeded: nobody answers there, or not in `timeout_s`.
        NotFound, UpstreamError: something answers that is no Grafana, or Grafana refuses a dashboard or fails.
        Unauthorized, Forbidden: the token is unknown, or may not write dashboards.
    """
    from grafana_api.grafana_face import GrafanaFace

    where = _address(url)
    if not token.strip() or not token.isascii() or any(mark.isspace() for mark in token.strip()):
        raise InvalidInput(
            "the token of Grafana is empty or has blanks in it: GRAFANA_TOKEN (a service account's token)"
        )
    face = GrafanaFace(auth=token.strip(), timeout=timeout_s, **where)
    root = url.rstrip("/")

    def ask(call: Callable[..., Any], *arguments: Any) -> Any:
        return _asked(root, timeout_s, lambda: call(*arguments))

    health = ask(face.api.GET, "/health")
    if not isinstance(health, dict) or "database" not in health:
        raise _no_grafana(root)
    _find_folder(ask, face, folder)
    done = []
    for dashboard in dashboards:
        body = {
            "dashboard": {**dashboard, "id": None},
            "folderUid": FOLDER_UID,
            "overwrite": True,
            "message": f"headrace {_version()}",
        }
        answer = ask(face.dashboard.update_dashboard, body)
        path = str(answer.get("url") or f"/d/{dashboard['uid']}")
        done.append(
            {
                "uid": dashboard["uid"],
                "title": dashboard["title"],
                "url": _link(root, path),
                "version": answer.get("version"),
            }
        )
    return done


def _find_folder(ask: Callable[..., Any], face: Any, title: str) -> None:
    try:
        ask(face.folder.get_folder, FOLDER_UID)
    except NotFound:
        ask(face.folder.create_folder, title, FOLDER_UID)


def _asked(root: str, timeout_s: float, call: Callable[[], T]) -> T:
    """One call of Grafana, its many ways to fail told apart."""
    import requests.exceptions as r
    from grafana_api.grafana_api import GrafanaClientError, GrafanaException, GrafanaServerError

    try:
        return call()
    except r.Timeout:
        raise DeadlineExceeded(f"{root} did not answer within {timeout_s:g} s (--timeout)") from None
    except r.SSLError as error:
        raise Unavailable(
            f"{root}: its certificate is not trusted, or it does not speak TLS: {_root_of(error)}"
        ) from None
    except r.TooManyRedirects:
        raise UpstreamError(f"{root} sends from one address to another without end: is the URL right?") from None
    except (r.JSONDecodeError, TypeError):
        # Also TypeError: the client takes a web page that has the word `message` for an answer.
        raise _no_grafana(root) from None
    except (r.InvalidURL, r.InvalidHeader) as error:
        raise InvalidInput(f"{root}: {error}") from None
    except r.ConnectionError as error:
        raise Unavailable(f"nobody answers at {root}: {_root_of(error)}; is Grafana running there?") from None
    except GrafanaClientError as error:
        raise _refused(root, error) from None
    except GrafanaServerError as error:
        raise Unavailable(f"Grafana at {root} fails: {error.message}") from None
    except GrafanaException as error:
        raise UpstreamError(f"Grafana at {root}: {error.message}") from None


def _refused(root: str, error: Any) -> HeadraceError:
    status, said = error.status_code, error.message
    if status == 401:
        return Unauthorized(
            f"Grafana at {root} does not know this token (GRAFANA_TOKEN): make one for a service account"
        )
    if status == 403:
        return Forbidden(
            f"Grafana at {root} does not let this token write dashboards and folders: give its service account the "
            f"role Editor ({said})"
        )
    if status == 404:
        if isinstance(error.response, dict):
            return NotFound(f"Grafana at {root}: {said}")
        return _no_grafana(root)
    if status == 412:
        return UpstreamError(f"Grafana at {root} keeps another dashboard in this place: {said}")
    return UpstreamError(f"Grafana at {root} refuses: {said}")


def _no_grafana(root: str) -> HeadraceError:
    return UpstreamError(
        f"what answers at {root} is no Grafana: give the address that its start page has, with its path if it has one, "
        "such as https://grafana.example.com or https://example.com/grafana"
    )


def _address(url: str) -> dict[str, Any]:
    """The URL as `GrafanaFace` takes it. Raises InvalidInput."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidInput(f"{url!r} is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(f"{url!r} is no http(s) URL: such as https://grafana.example.com")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InvalidInput("the URL of Grafana takes no user, password or query: the token goes into GRAFANA_TOKEN")
    path = parts.path.strip("/")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return {"protocol": parts.scheme, "host": host, "port": port, "url_path_prefix": f"{path}/" if path else ""}


def _link(root: str, path: str) -> str:
    """Grafana answers with its whole path, which repeats the one that the URL has."""
    prefix = urlsplit(root).path.rstrip("/")
    return root + (path[len(prefix) :] if prefix and path.startswith(prefix + "/") else path)


def _root_of(error: BaseException) -> str:
    """The innermost reason: requests wraps urllib3's errors, which wrap the system's."""
    seen: BaseException = error
    while True:
        inner = getattr(seen, "reason", None) or (seen.args[0] if seen.args else None)
        if not isinstance(inner, BaseException):
            break
        seen = inner
    text = str(getattr(seen, "strerror", None) or seen)
    return text.rpartition(": ")[2] or type(seen).__name__


def _version() -> str:
    try:
        return importlib.metadata.version("headrace")
    except importlib.metadata.PackageNotFoundError:
        return "0.0.0"
