"""The web application's parts put together; create_app() calls it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from flask import Flask, Request
from flask_sqlalchemy import SQLAlchemy

from orqo import clock, dashboard, db, description, instance, logs, metrics, problems, runs, simulation
from orqo.api import callback, endpoints, health, hooks, measured, nouns, simulated
from orqo.api import metrics as metrics_api
from orqo.api.site import Site
from orqo.api.validation import Validators
from orqo.config import Config
from orqo.models import Base
from orqo.queue import Bell
from orqo.secretstore import SecretStore
from orqo.workflows import Definitions

log = logging.getLogger(__name__)

THE_THREE = (endpoints.blueprint, hooks.blueprint, callback.blueprint)
ASCII = "".join(map(chr, range(128)))


class TolerantRequest(Request):
    """Flask's request, which a byte beyond ASCII in the query string does not break: reading `args` would be a 500."""

    def __init__(self, environ: dict[str, Any], *arguments: Any, **options: Any) -> None:
        query = environ.get("QUERY_STRING", "")
        if not query.isascii():
            environ["QUERY_STRING"] = quote(query.encode("latin-1", "replace"), safe=ASCII)
        super().__init__(environ, *arguments, **options)


class Application(Flask):
    """Flask's application, which asks no function whether it is a coroutine: none of ours is."""

    request_class = TolerantRequest

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Give the function as it is."""
        return func


def started(config: Config, *, counts_as: str | None = None) -> Flask:
    """Make this process a web process of these settings and give its application, ready to answer. Raises as `assemble` does.

    `counts_as` is what its parent began to count under; its counts then outlive it.
    """
    logs.install(config.log_level, config.log_format)
    if counts_as is None:
        metrics.begin(config.data, "web")
    else:
        metrics.join(config.data, counts_as)
    app = assemble(config)
    dashboard.warm(app)
    return app


def assemble(config: Config) -> Flask:
    """Give the application; the database must exist and be of this release's version."""
    description.warm()
    app = Application("orqo", static_folder=None, template_folder=None)
    app.config["SQLALCHEMY_DATABASE_URI"] = config.database_url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = db.engine_options(config.database_url)
    # OPTIONS is a method like any other here: 405 where a path does not take it.
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.json.sort_keys = False  # type: ignore[attr-defined]
    # A redirect from // to / would tell which paths exist, and a POST would lose its body.
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = True
    sessions = SQLAlchemy(app, metadata=Base.metadata)
    with app.app_context():
        database = db.Database(sessions.engine, busy_timeout_ms=db.WEB_BUSY_TIMEOUT_MS, accepts=True)
    app.extensions["orqo"] = _site(config, database)
    metrics.watch(database)
    # First of all that is done before a request, so that what is refused there is counted too.
    measured.install(app)
    ours = () if config.strict else (nouns.resources, metrics_api.blueprint)
    for blueprint in (*THE_THREE, *ours, health.blueprint):
        app.register_blueprint(blueprint)
    if config.simulate:
        log.warning("step=start %s", simulation.BANNER)
        simulated.install(app)
    dashboard.install(app)
    problems.install(app, page=dashboard.problem_page)
    return app


def _site(config: Config, database: db.Database) -> Site:
    """Put together what the application's parts share; the database is closed where it is not this box's."""
    try:
        db.check_version(database)
        key = instance.establish(database, config, now=clock.now())
    except BaseException:
        database.close()
        raise
    return Site(
        config=config,
        database=database,
        box=runs.Box(database, Definitions(), config.base_url, key),
        bell=Bell.of(config, key),
        key=key,
        secrets=SecretStore.from_config(config),
        validators=Validators(),
        simulation=simulation.Rules(database) if config.simulate else None,
        waiters=threading.Semaphore(config.threads // 2),
    )
