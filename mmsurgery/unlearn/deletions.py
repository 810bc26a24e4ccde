"""Deletion requests: whom each unlearned model was made to forget, and whom the models before it forgot.

A request lies in `requests/DIGEST.json`, named by the digest of its people; run records name the digest
alone, so that a model, or a patch of it, tells nobody who is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmsurgery.artifacts.checkpoint import RUN_FILE
from mmsurgery.artifacts.files import read_json, write_json
from mmsurgery.data.samples import Sample
from mmsurgery.errors import InputRefused, MissingArtifact, UsageError
from mmsurgery.provenance import SCHEMA, check_seal, seal, sha256_json
from mmsurgery.unlearn.record import read_record
from mmsurgery.workspace import Workspace


def people_of(samples: Iterable[Sample]) -> list[str]:
    """The people that samples are about, sorted."""
    return sorted({sample.person for sample in samples})


def digest_of(people: Sequence[str]) -> str:
    """The identity of a request."""
    return sha256_json(list(people))


def write_request(workspace: Workspace, people: Sequence[str]) -> str:
    """Keep a request in the workspace; returns its digest."""
    digest = digest_of(people)
    record = {"schema": SCHEMA, "kind": "request", "people": list(people), "provenance": {}}
    write_json(workspace.request_path(digest), seal(record))
    return digest


def read_request(workspace: Workspace, model: str) -> list[str]:
    """The people that an unlearned model was made to forget, in its own run.

    Raises:
        MissingArtifact: if there is no such model, or its request is gone.
        UsageError: if the model forgot nobody.
        InputRefused: if record or request are damaged.
    """
    record = read_record(workspace.existing_model(model))
    digest = record.get("request")
    if not isinstance(digest, str):
        raise UsageError(f"model '{model}' was made to forget nobody", "name an unlearned model")
    path = workspace.request_path(digest)
    if not path.exists():
        raise MissingArtifact(
            f"{path.name}, which says whom '{model}' was made to forget, is gone from {path.parent}",
            f"bring it back, or make '{model}' again",
        )
    people = check_seal(read_json(path), str(path), kind="request").get("people")
    if not isinstance(people, list) or digest_of(people) != digest:
        raise InputRefused(f"{path} is not the request of '{model}'", f"bring it back, or make '{model}' again")
    return [str(person) for person in people]


def earlier_requests(workspace: Workspace, start: str) -> dict[str, list[str]]:
    """Model -> whom it forgot, for `start` and every unlearned model that it was made from, newest first.

    Raises:
        as `read_request`; MissingArtifact also if a model of the chain is gone.
    """
    found: dict[str, list[str]] = {}
    seen, name = set(), start
    while name not in seen and (workspace.existing_model(name) / RUN_FILE).exists():
        record = read_record(workspace.existing_model(name))
        if record["method"] == "finetune":
            break
        if isinstance(record.get("request"), str):  # an adapter that was merged in between forgot nobody
            found[name] = read_request(workspace, name)
        seen.add(name)
        name = str(record["start"])
    return found
