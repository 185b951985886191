"""Files of a dataset repository of the hub: listed, downloaded, and compared with what the hub says they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_cpt.remote import Unreachable


@dataclass(frozen=True)
class Offer:
    """What a repository has at one commit.

    Args:
        repository: Its name, such as ``cais/mmlu``.
        commit: The commit's hash.
        files: What the hub says of each file, by path.
    """

    repository: str
    commit: str
    files: Mapping[str, Any]


def offer(repository: str, revision: str = "main") -> Offer:
    """What the hub has of a repository; nothing where it has no such revision.

    Raises:
        Unreachable: The hub refuses the repository, or does not answer.
    """
    from huggingface_hub import HfApi, errors
    from huggingface_hub.hf_api import RepoFile

    with refusals(repository):
        try:
            commit = HfApi().dataset_info(repository, revision=revision).sha
        except errors.RevisionNotFoundError:
            return Offer(repository, "", {})
        listed = HfApi().list_repo_tree(repository, recursive=True, revision=commit, repo_type="dataset")
        return Offer(repository, str(commit), {one.path: one for one in listed if isinstance(one, RepoFile)})


def take(offered: Offer, paths: Sequence[str], target: Path) -> None:
    """Bring files into a folder; those that are there already, as the hub has them, are not brought again.

    The hub's client takes a file with an unchanged time for a whole one, and a folder for what was asked where the hub
    does not answer. So every file is compared with the hub's hash, before and after.

    Args:
        offered: The repository at a commit.
        paths: Those of its files that are wanted.
        target: Folder of the repository in the mirror.

    Raises:
        Unreachable: The hub does not answer, or what arrived is not what it offers.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    wanted = [path for path in paths if not is_as_offered(target / path, offered.files[path])]
    place: dict[str, Any] = {"repo_type": "dataset", "revision": offered.commit, "local_dir": target}
    with refusals(offered.repository):
        for path in wanted:
            if (target / path).is_file():
                hf_hub_download(offered.repository, path, force_download=True, **place)
        missing = [path for path in wanted if not (target / path).is_file()]
        if missing:
            snapshot_download(offered.repository, allow_patterns=missing, **place)
    damaged = [path for path in wanted if not is_as_offered(target / path, offered.files[path])]
    if damaged:
        raise Unreachable(f"{offered.repository} did not arrive whole: {damaged[0]} and {len(damaged) - 1} others are "
                          "not what the hub offers. Run the same command again: what has arrived is kept.")


def is_as_offered(path: Path, offered: Any) -> bool:
    """Whether a file has the content that the hub tells of: sha256 of large files, git's hash of others."""
    if not path.is_file() or path.stat().st_size != offered.size:
        return False
    content = path.read_bytes()
    if offered.lfs is not None:
        return hashlib.sha256(content).hexdigest() == str(offered.lfs.sha256)
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == str(offered.blob_id)


@contextmanager
def refusals(repository: str) -> Iterator[None]:
    """Within it, whatever the hub or the way to it refuses is an `Unreachable` that names the cure.

    Raises:
        Unreachable: In place of the client's many errors; those of this machine's disk stay as they are.
    """
    from huggingface_hub import constants, errors

    def unreachable(what: str, cure: str) -> Unreachable:
        return Unreachable(f"{repository} cannot be fetched: {what}. {cure}")

    elsewhere = "Fetch on a machine with a connection and copy the mirror, or name another hub with HF_ENDPOINT."
    if constants.is_offline_mode():
        raise unreachable("HF_HUB_OFFLINE is set", "Unset it on a machine with a connection, and copy the mirror from "
                          "there.")
    try:
        yield
    except Exception as error:
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500:
            raise unreachable(f"{constants.ENDPOINT} refuses it ({cause(error)})", "If it asks for an account, accept "
                              "its terms on the hub and log in with `hf auth login`.") from error
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # a full disk, a folder that cannot be written
        raise unreachable(f"{constants.ENDPOINT} does not answer ({cause(error)})", elsewhere) from error


def cause(error: BaseException) -> str:
    """What lies at the bottom of an error, in a line."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
