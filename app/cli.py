"""The command `jobplane`: up | api | scheduler | worker | migrate | watch | doctor | apply | export | import."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from app.embedded import EmbeddedError
from app.settings import Settings, SettingsError, UpSettings, child_environment
from workers import protocol

cli = typer.Typer(
    name="jobplane",
    help="A control plane for scheduled and ad-hoc Celery jobs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@cli.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address of the API, by default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API, by default 8000; 0 takes a free one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Data, passwords and logs, by default .jobplane.")] = None,
    broker: Annotated[str | None, typer.Option(help="Broker to use instead of the embedded Valkey.")] = None,
    queues: Annotated[str, typer.Option(help="Queues of the one worker, comma separated.")] = "default",
) -> None:
    """The whole plane on this machine: database, Redis, API, scheduler and one worker."""
    from app.up import UpError, up

    options = {"host": host, "port": port, "data_dir": data_dir, "broker_url": broker}
    try:
        settings = UpSettings.load(**{name: value for name, value in options.items() if value is not None})
        up(settings, [name.strip() for name in queues.split(",") if name.strip()])
    except (UpError, EmbeddedError) as error:
        _refuse(error)


@cli.command()
def api() -> None:
    """The API process; any number behind a load balancer."""
    from app.main import serve

    serve(Settings.load())


@cli.command()
def scheduler() -> None:
    """The control process: tick, dispatch, record, reap. Any number; none leads."""
    from app.scheduler import serve

    serve(Settings.load())


@cli.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def worker(
    context: typer.Context,
    queues: Annotated[
        str | None, typer.Option("--queues", "-Q", help="Queues, comma separated; by default JOBPLANE_WORKER_QUEUES.")
    ] = None,
    hostname: Annotated[
        str | None, typer.Option("--hostname", "-n", help="A node name that no other worker has; by default our PID's.")
    ] = None,
) -> None:
    """A Celery worker with our base task; further options go to `celery worker`."""
    ours = Path(protocol.__file__).resolve().parent
    for found in (Path.cwd() / "workers", Path.cwd() / "workers.py"):
        # Celery puts this folder first on the path, so that teams may keep their tasks here.
        if found.exists() and found.resolve() != ours:
            _refuse(f"{found} hides jobplane's package of that name; start the worker in another folder")
    celery = [sys.executable, "-P", "-m", "celery", "--quiet", "-A", "workers.app"]
    # Two workers of one name would overwrite each other's word on what they consume. Celery keeps our process id.
    command = [*celery, "worker", "-n", hostname or f"jobplane-{os.getpid()}@%h", *context.args]
    command += ["-Q", queues] if queues else []
    if not any(option.startswith(("-l", "--loglevel")) for option in context.args):
        # Below Celery's own WARNING, so that what a task says by `log.info` is made at all, and kept with its run.
        command += ["-l", "INFO"]
    os.execve(sys.executable, command, child_environment({}))  # noqa: S606


@cli.command("worker-health")
def worker_health(
    live: Annotated[
        bool, typer.Option("--live", help="Waiting for a broker or Redis that cannot be reached is no trouble.")
    ] = False,
) -> None:
    """Whether the workers of this machine or container consume; exit status 1 if not."""
    command = [sys.executable, "-P", "-m", "workers.health", *(["--live"] if live else [])]
    os.execve(sys.executable, command, child_environment({}))  # noqa: S606


@cli.command()
def migrate(revision: Annotated[str, typer.Argument(help="Where to go to.")] = "head") -> None:
    """Bring the database to the newest schema; two at once wait for each other."""
    from app.database import AWAY
    from app.migrate import upgrade

    settings = Settings.load()
    try:
        upgrade(settings.database_url.get_secret_value(), revision)
    except AWAY as error:
        _refuse(f"the database cannot be reached: {error}")


@cli.command()
def watch(
    run_id: Annotated[str, typer.Argument(help="The run to follow.")],
    url: Annotated[str, typer.Option(help="Where the API is.", envvar="JOBPLANE_URL")] = "http://127.0.0.1:8000",
    logs: Annotated[bool, typer.Option(help="Show what the run logs and prints.")] = True,
) -> None:
    """Follow a run and its log in the terminal; exit status 0 on SUCCESS."""
    from app.watch import watch

    raise typer.Exit(asyncio.run(watch(url, run_id, logs=logs)))


@cli.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="A list of {code, level, subject, says, do}.")] = False,
) -> None:
    """Say what will bite: reads how live workers are set, and what broker, Redis and database hold.

    Exit status 0 if nothing will, 1 if something does, 2 if a part could not be looked at.
    """
    from app.doctor.command import doctor

    raise typer.Exit(doctor(Settings.load(), as_json=as_json))


UrlOption = Annotated[str, typer.Option("--url", help="Where the API is.", envvar="JOBPLANE_URL")]
_URL: Final = "http://127.0.0.1:8000"


@cli.command()
def apply(
    file: Annotated[str, typer.Argument(help="YAML or JSON with `queues` and `jobs`; - is the standard input.")],
    owner: Annotated[str | None, typer.Option(help="Whose jobs these are; goes before the file's `owner`.")] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Take away the owner's jobs that the file has not.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    url: UrlOption = _URL,
) -> None:
    """Make the plane have the jobs of a file, all of them or none, and say what changed; exit status 1 if refused."""
    from app.jobfiles.apply import apply

    _or_refused(lambda: apply(url, file, owner=owner, prune=prune, dry_run=dry_run))


@cli.command()
def export(
    namespace: Annotated[str | None, typer.Option(help="Only its jobs and queues.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only the jobs of this owner.")] = None,
    url: UrlOption = _URL,
) -> None:
    """Print what the plane has as YAML that `jobplane apply` takes back unchanged."""
    from app.jobfiles.apply import export

    _or_refused(lambda: export(url, namespace=namespace, owner=owner))


@cli.command("import")
def import_(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="A Celery app, or a beat_schedule.")],
    namespace: Annotated[str | None, typer.Option(help="Of the jobs and queues.")] = None,
    owner: Annotated[str | None, typer.Option(help="Whose jobs these are.")] = None,
    queue: Annotated[str | None, typer.Option(help="For entries that name none; by default the app's own.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Of cron entries; by default the app's own.")] = None,
) -> None:
    """Print Celery's beat_schedule as YAML for `jobplane apply`, and say what differs.

    Exit status 1 if an entry had to be left out.
    """
    from app.jobfiles.imports import import_schedule

    _or_refused(lambda: import_schedule(target, namespace=namespace, owner=owner, queue=queue, timezone=timezone))


def _or_refused(command: Callable[[], None]) -> None:
    from app.jobfiles.refusals import Refused

    try:
        command()
    except Refused as refused:
        for line in refused.lines:
            print(f"jobplane: {line}", file=sys.stderr)
        raise typer.Exit(refused.status) from None


def _refuse(why: object) -> NoReturn:
    print(f"jobplane: {why}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    """The console script; a wrong setting ends it with one line that names the setting."""
    try:
        cli()
    except SettingsError as error:
        _refuse(error)


if __name__ == "__main__":
    main()
