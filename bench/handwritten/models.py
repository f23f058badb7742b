"""Tables by hand: tokens, workflows, runs. DATABASE_URL says where."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event

db = SQLAlchemy()


class Token(db.Model):  # type: ignore[name-defined,misc]
    """Who may start a run."""

    id = db.Column(db.Integer, primary_key=True)
    digest = db.Column(db.String(64), unique=True, nullable=False)


class Workflow(db.Model):  # type: ignore[name-defined,misc]
    """What can be started: its one stage gives its input back."""

    id = db.Column(db.Integer, primary_key=True)
    name = db.Column(db.String(64), unique=True, nullable=False)


class Run(db.Model):  # type: ignore[name-defined,misc]
    """One execution: queued, running, completed."""

    id = db.Column(db.Integer, primary_key=True)
    workflow_id = db.Column(db.ForeignKey("workflow.id"), nullable=False)
    status = db.Column(db.String(16), nullable=False, default="queued", index=True)
    input = db.Column(db.JSON)
    output = db.Column(db.JSON)
    created_at = db.Column(db.DateTime, nullable=False, default=lambda: datetime.now(UTC))
    finished_at = db.Column(db.DateTime)


def create_app() -> Flask:
    """Give a Flask application on the database."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
    db.init_app(app)
    with app.app_context():
        event.listen(db.engine, "connect", _durable)
    return app


def _durable(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
