"""Adapters on the Hugging Face hub: fetched by name, published from a run; by huggingface_hub (extra ``hub``).

Endpoint, token, cache folder and offline mode are huggingface_hub's own: ``HF_ENDPOINT``, ``HF_TOKEN``,
``HF_HUB_CACHE`` and ``HF_HUB_OFFLINE``.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from losa_cache.apply.card import card
from losa_cache.errors import UserError
from losa_cache.extras import extra
from losa_cache.sidenet.adapter_folder import CARD, CONFIG, HUB, METRICS, TENSORS, find_files, read_metrics

FILES = (TENSORS, CONFIG, METRICS, CARD)
_NAME = r"(?!.*(--|\.\.))[A-Za-z0-9_]([\w.-]{0,94}[\w])?"
_REPO = re.compile(f"{_NAME}/{_NAME}", re.ASCII)  # the hub's own rule
_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
LOG_IN = "log in with 'hf auth login', or set HF_TOKEN"


def require_repo(repo: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        UserError: naming the form.
    """
    if not _REPO.fullmatch(repo):
        raise UserError(f"{repo!r} is no repository on the hub: write owner/name.")


def fetch_adapter(spec: str) -> Path:
    """Fetch an adapter into huggingface_hub's cache, and nothing else of its repository.

    Args:
        spec: ``hub:owner/name``, or ``hub:owner/name@revision`` for a branch, a tag or a commit.

    Returns:
        the folder; where the hub is not reached that of the last time.

    Raises:
        UserError: if it cannot be fetched, or is no adapter of losa-cache.
    """
    repo, at, revision = spec.removeprefix(HUB).partition("@")
    require_repo(repo)
    if at and not _REVISION.fullmatch(revision):
        raise UserError(f"{revision!r} is no revision: write hub:owner/name@revision, a branch, a tag or a commit.")
    hub = _hub()
    with _said(f"adapter {spec!r} cannot be fetched"):
        folder = Path(hub.snapshot_download(repo, revision=revision or None, allow_patterns=list(FILES), **_us()))
    if missing := [name for name in (TENSORS, CONFIG) if not (folder / name).exists()]:
        raise UserError(f"repository {repo!r} holds no adapter of losa-cache: it has no {missing[0]}.")
    return folder


def push(
    run: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    license: str | None = None,
) -> str:
    """Publish a run's adapter on the Hugging Face hub, in one commit.

    A README that the repository has already is kept. Otherwise the adapter's own is published: the model card, or what
    you have made of it.

    Args:
        run: a finished run, or an adapter's folder.
        repo: ``owner/name``; it is made if it is not there.
        private: make it visible to its owner alone. A repository that is there stays what it is.
        revision: branch; it is made if it is not there. By default ``main``.
        message: of the commit.
        license: for the model card, by the hub's name (``apache-2.0``).

    Returns:
        the address of the commit.

    Raises:
        UserError: if there is no adapter, it is of an earlier version, or the hub refuses it.
    """
    from losa_cache.sidenet.adapter_file import load_adapter, load_adapter_config

    require_repo(repo)
    config, files = load_adapter_config(Path(run)), find_files(Path(run))
    if not files.stands_alone:
        raise UserError(
            f"the adapter in {str(run)!r} is of an earlier version, which holds no frozen tail: train it again "
            "to publish it."
        )
    metrics, folder, hub = read_metrics(files.folder), files.folder, _hub()
    load_adapter(folder, config)  # what is published is whole
    if linked := [name for name in FILES if (folder / name).is_symlink()]:
        raise UserError(f"{str(folder / linked[0])!r} is a link, which may lead anywhere: put a file in its place.")
    own = (folder / CARD).read_text("utf-8", "replace") if (folder / CARD).exists() else ""
    edited = own not in ("", card(config, metrics))
    text = own if edited else card(config, metrics, license=license, repo=repo)
    with _said(f"adapter {str(run)!r} cannot be published as {repo!r}"):
        api = hub.HfApi(**_us())
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        added = [name for name in FILES if name != CARD and (folder / name).exists()]
        operations = [hub.CommitOperationAdd(name, str(folder / name)) for name in added]
        if not api.file_exists(repo, CARD, revision=revision):
            operations.append(hub.CommitOperationAdd(CARD, text.encode()))
        done = api.create_commit(
            repo, operations, commit_message=message or "Publish an adapter of losa-cache", revision=revision
        )
    return str(done.commit_url)


def _us() -> dict[str, str]:
    return {"library_name": "losa-cache", "library_version": version("losa-cache")}


def _hub() -> Any:
    with extra("huggingface_hub", "adapters on the Hugging Face hub need huggingface_hub", "hub"):
        import huggingface_hub
    return huggingface_hub


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Say in a sentence what the hub or the network refused; what it answers may hold addresses and tokens.

    Raises:
        UserError: in place of every error.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(f"{what}: its owner must let you read it first; ask on its page, and {LOG_IN}.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{what}: the repository is not there, or not for you to see; {LOG_IN}.") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{what}: it has no such revision.") from error
    except errors.LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _refused(what, error.__cause__) from error
        raise UserError(f"{what}: the hub is not reached, and no earlier copy is in its cache.") from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError(f"{what}: HF_HUB_OFFLINE forbids to ask the hub; unset it.") from error
    except errors.HfHubHTTPError as error:
        raise _refused(what, error) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} ({type(error).__name__}): see whether the hub is reached, and try again.") from error
    except Exception as error:  # the errors of its HTTP library, which is another one in every version
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        raise UserError(f"{what} ({type(error).__name__}): see whether the hub is reached, and try again.") from error


def _refused(what: str, error: Any) -> UserError:
    """Say with which status the hub refused."""
    status = None if error.response is None else error.response.status_code
    remedy = LOG_IN if status in (401, 403) else "try again later"
    return UserError(f"{what}: the hub answers with status {status}; {remedy}.")
