"""Jobs as files: one by its name (`PUT /namespaces/{namespace}/jobs/{name}`), or all that a document has
(`POST /jobs/apply`). Both may be repeated as often as one likes; what is equal is left alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Request, Response

from app.api.bodies import JsonRoute
from app.api.caller import CallerOf
from app.api.capable import StrictOf
from app.api.conditions import IfMatchOf
from app.api.documents import body_of, writing
from app.api.edits import checked, edited, made, parsed, settled, unchanged
from app.api.jobs import edit_done
from app.api.plane import Plane, PlaneOf
from app.api.queues import changed_queue, made_queue, queue_changes, shut_the_gate_for
from app.api.schemas.fields import Word
from app.api.schemas.files import EXAMPLE_FILE, MOST_JOBS, ApplyIn, PlanOut
from app.api.schemas.jobs import JobIn, JobOut
from app.api.schemas.queues import QueueIn
from app.api.writes import Done, json_response, write
from app.database import Connection, Record
from app.errors import Conflict, FieldError, Invalid
from app.schedule import definitions, queries
from app.schedule.definitions import Definition
from app.schedule.plan import OWNER, changes, escaped, stranger

router = APIRouter(tags=["jobs as files"], route_class=JsonRoute)

#: A header of the answer to a PUT by name: created, updated or unchanged.
OUTCOME: Final = "Jobplane-Outcome"
_MOST_FAULTS: Final = 100
_MOST_LABELS: Final = 64
_DONE: Final = {"create": "created", "update": "updated", "unchanged": "unchanged", "prune": "pruned"}
_WOULD: Final = {"create": "to create", "update": "to update", "unchanged": "unchanged", "prune": "to prune"}


class _Undone(Exception):
    """Ends a transaction without a trace; carries what it would have answered."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__()
        self.body = body


@router.put(
    "/namespaces/{namespace}/jobs/{name}",
    response_model=JobOut,
    responses={**writing(404, 409, 412), 201: {"model": JobOut, "description": "The job is new"}},
    openapi_extra=body_of("JobIn", "application/json", example=EXAMPLE_FILE["jobs"][0]),
)
async def put_job(
    plane: PlaneOf,
    caller: CallerOf,
    namespace: Annotated[Word, Path()],
    name: Annotated[Word, Path()],
    request: Request,
    if_match: IfMatchOf,
    strict: StrictOf = False,
) -> Response:
    """Make the job of this name, or give it this definition, from now on. Equal: nothing changes.

    `namespace` and `name` may be left out of the body; the header `Jobplane-Outcome` says created, updated or
    unchanged. What the body leaves out gets its default, but for `enabled` and the label `jobplane/owner`: those stay
    as they are.
    """
    body = _named(await request.json() if await request.body() else None, namespace, name)

    async def effect(connection: Connection, now: datetime) -> Done:
        await queries.lock_namespaces(connection, [namespace])
        found = await queries.lock_jobs_by_name(connection, [namespace], [name])
        job = found[0] if found else None
        if job is None:
            if_match.check_absent()
            done = edit_done(
                await made(plane, connection, now, checked(plane, body), caller.name, strict=strict), status=201
            )
            outcome = "created"
        else:
            if_match.check(job["version"])
            kept = {OWNER: job["labels"][OWNER]} if OWNER in job["labels"] else {}
            definition = checked(plane, _kept(body, job, {**kept, **body.labels}))
            outcome = "unchanged" if unchanged(job, definition) else "updated"
            done = edit_done(await edited(plane, connection, now, job, definition, caller.name, strict=strict))
        return Done(done.body, done.status, {**done.headers, OUTCOME: outcome}, done.runs, ring=done.ring)

    return await write(plane, effect)


@router.post("/jobs/apply", response_model=PlanOut, responses=writing(409))
async def apply_jobs(plane: PlaneOf, caller: CallerOf, body: ApplyIn, strict: StrictOf = False) -> Response:
    """Make what there is as the document says, all of it in one transaction, or nothing; the answer is the plan.

    A job is known by its namespace and name. A new definition holds from now on: nothing fires for the past. Pauses,
    what has run, and `enabled` where the document does not name it, stay as they are. A job of nobody becomes the
    owner's; one of another owner is a conflict (409), and nothing is applied. A dry run does all of it and takes it
    back.
    """

    async def effect(connection: Connection, now: datetime) -> Done:
        work = _Apply(plane, connection, now, body, caller.name, strict)
        plan = await work.run()
        if body.dry_run:
            raise _Undone(plan)
        return Done(plan, runs=work.runs, ring=plan["changed"])

    try:
        return await write(plane, effect)
    except _Undone as undone:
        return json_response(undone.body)


@dataclass(slots=True)
class _Apply:
    """One document, being applied in one transaction."""

    plane: Plane
    connection: Connection
    now: datetime
    body: ApplyIn
    author: str
    strict: bool
    runs: list[Record] = field(default_factory=list)
    faults: list[FieldError] = field(default_factory=list)

    async def run(self) -> dict[str, Any]:
        """The plan, carried out. Invalid with every fault of the document, Conflict."""
        body = self.body
        wanted = {self._key(job): index for index, job in reversed(list(enumerate(body.jobs or [])))}
        self._check(wanted)
        namespaces = sorted({body.namespace or "default", *(namespace for namespace, _ in wanted)})
        await queries.lock_namespaces(self.connection, namespaces)
        found = await queries.lock_jobs_by_name(
            self.connection,
            [namespace for namespace, _ in wanted],
            [name for _, name in wanted],
            namespaces if body.prune else [],
            body.owner,
        )
        there = {(job["namespace"], job["name"]): job for job in found}
        surplus = [job for key, job in there.items() if key not in wanted and self._pruned(job, namespaces)]
        if len(surplus) > MOST_JOBS:
            raise Invalid.field("/prune", f"would take away more than {MOST_JOBS} jobs at once")
        await shut_the_gate_for(self.connection, [one.name for one in body.queues or [] if one.max_active is not None])
        queues = [await self._queue(index, queue) for index, queue in enumerate(body.queues or [])]
        jobs = [await self._job(index, job, there.get(self._key(job))) for index, job in enumerate(body.jobs or [])]
        if self.faults:
            raise Invalid(*self.faults[:_MOST_FAULTS])
        conflicts = [item for item in jobs if item["action"] == "conflict"]
        if conflicts and not body.dry_run:
            told = "; ".join(f"{item['pointer']}: {item['reason']}" for item in conflicts[:5])
            raise Conflict(f"nothing was applied: {told}")
        jobs += [await self._prune(job) for job in surplus]
        actions = [item["action"] for item in [*queues, *jobs]]
        return {
            "owner": body.owner,
            "dry_run": body.dry_run,
            "changed": any(action not in {"unchanged", "conflict"} for action in actions),
            "summary": _summary(actions, dry_run=body.dry_run),
            "queues": queues,
            "jobs": jobs,
        }

    def _key(self, job: JobIn) -> tuple[str, str]:
        given = "namespace" in job.model_fields_set
        return (job.namespace if given else self.body.namespace or "default", job.name)

    def _pruned(self, job: Record, namespaces: Sequence[str]) -> bool:
        # One that was renamed while we waited for its lock may come back under a name that nobody asked for.
        return self.body.prune and job["namespace"] in namespaces and job["labels"].get(OWNER) == self.body.owner

    def _check(self, wanted: Mapping[tuple[str, str], int]) -> None:
        body = self.body
        if body.prune and body.owner is None:
            self.faults.append(FieldError("/owner", "is required to prune: only jobs of the same owner are taken away"))
        if body.prune and body.jobs is None:
            self.faults.append(FieldError("/jobs", "is required to prune; an empty list takes all of them away"))
        for index, job in enumerate(body.jobs or []):
            first = wanted[self._key(job)]
            if first != index:
                self.faults.append(FieldError(f"/jobs/{index}/name", f"is in the document already, as /jobs/{first}"))
            label = job.labels.get(OWNER)
            if body.owner is not None and label not in {None, body.owner}:
                place = f"/jobs/{index}/labels/{escaped(OWNER)}"
                self.faults.append(FieldError(place, f"must be the document's owner, {body.owner!r}, or left out"))
        if self.faults:
            raise Invalid(*self.faults[:_MOST_FAULTS])

    async def _queue(self, index: int, queue: QueueIn) -> dict[str, Any]:
        given = {name: getattr(queue, name) for name in QueueIn.model_fields if name in queue.model_fields_set}
        if self.body.namespace is not None:
            given.setdefault("namespace", self.body.namespace)
        row = await queries.queue_by_name(self.connection, queue.name)
        action, changed = "unchanged", []
        try:
            if row is None:
                action = "create"
                row = await made_queue(
                    self.plane, self.connection, self.now, QueueIn.model_validate(given), self.author
                )
            elif changed := [asdict(one) for one in queue_changes(self.plane, row, given)]:
                action = "update"
                row = await changed_queue(self.plane, self.connection, self.now, queue.name, given, self.author)
        except Invalid as error:
            self._fault(f"/queues/{index}", error)
        namespace = given.get("namespace", "default") if row is None else row["namespace"]
        return {"action": action, "namespace": namespace, "name": queue.name, "changes": changed}

    async def _job(self, index: int, body: JobIn, job: Record | None) -> dict[str, Any]:
        pointer, namespace = f"/jobs/{index}", self._key(body)[0]
        item: dict[str, Any] = {
            "action": "create",
            "namespace": namespace,
            "name": body.name,
            "pointer": pointer,
            "id": None,
            "version": None,
            "next_run_time": None,
            "changes": [],
            "warnings": [],
            "reason": None,
        }
        owner = self.body.owner or body.labels.get(OWNER)
        if job is not None and (theirs := stranger(job["labels"], owner)) is not None:
            reason = f"the job {namespace}/{body.name} belongs to the owner {theirs!r}"
            return {**item, **_standing(job), "action": "conflict", "reason": reason}
        labels = body.labels if owner is None else {**body.labels, OWNER: owner}
        try:
            if len(labels) > _MOST_LABELS:
                raise Invalid.field("/labels", f"are more than {_MOST_LABELS} with that of the owner")
            body = body.model_copy(update={"namespace": namespace})
            definition = checked(self.plane, _kept(body, job, labels))
            if job is not None and unchanged(job, definition):
                return {**item, **_standing(job), "action": "unchanged"}
            return {**item, **await self._write(job, definition)}
        except Invalid as error:
            self._fault(pointer, error)
            return item

    async def _write(self, job: Record | None, definition: Definition) -> dict[str, Any]:
        if job is None:
            done = await made(self.plane, self.connection, self.now, definition, self.author, strict=self.strict)
            standing = {**_standing(done.job), **({"id": None} if self.body.dry_run else {})}
            return {**standing, "action": "create", "warnings": done.warnings}
        done = await edited(self.plane, self.connection, self.now, job, definition, self.author, strict=self.strict)
        self.runs += done.runs
        changed = changes(Definition.of(job).document(), definition.document())
        return {
            **_standing(done.job),
            "action": "update",
            "changes": [asdict(one) for one in changed],
            "warnings": done.warnings,
        }

    async def _prune(self, job: Record) -> dict[str, Any]:
        job, runs = await settled(self.connection, self.now, job["id"])
        await definitions.delete(self.connection, self.now, job)
        self.runs += runs
        return {
            "action": "prune",
            "namespace": job["namespace"],
            "name": job["name"],
            "pointer": None,
            **_standing(job),
            "next_run_time": None,
            "changes": [],
            "warnings": [],
            "reason": None,
        }

    def _fault(self, pointer: str, error: Invalid) -> None:
        self.faults += [FieldError(f"{pointer}{one.pointer}", one.detail) for one in error.errors]


def _kept(body: JobIn, job: Record | None, labels: Mapping[str, str]) -> JobIn:
    """The body with these labels; what it does not say of `enabled` stays as it is."""
    update: dict[str, Any] = {"labels": dict(labels)}
    if job is not None and "enabled" not in body.model_fields_set:
        update["enabled"] = job["enabled"]
    return body.model_copy(update=update)


def _named(body: Any, namespace: str, name: str) -> JobIn:
    """The body of a PUT by name. Invalid if it names another job."""
    if not isinstance(body, dict):
        raise Invalid.field("", "a JSON object with the definition is required")
    path = {"namespace": namespace, "name": name}
    faults = [
        FieldError(f"/{member}", f"must be {value!r}, as in the address, or left out")
        for member, value in path.items()
        if body.get(member, value) != value
    ]
    if faults:
        raise Invalid(*faults)
    return parsed({**body, **path})


def _standing(job: Mapping[str, Any]) -> dict[str, Any]:
    return {name: job[name] for name in ("id", "version", "next_run_time")}


def _summary(actions: Iterable[str], *, dry_run: bool) -> str:
    found = list(actions)
    words = {**(_WOULD if dry_run else _DONE), "conflict": "in conflict"}
    told = [f"{found.count(action)} {word}" for action, word in words.items() if action in found]
    return ", ".join(told) or "nothing in the document"
