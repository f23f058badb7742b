"""What RQ executes by hand: one job a run. A module-level application, as the tutorials have it, so each import makes one."""

from __future__ import annotations

from datetime import UTC, datetime

from bench.handwritten.models import Run, create_app, db

app = create_app()


def execute(run_id: int) -> None:
    """Execute a run: mark it, do the work, which is a stub's, mark it again."""
    with app.app_context():
        run = db.session.get(Run, run_id)
        run.status = "running"
        db.session.commit()
        run.output = run.input
        run.status = "completed"
        run.finished_at = datetime.now(UTC)
        db.session.commit()
