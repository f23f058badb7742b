-- What a run was repeated as is found by an index.
CREATE INDEX runs_by_origin ON runs (rerun_of, id) WHERE rerun_of IS NOT NULL;
