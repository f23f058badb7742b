-- What a run was repeated as is found by an index.
CREATE INDEX runs_by_origin ON runs (rerun_of, id) WHERE rerun_of IS NOT NULL;
-- What a trigger started, or a callback was sent, of one status and the newest first.
DROP INDEX runs_by_trigger;
CREATE INDEX runs_by_trigger ON runs (trigger_id, status, id);
DROP INDEX deliveries_by_callback;
CREATE INDEX deliveries_by_callback ON deliveries (callback_id, status, id);

-- A run with files goes on where they lie; what none is bound to, all claim.
CREATE TABLE machines (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    seen_at TEXT NOT NULL
);
ALTER TABLE runs ADD COLUMN machine TEXT NOT NULL DEFAULT '';
DROP INDEX runs_pending;
CREATE INDEX runs_pending ON runs (machine, claims, id) WHERE status = 'pending' AND held = 0;
