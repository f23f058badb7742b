"""What people write by hand in orqo's place, as the tutorials have it: Flask, Flask-SQLAlchemy's ORM, one RQ job for each run.

`models` the tables, `web` the WSGI application (for gunicorn), `jobs` what RQ executes, `worker` RQ's forking Worker. It
promises less: a run whose job Redis loses stays `queued` for ever. The database commits as durably as ours, in WAL mode.
"""
