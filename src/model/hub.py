"""The hub and its cache on this machine: the commit that a name stands for, the cached files, and messages for missing
ones.

A name like `main` moves, so `pin` turns it into a commit once, before anything is loaded. The record keeps the commit,
and all later loads of the run ask for it. Neither torch nor transformers is needed here.
"""

import contextlib
import functools
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from src.console.cli import UserError, nearest
from src.console.start import find
from src.files.paths import RESULTS, listed_runs, run_names
from src.files.reading import read_json
from src.model.recipes import Recipe

ANSWER = "CCI_HUB"
"""Environment variable with what a command found out for those that it starts: why the hub does not answer, or ""."""
SECONDS = 6
"""Seconds after which a hub that has not answered counts as unreachable."""
PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
COMMIT = re.compile(r"[0-9a-f]{40}")
Commits = Mapping[str, str | None]
"""The commits that a run was loaded at, by the keys of its record: `base_revision` and `tokenizer_revision`."""


def is_hub_id(source: str) -> bool:
    """Whether `source` names a repository of the hub, and not a folder (existing or not)."""
    return not Path(find(source)).is_dir() and not source.startswith(("/", "./", "../", "~"))


# Which commit


def pin(recipe: Recipe, began: Commits | None = None) -> Recipe:
    """`recipe` with the commits at which base model and tokenizer are loaded.

    These are the commits that a run `began` with (its inputs.json or record). For a new run, they are the hub's current
    commits of the revision, or the cache's where the hub does not answer. Prints a line when the hub now has another
    commit than the run began with.
    """
    began = began or {}
    found = {}
    sources = [(recipe.model_id, "revision", "base_revision")]
    if recipe.tokenizer:
        sources.append((recipe.tokenizer, "tokenizer_revision", "tokenizer_revision"))
    for source, setting, kept in sources:
        asked, then = getattr(recipe, setting), began.get(kept)
        found[setting] = then or find_commit(source, asked) or asked
        if then and (now := _commit_now(source, asked)) not in (None, then):
            print(f"{source}: {asked or 'main'} is commit {now} now; this goes on with {then}, which it began with")
    return recipe.replace(**found)


def commits(pinned: Recipe) -> dict[str, str | None]:
    """The record's keys for the commits of a recipe that `pin` returned; None for folders, which have none."""
    found = {"base_revision": (pinned.model_id, pinned.revision)}
    if pinned.tokenizer:
        found["tokenizer_revision"] = (pinned.tokenizer, pinned.tokenizer_revision)
    return {
        key: revision if revision and COMMIT.fullmatch(revision) and is_hub_id(source) else None
        for key, (source, revision) in found.items()
    }


@functools.cache
def find_commit(source: str, revision: str | None = None) -> str | None:
    """The commit that `revision` (`main` by default) of a repository stands for; None for a folder.

    The hub is asked once, or the cache where the hub does not answer. UserError when neither knows.
    """
    if not is_hub_id(source):
        return None
    from huggingface_hub import HfApi, errors

    with messages(source, revision):
        try:
            return HfApi().resolve_revision(source, revision=revision, local_files_only=bool(unreachable())).resolved
        except errors.RevisionResolutionError:
            alone = _only_snapshot(source) if unreachable() and revision is None else None
            if alone is None:
                raise
            return alone


def _commit_now(source: str, revision: str | None) -> str | None:
    """As `find_commit`, but None when it cannot be known."""
    try:
        return None if unreachable() else find_commit(source, revision)
    except UserError:
        return None


def _only_snapshot(source: str) -> str | None:
    """The one commit in the cache of a repository that was copied there without its branch names; None when there is
    not exactly one.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source, repo_type="model") / "snapshots"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return names[0] if len(names) == 1 else None


# What the cache holds


def is_cached(model_id: str, revision: str | None = None) -> bool:
    """Whether the hub's cache on this machine holds every weight file of `model_id`. Does not use the network."""
    if cached_file(model_id, "model.safetensors", revision):
        return True
    index = cached_file(model_id, "model.safetensors.index.json", revision)
    if index is None:
        return False
    try:
        shards = set(read_json(index)["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):  # a damaged index: loading will say so
        return False
    return all(cached_file(model_id, shard, revision) for shard in shards)


def cached_file(model_id: str, name: str, revision: str | None) -> Path | None:
    """A file of the hub's cache on this machine; None when it is not there. Does not use the network."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model_id, name, revision=revision)
    except errors.HFValidationError:  # neither a folder nor a hub id
        return None
    return Path(found) if isinstance(found, str) else None


def check_there(recipe: Recipe, began: Commits | None = None) -> None:
    """UserError when neither this machine nor the hub has the base model. Only its config is looked for, which needs no
    torch. began: as in `pin`.
    """
    source = recipe.model_id
    if not is_hub_id(source):
        return
    commit = (began or {}).get("base_revision") or find_commit(source, recipe.revision)
    if cached_file(source, "config.json", commit):
        return
    if unreachable():
        raise UserError(_not_here(source, commit or recipe.revision, unreachable()))
    from huggingface_hub import HfApi, hf_hub_download

    with messages(source, commit):
        hf_hub_download(source, "config.json", revision=commit)
        there = HfApi().list_repo_files(source, revision=commit)
    if not any(name.endswith(".safetensors") for name in there):
        raise UserError(no_safetensors(source, there))


# Whether the hub answers


@functools.cache
def unreachable() -> str:
    """Why the hub cannot be reached; empty when it can. Tried once per command and all that it starts (`handed_on`),
    since libraries would try for a minute each time.
    """
    from huggingface_hub import constants

    if ANSWER in os.environ:
        return os.environ[ANSWER]
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    found = [f"{constants.ENDPOINT} did not answer within {SECONDS} s{_network_settings()}"]

    def ask() -> None:
        try:
            from huggingface_hub import get_session

            get_session().head(constants.ENDPOINT, timeout=SECONDS)
            found[0] = ""
        except Exception as error:  # proxies, certificates and name servers raise errors of many kinds
            found[0] = _reason(error, constants.ENDPOINT)

    # The timeout does not hold for name servers that do not answer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS + 1)
    return found[0]


def handed_on(recipes: Iterable[Recipe]) -> dict[str, str]:
    """The environment for commands that train or score these recipes: they take this command's word for whether the hub
    answers. Nothing where none of their models is of the hub, which is not asked then.
    """
    sources = [source for recipe in recipes for source in (recipe.model_id, recipe.tokenizer) if source]
    return {ANSWER: unreachable()} if any(map(is_hub_id, sources)) else {}


def _reason(error: BaseException, endpoint: str) -> str:
    """Why the hub does not answer, with the environment variable that causes it, if one does."""
    set_proxies = {name: value for name, value in _variables(PROXIES).items() if value}
    text = masked(str(error).splitlines()[0] if str(error) else type(error).__name__)
    for name, value in set_proxies.items():
        if value.startswith("socks") and "socksio" in str(error):
            return f"{name} names the SOCKS proxy {masked(value)}, for which a package is missing: pip install socksio"
        if "proxy" in str(error).lower() and value.split("://")[0] in str(error):
            return f"{name} is {masked(value)}, which is no proxy that can be used here: {text}"
    if isinstance(error, OSError):  # the client could not read a file that a variable names
        for name, value in _variables(CERTIFICATES[:2]).items():
            return f"{name} is {value}, where certificates cannot be read: {text}"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        text += ". A network that signs by itself needs its certificate's file in SSL_CERT_FILE"
    return f"{endpoint} does not answer: {text}{_network_settings()}"


def _network_settings() -> str:
    """The environment variables that decide how the hub is asked, and which of them name a missing file."""
    words = [f"{name} is {masked(value)}" for name, value in _variables(PROXIES).items()]
    words += [
        f"{name} is {value}, which is not there"
        for name, value in _variables(CERTIFICATES).items()
        if not Path(value).exists()
    ]
    return f" ({'; '.join(words)})" if words else ""


def _variables(names: tuple[str, ...]) -> dict[str, str]:
    """Those of `names` that are set, in upper or lower case."""
    return {name: os.environ[name] for one in names for name in (one, one.lower()) if os.environ.get(name)}


def masked(text: str) -> str:
    """`text` without the passwords of its addresses."""
    return re.sub(r"://[^/@\s]*@", "://…@", text)


# Messages


@contextlib.contextmanager
def messages(source: str, revision: str | None = None) -> Iterator[None]:
    """Within, the hub's exceptions become a UserError that names the page to visit; tokens are never printed."""
    import httpx
    from huggingface_hub import errors
    from safetensors import SafetensorError

    own = errors.RevisionResolutionError, errors.StrictDataclassError
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError, httpx.HTTPError, *own) as error:
        raise UserError(_message(source, revision, error)) from error


def _message(source: str, revision: str | None, error: Exception) -> str:
    """The message for an exception of the hub's libraries, or one that they raised another from."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{source}"
    chain: list[BaseException] = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 10:
        chain.append(below)
    kinds = tuple(type(one) for one in chain)
    unknown = errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.RevisionResolutionError
    lines = str(error).splitlines() or [type(error).__name__]
    if "trust_remote_code" in str(error):
        return f"{source} needs Python code of its own. Read it; if you trust it, add --trust_remote_code."
    if isinstance(error, errors.StrictDataclassError):
        return f"{source}: its config.json is not sound: {' '.join(str(error).split())}"
    if Path(find(source)).is_dir():
        return f"{source} holds no complete model: {lines[0]}"
    if not is_hub_id(source):
        return f"there is no folder {source}."
    if errors.GatedRepoError in kinds:
        return f"{source} is gated: accept its terms at {page}, then log in with `hf auth login`."
    if any(issubclass(kind, unknown) for kind in kinds):
        return _not_here(source, revision, unreachable() or masked(str(chain[-1]).splitlines()[0]))
    if errors.RepositoryNotFoundError in kinds or errors.HFValidationError in kinds:
        here = f"{source} is neither a local folder nor a model that you can see on the hub ({page})."
        return here + _runs_like(source)
    if errors.RevisionNotFoundError in kinds:
        return f"{source} has no such revision{f' ({revision})' if revision else ''}; see {page}/commits/main."
    if errors.EntryNotFoundError in kinds or errors.RemoteEntryNotFoundError in kinds:
        return f"{source} is no model that can be loaded: it has no config.json; see {page}/tree/main."
    return f"{source} cannot be loaded: {masked(lines[0])}"


def no_safetensors(source: str, there: Sequence[str]) -> str:
    """The message for a folder or repository with the files `there`, none of which holds weights in safetensors."""
    pickles = [name for name in there if name.endswith((".bin", ".pt", ".pth"))]
    found = pickles + [name for name in there if name.endswith((".gguf", ".safetensors"))]
    message = f"{source} holds no complete model: there is no model.safetensors"
    message += f"; found {', '.join(found[:5])}{' …' if len(found) > 5 else ''}." if found else "."
    if pickles:
        message += (
            " Pickles (.bin, .pt, .pth) are not read, since they can run code. "
            "Where you trust it, convert it: in Python, "
            f"transformers.AutoModelForCausalLM.from_pretrained({source!r}, use_safetensors=False)"
            ".save_pretrained(FOLDER)."
        )
    return message


def _not_here(source: str, revision: str | None, reason: str) -> str:
    at = f" at commit {revision}" if revision else ""
    download = f"hf download {source}" + (f" --revision {revision}" if revision else "")
    return (
        f"{source}{at} is not on this machine and the hub cannot be reached. The reason: {reason}. "
        f"Where there is a network run `{download}` and copy the cache, or give a local folder as --model_id."
        + _runs_like(source)
    )


def _runs_like(name: str) -> str:
    """A sentence with the existing runs, for a name that may have been meant as a run's."""
    runs = run_names(RESULTS) if "/" not in name else []
    return f" There is no run {name} either; runs here: {listed_runs(runs)}.{nearest(name, runs)}" if runs else ""
