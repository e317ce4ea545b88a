# One image for every role: `api`, `scheduler`, `worker -Q a,b`, `migrate`.
# tests/test_packaging.py carries out the install commands below without Docker.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS tools
WORKDIR /build
COPY requirements-build.txt ./
RUN ["python", "-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore", "--require-hashes", "--only-binary=:all:", "-r", "requirements-build.txt"]

FROM tools AS wheel
COPY pyproject.toml README.md alembic.ini ./
COPY alembic ./alembic
COPY workers ./workers
COPY app ./app
RUN ["python", "-m", "hatchling", "build", "-t", "wheel", "-d", "/build/dist"]

FROM tools AS environment
COPY requirements.txt ./
RUN ["python", "-m", "venv", "--without-pip", "/opt/jobplane"]
RUN ["uv", "pip", "install", "--python", "/opt/jobplane/bin/python", "--compile-bytecode", "--require-hashes", "--no-build", "-r", "requirements.txt"]
COPY --from=wheel /build/dist ./dist
RUN ["uv", "pip", "install", "--python", "/opt/jobplane/bin/python", "--compile-bytecode", "--no-deps", "--no-index", "--find-links", "/build/dist", "jobplane"]

FROM python:${PYTHON} AS runtime
LABEL org.opencontainers.image.title="jobplane" \
      org.opencontainers.image.description="A control plane for scheduled and ad-hoc Celery jobs"
COPY --from=environment /opt/jobplane /opt/jobplane
# The default log store. A new volume that is mounted here takes over its owner, so that every role may write.
RUN ["install", "--directory", "--owner=10001", "--group=10001", "--mode=0700", "/var/lib/jobplane"]
# Nothing else is written outside of /tmp, so the root file system may be read-only.
ENV PATH="/opt/jobplane/bin:${PATH}" \
    HOME="/tmp" \
    PYTHONUNBUFFERED="1" \
    PYTHONDONTWRITEBYTECODE="1" \
    PYTHONFAULTHANDLER="1"
# A worker finds task modules of your own here: derive an image, or mount them.
WORKDIR /srv/tasks
USER 10001:10001
EXPOSE 8000
# SIGTERM lets every role finish what it has in hand; a worker hands back what is not done in time.
STOPSIGNAL SIGTERM
# No HEALTHCHECK here, because it would hold for every role and they differ:
#   api        GET /healthz (see compose.yaml); /readyz also asks the parts that it needs
#   scheduler  /readyz of any api names each living scheduler and what is wrong with its loops
#   worker     `jobplane worker-health` (see compose.yaml); as a liveness probe with --live, for it connects again by itself
#   migrate    ends by itself
ENTRYPOINT ["jobplane"]
CMD ["--help"]
