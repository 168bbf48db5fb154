"""Downloads a repository of the Hugging Face hub: only the requested files, and only once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from convert.errors import JobError, UsageError

FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""Endings of model files, which ids do not have."""
PATIENCE = 10.0
"""Seconds to wait for the hub's first answer."""

Choose = Callable[[list[str]], list[str]]
"""Chooses the needed files from all file names; raises UsageError or JobError if some are missing."""


def is_id(name: str) -> bool:
    """Whether `name` has the form of a hub id, `owner/model` or `owner/model@revision`, and is not a file or folder name."""
    repository, _ = split(name)
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", repository) is not None and not repository.lower().endswith(FILES)


def advice(name: str) -> str:
    """For the address of a model's page on the hub, what to give instead of it; "" for any other name, a file's address too."""
    page = re.match(r"https?:/+(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/tree/[^/]+)?/?$", name)
    return f"is a web address: give the model's name on the hub, {page[1]}" if page else ""


def split(name: str) -> tuple[str, str | None]:
    """`owner/model@revision` -> (`owner/model`, branch, tag or commit); None if the name has no `@`: its main branch."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def cached(name: str, choose: Choose, landmark: str = "unet/config.json") -> tuple[Path, str] | None:
    """The snapshot folder of model `name` and its commit if every chosen file is in the cache. Does not use the network.

    landmark: a file that every such model has, used to find its snapshot.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository, revision = split(name)
    try:  # by one file: newer clients report a snapshot without the files that we skipped as incomplete
        found = try_to_load_from_cache(repository, landmark, revision=revision)
        if not isinstance(found, str):
            return None
        folder = Path(found).parents[landmark.count("/")]
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        chosen = choose(names)
    except (HFValidationError, UsageError, JobError):
        return None  # missing or incomplete: ask the hub
    return (folder, folder.name) if all(name in names for name in chosen) else None


def download(name: str, choose: Choose, say: Callable[[str], None], landmark: str = "unet/config.json") -> tuple[Path, str]:
    """The folder of model `name`'s chosen files and its commit, from the cache or else from the hub.

    say: is called before a long download, once the hub has answered. landmark: as in `cached`.

    Raises:
        UsageError: the hub has no such repository, or this user may not read it.
        JobError: the hub cannot be reached, or the download was interrupted.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import errors as hub

    if found := cached(name, choose, landmark):
        return found
    repository, revision = split(name)
    try:
        information = HfApi().model_info(repository, revision=revision, timeout=PATIENCE)
        chosen = choose([sibling.rfilename for sibling in information.siblings or []])
        # by branch, not by commit, so that the cache records the commit of `main` and the next run works offline
        say(f"{name}: downloading from the hub into its cache (a few GB, once)")
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=chosen, etag_timeout=PATIENCE))
    except (UsageError, JobError):
        raise
    except hub.GatedRepoError as error:
        raise UsageError(f"{repository}: its owner asks you to accept terms: do so on its page, "
                         f"https://huggingface.co/{repository}, then run `hf auth login`") from error
    except hub.RevisionNotFoundError as error:
        raise UsageError(f"{name}: the hub's {repository} has no branch, tag or commit {revision!r}") from error
    except (hub.RepositoryNotFoundError, hub.HFValidationError) as error:
        raise UsageError(f"{repository}: is neither a file or folder here nor a model on the hub that you may read: "
                         "check the spelling, or run `hf auth login` if it is private") from error
    except Exception as error:  # any network library's errors: the hub's client has used several
        raise JobError(f"{repository}: cannot be downloaded from the hub ({_reason(error)}), and its cache is incomplete"
                       ) from error
    return folder, folder.name


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160].rstrip(".") if lines else type(error).__name__
