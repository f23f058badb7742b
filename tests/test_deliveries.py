"""Deliveries: at least once, in order, the same bytes every time, and nobody holds up another."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from inbox import Inbox, inbox
from orqo import attempts as recording
from orqo import callbacks, clock, deliveries, dispatcher, flow, leases, outbound, runs, signing, slots
from orqo.config import Config
from orqo.errors import Conflict, NotFound
from orqo.models import RunStatus
from orqo.secretstore import SecretStore
from receiver import OK, Receiver, receivers, reset
from support import TestBox, free_port, plant, wait_for

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SCHEDULE_S = (5.0, 300.0)
SECRETS = {
    "TOKEN": "t0p/s&cret",
    "SIGNING": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "EMPTY": "",
    "BAD": "whsec_!!",
    "LINES": "a\nb",
}


@pytest.fixture
def receiver() -> Iterator[Inbox]:
    with inbox() as made:
        yield made


@pytest.fixture
def sender(box: TestBox) -> Iterator[deliveries.Sender]:
    """What the dispatcher sends with, and a few secrets."""
    client = outbound.Client(allowed_networks=box.config.allowed_networks)
    yield deliveries.Sender(client, SecretStore(SECRETS), box.key)
    client.close()


def apply(box: TestBox, *wanted: str) -> None:
    """Apply the workflow `told` with these callbacks."""
    listed = "".join(f"  - {each}\n" for each in wanted)
    box.apply(f"name: told\n{f'callbacks:{chr(10)}{listed}' if wanted else ''}stages:\n  - {{name: one, stub: {{}}}}\n")


def end(box: TestBox, *, output: bytes = b"done", **run: Any) -> int:
    """Accept a run and complete it; gives its id."""
    run_id = box.accept("told", **run)
    held = runs.claim(box.box, owner="w1", now=NOW)
    assert held is not None
    stage_end, verdict = runs.StageEnd(output=output, output_kind="text"), flow.End(RunStatus.COMPLETED)
    runs.finish(box.box, held, stage_end, verdict, runs.Output(output, "text"), elapsed_ms=1, next_owner=None, now=NOW)
    return run_id


def claim(box: TestBox, *, now: datetime = NOW, owner: str = "d1", limit: int = 10, per_host: int = 8, **in_flight: int) -> list[Any]:
    hosts = {host: (per_host - count, 0) for host, count in in_flight.items()}
    room = slots.Room(slots=limit, guarded=limit, ahead=0, per_host=per_host, hosts=hosts)
    return deliveries.claim_due(box.database, owner=owner, room=room, now=now)


def attempt(box: TestBox, sender: deliveries.Sender, row: Any, *, now: datetime = NOW, owner: str = "d1") -> str | None:
    """Send once and record what came of it."""
    outcome = deliveries.send(row, sender, now=now)
    return recording.record_attempt(box.database, row, outcome, owner=owner, schedule_s=SCHEDULE_S, now=now)


def deliver(box: TestBox, sender: deliveries.Sender, *, now: datetime = NOW) -> list[str | None]:
    """Do what the dispatcher does once."""
    return [attempt(box, sender, row, now=now) for row in claim(box, now=now)]


def rows(box: TestBox) -> list[Any]:
    return box.rows("SELECT * FROM deliveries ORDER BY id")


def due_in_s(box: TestBox, number: int = 0) -> float:
    return (clock.from_text(rows(box)[number]["next_attempt_at"]) - NOW).total_seconds()


def attempts(box: TestBox) -> list[tuple[int | None, str]]:
    return [(row["status_code"], row["reason"]) for row in box.rows("SELECT * FROM attempts ORDER BY id")]


# ── one attempt ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_sent_verifies_as_standard_webhooks_says(box: TestBox, sender: deliveries.Sender, receiver: Inbox) -> None:
    apply(box, f"{{url: '{receiver.url()}'}}", f"{{url: '{receiver.url('/two')}', secret: '${{secrets.SIGNING}}'}}")
    run_id = end(box)

    # The oracle compares with the real clock.
    now = clock.now()
    assert deliver(box, sender, now=now) == ["delivered", "delivered"]

    secrets = {"/done": signing.derived_secret(box.key, receiver.url()), "/two": SECRETS["SIGNING"]}
    for each in receiver.arrived:
        standardwebhooks.Webhook(secrets[each.path]).verify(each.body, each.headers)
        assert each.headers["content-type"] == "application/json"
        assert each.json["workflow_run_id"] == run_id
    assert len({each.headers["webhook-id"] for each in receiver.arrived}) == 2


def test_while_a_secret_is_rotated_the_old_one_signs_too(box: TestBox, receiver: Inbox) -> None:
    new, old = (signing.derived_secret(box.key, text) for text in ("new", "old"))
    client = outbound.Client(allowed_networks=box.config.allowed_networks)
    apply(box, f"{{url: '{receiver.url()}', secret: '${{secrets.CI}}'}}")
    end(box)
    now = clock.now()

    deliver(box, deliveries.Sender(client, SecretStore({"CI": new, "CI_PREVIOUS": old}), box.key), now=now)
    client.close()

    (arrived,) = receiver.arrived
    for secret in (new, old):
        standardwebhooks.Webhook(secret).verify(arrived.body, arrived.headers)
    assert len(arrived.headers["webhook-signature"].split(" ")) == 2
    digest = hmac.digest(signing.secret_bytes(new), arrived.body, hashlib.sha256).hex()
    assert arrived.headers["x-signature-256"] == f"sha256={digest}"


def test_no_receiver_can_forge_for_another(box: TestBox) -> None:
    assert signing.derived_secret(box.key, "http://a/") != signing.derived_secret(box.key, "http://b/")


def test_secrets_are_filled_in_when_sent_and_quoted_where_they_are_part_of_a_path(
    box: TestBox, sender: deliveries.Sender, receiver: Inbox
) -> None:
    apply(
        box,
        f"{{url: '{receiver.url('/x')}/${{secrets.TOKEN}}?k=${{secrets.TOKEN}}', headers: {{Authorization: 'Bearer ${{secrets.TOKEN}}'}}}}",
        f"{{url: '{receiver.base}?k=${{secrets.TOKEN}}'}}",
    )
    end(box)

    assert deliver(box, sender) == ["delivered", "delivered"]

    first, second = receiver.arrived
    assert first.path == "/x/t0p%2Fs%26cret?k=t0p%2Fs%26cret"
    assert first.headers["authorization"] == "Bearer t0p/s&cret"
    assert second.path == "/?k=t0p%2Fs%26cret"
    assert "t0p" not in str(rows(box)) + str(box.rows("SELECT * FROM attempts"))


def test_own_content_type_and_body_replace_ours(box: TestBox, sender: deliveries.Sender, receiver: Inbox) -> None:
    apply(box, f"{{url: '{receiver.url()}', headers: {{content-type: application/cloudevents+json}}, json: {{a: 1}}}}")
    end(box)

    deliver(box, sender)

    assert (receiver.arrived[0].headers["content-type"], receiver.arrived[0].json) == ("application/cloudevents+json", {"a": 1})


@pytest.mark.parametrize(
    ("callback", "reason", "told"),
    [
        ("secret: '${secrets.ABSENT}'", "secret_missing", "ORQO_SECRET_ABSENT"),
        ("headers: {X: '${secrets.ABSENT}'}", "secret_missing", "ORQO_SECRET_ABSENT"),
        ("secret: '${secrets.EMPTY}'", "secret_unusable", "EMPTY"),
        ("secret: '${secrets.BAD}'", "secret_unusable", "BAD"),
        ("headers: {X: '${secrets.LINES}'}", "bad_url", "X"),
    ],
)
def test_what_cannot_be_sent_is_an_attempt_with_a_reason(
    box: TestBox, sender: deliveries.Sender, receiver: Inbox, callback: str, reason: str, told: str
) -> None:
    apply(box, f"{{url: '{receiver.url()}', {callback}}}")
    end(box)

    assert deliver(box, sender) == ["pending"]

    recorded = box.rows("SELECT * FROM attempts")[0]
    assert recorded["reason"] == reason
    assert told in recorded["detail"]
    assert receiver.arrived == []


def test_a_receiver_that_is_not_there_is_tried_again(box: TestBox, sender: deliveries.Sender) -> None:
    apply(box, f"{{url: 'http://127.0.0.1:{free_port()}/'}}")
    end(box)

    assert deliver(box, sender) == ["pending"]
    assert attempts(box) == [(None, "refused")]


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 429, 500, 503])
def test_only_2xx_counts(box: TestBox, sender: deliveries.Sender, receiver: Inbox, status: int) -> None:
    receiver.answers = [(status, {"Location": receiver.url("/elsewhere")})]
    apply(box, f"{{url: '{receiver.url()}'}}")
    end(box)

    assert deliver(box, sender) == ["pending"]

    assert attempts(box) == [(status, "status")]
    assert [each.path for each in receiver.arrived] == ["/done"]


def test_a_requests_callback_url_reaches_no_private_address(box: TestBox, sender: deliveries.Sender, receiver: Inbox) -> None:
    apply(box)
    end(box, callbacks=[callbacks.requested(receiver.url())])

    assert deliver(box, sender) == ["pending"]

    assert attempts(box) == [(None, "address_refused")]
    assert "ORQO_ALLOWED_NETWORKS" in box.rows("SELECT detail FROM attempts")[0]["detail"]
    assert receiver.arrived == []


def test_an_answer_of_a_gigabyte_is_read_to_16_kib_in_flat_memory(box: TestBox, sender: deliveries.Sender) -> None:
    mebibyte, written = b"x" * 2**20, []

    def gigabyte(sock: socket.socket, serving: Receiver) -> None:
        serving.read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
        for _ in range(1024):
            sock.sendall(mebibyte)
            written.append(len(mebibyte))

    with receivers() as serve:
        apply(box, f"{{url: '{serve(gigabyte).url()}'}}")
        end(box)
        row = claim(box)[0]
        tracemalloc.start()
        outcome = deliveries.send(row, sender, now=NOW)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert (outcome.delivered, outcome.excerpt) == (True, "x" * 4096)
    assert peak < 2**20
    # What the system's own buffers took; the rest was never asked for.
    assert sum(written) < 32 * 2**20


def test_a_connection_cut_after_receipt_makes_a_duplicate_of_the_same_id_and_bytes(box: TestBox, sender: deliveries.Sender) -> None:
    def cut(sock: socket.socket, serving: Receiver) -> None:
        serving.read_request(sock)
        if len(serving.requests) == 1:
            reset(sock)
        else:
            sock.sendall(OK)

    with receivers() as serve:
        receiver = serve(cut)
        apply(box, f"{{url: '{receiver.url()}'}}")
        end(box)

        assert deliver(box, sender) == ["pending"]
        assert deliver(box, sender, now=NOW + timedelta(seconds=10)) == ["delivered"]

    assert attempts(box) == [(None, "cut"), (200, "delivered")]
    first, second = (re.sub(rb"(?m)^(webhook-(timestamp|signature)|host): .*$", b"", each) for each in receiver.requests)
    assert b"webhook-id: msg_" in first and first == second


def test_an_answer_is_kept_cut_and_without_secrets(box: TestBox, receiver: Inbox) -> None:
    apply(box, f"{{url: '{receiver.url()}'}}")
    end(box)
    receiver.answers = [(200, {})]
    client = outbound.Client()

    outcome = deliveries.send(claim(box)[0], deliveries.Sender(client, SecretStore({"A": "answered"}), box.key), now=NOW)

    client.close()
    assert outcome.excerpt == "*** by the inbox"


# ── retries ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_retries_follow_the_schedule_with_the_same_id_and_bytes_and_then_it_is_dead(
    box: TestBox, sender: deliveries.Sender, receiver: Inbox
) -> None:
    receiver.answers = [(500, {})] * 3
    apply(box, f"{{url: '{receiver.url()}'}}")
    end(box)

    assert deliver(box, sender) == ["pending"]
    assert 4.5 <= due_in_s(box) <= 5.5
    assert deliver(box, sender, now=NOW + timedelta(seconds=4)) == []
    assert deliver(box, sender, now=NOW + timedelta(seconds=6)) == ["pending"]
    assert 276 <= due_in_s(box) <= 336
    assert deliver(box, sender, now=NOW + timedelta(seconds=340)) == ["dead"]
    assert deliver(box, sender, now=NOW + timedelta(days=9)) == []

    assert len({(each.headers["webhook-id"], each.body) for each in receiver.arrived}) == 1
    assert [each.headers["webhook-timestamp"] for each in receiver.arrived] == [str(int(NOW.timestamp()) + late) for late in (0, 6, 340)]
    row = rows(box)[0]
    assert (row["attempts"], row["next_attempt_at"], row["finished_at"]) == (3, None, "2026-01-02T03:09:45.000Z")


def test_the_documented_schedule_is_the_default() -> None:
    schedule = Config.from_environ({}).callback_retries_s

    assert [recording.retry_delay(number, schedule) for number in range(1, 11)] == [
        *(5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400),
        None,
    ]


@given(st.lists(st.floats(0.1, 1e6), max_size=5), st.integers(1, 9))
def test_retrying_ends_with_the_schedule(schedule: list[float], number: int) -> None:
    delay = recording.retry_delay(number, schedule)

    assert (delay is None) is (number > len(schedule))


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("120", 120, 120),
        ("1", 4.5, 5.5),
        (format_datetime(NOW + timedelta(minutes=10), usegmt=True), 600, 600),
        ("99999999999", 4.5, 86400),
        ("soon", 4.5, 5.5),
        ("-5", 4.5, 5.5),
        ("١٢", 4.5, 5.5),
    ],
    ids=["seconds", "shorter than ours", "date", "a thousand years", "no number", "negative", "other digits"],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured_where_it_is_longer(
    box: TestBox, sender: deliveries.Sender, receiver: Inbox, status: int, header: str, low: float, high: float
) -> None:
    receiver.answers = [(status, {"Retry-After": header.encode("utf-8").decode("latin-1")})]
    apply(box, f"{{url: '{receiver.url()}'}}")
    end(box)

    deliver(box, sender)

    assert low <= due_in_s(box) <= high


def test_the_jitter_spreads_and_stays_within_a_tenth(box: TestBox, sender: deliveries.Sender, receiver: Inbox) -> None:
    receiver.answers = [(500, {})] * 12
    apply(box, *(f"{{url: '{receiver.url(f'/{number}')}'}}" for number in range(12)))
    end(box)

    [attempt(box, sender, row) for row in claim(box, limit=20, per_host=20)]

    delays = [due_in_s(box, number) for number in range(12)]
    assert all(4.5 <= delay <= 5.5 for delay in delays)
    assert len(set(delays)) > 3


# ── order ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_events_of_one_run_go_to_one_callback_in_order(box: TestBox, sender: deliveries.Sender, receiver: Inbox) -> None:
    receiver.answers = [(500, {})]
    apply(box, f"{{url: '{receiver.url()}', events: [output, completed]}}")
    end(box)

    assert deliver(box, sender) == ["pending"]
    # The second is not due before the first is through.
    assert deliver(box, sender) == []
    later = NOW + timedelta(seconds=10)
    assert deliver(box, sender, now=later) == ["delivered"]
    assert deliver(box, sender, now=later) == ["delivered"]

    assert [each.json["type"] for each in receiver.arrived] == ["run.output", "run.output", "run.completed"]


def test_a_failing_callback_holds_up_no_other_callback_and_no_other_run(box: TestBox, sender: deliveries.Sender, receiver: Inbox) -> None:
    receiver.answers = [(500, {})]
    apply(box, f"{{url: '{receiver.url('/a')}'}}", f"{{url: '{receiver.url('/b')}'}}")
    end(box)
    end(box)

    assert deliver(box, sender) == ["pending", "delivered", "delivered", "delivered"]


def test_a_dead_delivery_holds_nothing_back(box: TestBox, sender: deliveries.Sender, receiver: Inbox) -> None:
    receiver.answers = [(500, {})] * 3
    apply(box, f"{{url: '{receiver.url()}', events: [output, completed]}}")
    end(box)

    for late_s in (0, 10, 1000):
        deliver(box, sender, now=NOW + timedelta(seconds=late_s))

    assert [row["status"] for row in rows(box)] == ["dead", "pending"]
    assert deliver(box, sender, now=NOW + timedelta(seconds=1000)) == ["delivered"]


def test_one_that_cannot_be_rendered_holds_nothing_back(box: TestBox, sender: deliveries.Sender, receiver: Inbox) -> None:
    # Only the end of a run has what this header wants: the output event before it is dead from the start.
    apply(box, f"{{url: '{receiver.url()}', events: [output, completed], headers: {{X: '${{stages.one.response.status}}'}}}}")
    end(box)

    assert [row["status"] for row in rows(box)] == ["dead", "dead"]
    apply(box, f"{{url: '{receiver.url()}', events: [output, completed]}}")
    end(box)
    assert deliver(box, sender) == ["delivered"]


# ── pause ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def pause(box: TestBox, callback_id: int = 1) -> None:
    with box.database.transaction() as connection:
        callbacks.pause(connection, callback_id, reason="by hand", now=NOW)


def resume(box: TestBox, callback_id: int = 1, *, now: datetime = NOW) -> None:
    with box.database.transaction() as connection:
        callbacks.resume(connection, callback_id, now=now)


def test_410_ends_the_delivery_and_pauses_the_callback_until_it_is_resumed(
    box: TestBox, sender: deliveries.Sender, receiver: Inbox
) -> None:
    receiver.answers = [(410, {})]
    apply(box, f"{{url: '{receiver.url()}', events: [output, completed]}}")
    end(box)

    assert deliver(box, sender) == ["dead"]
    end(box)
    assert deliver(box, sender, now=NOW + timedelta(days=1)) == []
    with box.database.read() as connection:
        assert "410" in callbacks.list_all(connection)[0]["pause_reason"]

    resume(box)
    assert deliver(box, sender) == ["delivered", "delivered"]
    assert deliver(box, sender) == ["delivered"]
    assert [each.json["type"] for each in receiver.arrived] == ["run.output", "run.completed", "run.output", "run.completed"]


def test_410_for_a_requests_own_callback_ends_only_that(box: TestBox, sender: deliveries.Sender, receiver: Inbox) -> None:
    receiver.answers = [(410, {})]
    apply(box, f"{{url: '{receiver.url('/other')}'}}")
    end(box, callbacks=[callbacks.requested(receiver.url())])
    # Guarded, so it is refused before anything is sent: allow it here, as ORQO_ALLOWED_NETWORKS would.
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE deliveries SET guarded = 0"))

    assert sorted(map(str, deliver(box, sender))) == ["dead", "delivered"]


def test_a_pause_holds_what_is_due_and_what_is_under_way_keeps_its_result(box: TestBox, sender: deliveries.Sender, receiver: Inbox) -> None:
    receiver.answers = [(500, {})]
    apply(box, f"{{url: '{receiver.url()}', events: [output, completed]}}")
    end(box)
    row = claim(box)[0]
    pause(box)

    assert attempt(box, sender, row) == "pending"
    assert deliver(box, sender, now=NOW + timedelta(days=1)) == []
    resume(box)
    assert deliver(box, sender) == ["delivered"]
    assert deliver(box, sender) == ["delivered"]


def test_a_success_during_a_pause_releases_the_next_only_when_resumed(box: TestBox, sender: deliveries.Sender, receiver: Inbox) -> None:
    apply(box, f"{{url: '{receiver.url()}', events: [output, completed]}}")
    end(box)
    row = claim(box)[0]
    pause(box)

    assert attempt(box, sender, row) == "delivered"

    assert deliver(box, sender) == []
    resume(box)
    assert deliver(box, sender) == ["delivered"]


def test_five_days_of_nothing_but_failures_pause_a_callback(box: TestBox, sender: deliveries.Sender, receiver: Inbox) -> None:
    receiver.answers = [(500, {}), (204, {}), (500, {}), (500, {})]
    apply(box, f"{{url: '{receiver.url()}'}}")
    for _ in range(4):
        end(box)
    batch = claim(box)

    for row, days in zip(batch, (0, 4, 4, 9), strict=True):
        attempt(box, sender, row, now=NOW + timedelta(days=days))

    with box.database.read() as connection:
        assert callbacks.list_all(connection)[0]["pause_reason"]
    # Without the success on the fourth day it would have been paused before the last attempt.
    assert box.rows("SELECT failing_since FROM callbacks")[0]["failing_since"] == clock.to_text(NOW + timedelta(days=4))


# ── leases ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_dispatchers_never_send_one_delivery_at_once(box: TestBox) -> None:
    apply(box, *(f"{{url: 'http://127.0.0.1:1/{number}'}}" for number in range(20)))
    end(box)
    with ThreadPoolExecutor(4) as pool:
        got = [row.id for rows in pool.map(lambda n: claim(box, owner=f"d{n}", per_host=9), range(8)) for row in rows]

    assert len(got) == len(set(got)) == 20


def test_a_dispatcher_that_lost_its_lease_changes_nothing_and_its_attempt_is_kept(
    box: TestBox, sender: deliveries.Sender, receiver: Inbox
) -> None:
    receiver.answers = [(500, {}), (204, {})]
    apply(box, f"{{url: '{receiver.url()}'}}")
    end(box)
    slow = claim(box, owner="slow")[0]
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE deliveries SET lease_until = 1"))
    quick = claim(box, owner="quick")[0]

    assert attempt(box, sender, slow, owner="slow") is None
    assert rows(box)[0]["lease_owner"] == "quick"
    assert attempt(box, sender, quick, owner="quick") == "delivered"
    assert attempt(box, sender, slow, owner="slow") is None

    assert (rows(box)[0]["status"], rows(box)[0]["attempts"]) == ("delivered", 1)
    assert attempts(box) == [(500, "status"), (204, "delivered"), (204, "delivered")]


@pytest.mark.parametrize("how", ["lease_until = 1", "lease_boot = 'earlier'"])
def test_what_a_lost_dispatcher_held_is_claimed_again(box: TestBox, how: str) -> None:
    apply(box, "{url: 'http://127.0.0.1:1/'}")
    end(box)
    assert len(claim(box)) == 1
    assert claim(box, owner="d2") == []
    with box.database.transaction() as connection:
        connection.execute(text(f"UPDATE deliveries SET {how}"))

    assert len(claim(box, owner="d2")) == 1


def test_the_sweep_frees_what_a_dead_process_held_and_nothing_else(box: TestBox) -> None:
    apply(box, "{url: 'http://127.0.0.1:1/'}", "{url: 'http://127.0.0.1:2/'}")
    end(box)
    boot, namespace, pid, _ = leases.owner().split("/")
    claim(box, owner=f"{boot}/{namespace}/{pid}/1", limit=1)
    claim(box, owner=leases.owner(), limit=1)

    assert deliveries.sweep(box.database) == 1
    assert deliveries.sweep(box.database) == 0
    assert len(claim(box, owner="d2")) == 1


def test_what_is_released_is_due_again(box: TestBox) -> None:
    apply(box, "{url: 'http://127.0.0.1:1/'}")
    end(box)
    row = claim(box)[0]
    with box.database.transaction() as connection:
        deliveries.release(connection, [row.id], owner="somebody else")
    assert claim(box, owner="d2") == []
    with box.database.transaction() as connection:
        deliveries.release(connection, [row.id], owner="d1")

    assert len(claim(box, owner="d2")) == 1


def test_claiming_where_nothing_is_due_waits_for_no_writer(box: TestBox) -> None:
    with box.database.transaction():
        assert claim(box) == []


# ── no receiver holds up the others ─────────────────────────────────────────────────────────────────────────────────


def test_one_host_gets_its_share_and_the_others_theirs(box: TestBox) -> None:
    apply(box, *(f"{{url: 'http://127.0.0.1:1/{number}'}}" for number in range(15)), "{url: 'http://127.0.0.1:2/'}")
    end(box)

    first = claim(box, limit=10, per_host=3)

    assert sorted(row.host for row in first) == ["127.0.0.1:1"] * 3 + ["127.0.0.1:2"]
    assert claim(box, limit=10, per_host=3, **{"127.0.0.1:1": 3}) == []
    assert len(claim(box, limit=10, per_host=3, **{"127.0.0.1:1": 2})) == 1


def test_a_host_that_is_full_hides_nobody_however_much_it_has(box: TestBox) -> None:
    apply(box, "{url: 'http://127.0.0.1:1/'}")
    for _ in range(15):
        end(box)
    apply(box, "{url: 'http://127.0.0.1:2/'}")
    end(box)

    claimed = claim(box, limit=2, per_host=1, **{"127.0.0.1:1": 1})

    assert [row.host for row in claimed] == ["127.0.0.1:2"]


# ── redelivery ──────────────────────────────────────────────────────────────────────────────────────────────────────


def redeliver(box: TestBox, delivery_id: int = 1) -> None:
    with box.database.transaction() as connection:
        deliveries.redeliver(connection, delivery_id, now=NOW)


@pytest.mark.parametrize("answers", [[], [(500, {})] * 3], ids=["delivered", "dead"])
def test_redelivering_sends_the_same_id_and_bytes_with_a_fresh_schedule(
    box: TestBox, sender: deliveries.Sender, receiver: Inbox, answers: list[tuple[int, dict[str, str]]]
) -> None:
    receiver.answers = [*answers, (500, {})] if answers else [(204, {}), (500, {})]
    apply(box, f"{{url: '{receiver.url()}'}}")
    end(box)
    for late_s in (0, 10, 1000):
        deliver(box, sender, now=NOW + timedelta(seconds=late_s))

    redeliver(box)

    assert deliver(box, sender) == ["pending"]
    assert 4.5 <= due_in_s(box) <= 5.5
    assert deliver(box, sender, now=NOW + timedelta(seconds=10)) == ["delivered"]
    assert len({(each.headers["webhook-id"], each.body) for each in receiver.arrived}) == 1
    assert rows(box)[0]["attempts"] == len(receiver.arrived) == len(attempts(box))


def test_what_is_pending_or_absent_or_was_never_rendered_is_not_redelivered(box: TestBox) -> None:
    apply(box, "{url: 'http://127.0.0.1:1/'}", "{url: 'http://127.0.0.1:1/x', json: {x: '${input.absent}'}}")
    end(box, input={})

    with pytest.raises(Conflict, match="being sent already"):
        redeliver(box, 1)
    with pytest.raises(Conflict, match="could not be rendered"):
        redeliver(box, 2)
    with pytest.raises(NotFound, match="delivery list"):
        redeliver(box, 99)


def test_lists_show_urls_without_what_could_be_a_credential(box: TestBox) -> None:
    apply(box, "{url: 'http://user:pw@127.0.0.1:1/x?key=v'}", "{url: 'http://127.0.0.1:1/${secrets.TOKEN}'}", "{url: '${secrets.TOKEN}'}")
    end(box)

    with box.database.read() as connection:
        shown = [each["url"] for each in reversed(deliveries.list_all(connection))]

    assert shown == ["http://***@127.0.0.1:1/x?***", "http://127.0.0.1:1/${secrets.TOKEN}", "${secrets.TOKEN}"]


# ── the dispatcher's loop ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def running(box: TestBox, sender: deliveries.Sender) -> Iterator[dispatcher.Dispatcher]:
    """The dispatcher in a thread."""
    made = dispatcher.Dispatcher(box.box, box.bell, sender, SCHEDULE_S, leases.owner(), threading.Event())
    thread = threading.Thread(target=dispatcher.loop, args=(made,))
    thread.start()
    yield made
    made.stopping.set()
    box.bell.notify()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_notice_is_acted_upon_at_once(box: TestBox, running: dispatcher.Dispatcher, receiver: Inbox) -> None:
    apply(box, f"{{url: '{receiver.url()}', events: [output, completed]}}")
    # Let it subscribe, which it does once it has nothing else to do.
    time.sleep(0.3)
    end(box)
    began = time.monotonic()
    box.bell.notify()

    wait_for(lambda: len(receiver.arrived) == 2, within_s=5)

    assert time.monotonic() - began < 0.9
    wait_for(lambda: {row["status"] for row in rows(box)} == {"delivered"}, within_s=5)
    wait_for(lambda: not running.slots.held, within_s=5)


def test_what_nobody_told_of_is_found_by_looking(box: TestBox, running: dispatcher.Dispatcher, receiver: Inbox) -> None:
    apply(box, f"{{url: '{receiver.url()}'}}")

    end(box)

    wait_for(lambda: receiver.arrived, within_s=5)


def test_the_loop_survives_a_delivery_that_is_no_delivery(box: TestBox, running: dispatcher.Dispatcher, receiver: Inbox) -> None:
    apply(box, f"{{url: '{receiver.url()}'}}")
    plant(box, "INSERT ON deliveries", "UPDATE deliveries SET url = '[' WHERE id = 1")
    end(box)
    end(box)

    wait_for(lambda: len(receiver.arrived) == 1, within_s=5)


def test_redelivering_to_a_paused_callback_waits_for_its_resumption(box: TestBox) -> None:
    box.apply("name: told\ncallbacks: [{url: 'http://127.0.0.1:1/x'}]\nstages: [{name: one, stub: {}}]\n")
    with box.database.transaction() as connection:
        callback_id = callbacks.list_all(connection)[0]["id"]
    run_id = box.accept("told")
    runs.stop(box.box, run_id, now=clock.now())
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE deliveries SET status = 'dead', next_attempt_at = NULL, finished_at = created_at"))
        callbacks.pause(connection, callback_id, reason="Paused by hand.", now=clock.now())

    with box.database.transaction() as connection:
        ids = deliveries.redeliver_dead(connection, callback_id=callback_id, now=clock.now())
    held = box.rows("SELECT next_attempt_at FROM deliveries")
    with box.database.transaction() as connection:
        callbacks.resume(connection, callback_id, now=clock.now())

    assert len(ids) == 1
    assert held[0]["next_attempt_at"] is None
    assert box.rows("SELECT next_attempt_at FROM deliveries")[0]["next_attempt_at"] is not None


def test_a_callback_whose_url_changed_leaves_what_was_held_dead_and_redeliverable(box: TestBox) -> None:
    file = "name: told\ncallbacks: [{{url: 'http://127.0.0.1:1/{}'}}]\nstages: [{{name: one, stub: {{}}}}]\n"
    box.apply(file.format("old"))
    with box.database.transaction() as connection:
        callbacks.pause(connection, callbacks.list_all(connection)[0]["id"], reason="Paused by hand.", now=clock.now())
    runs.stop(box.box, box.accept("told"), now=clock.now())

    box.apply(file.format("new"))
    dead = box.rows("SELECT id, status FROM deliveries")
    with box.database.transaction() as connection:
        deliveries.redeliver(connection, dead[0]["id"], now=clock.now())

    assert [row["status"] for row in dead] == ["dead"]
    assert box.rows("SELECT reason FROM attempts")[0]["reason"] == "removed"
    assert box.rows("SELECT next_attempt_at FROM deliveries")[0]["next_attempt_at"] is not None


def test_redelivering_all_of_a_run_keeps_their_order(box: TestBox) -> None:
    file = "name: told\ncallbacks: [{url: 'http://127.0.0.1:1/x', events: [output, completed]}]\n"
    box.apply(file + "stages: [{name: one, stub: {output: 1}}]\n")
    row = {"run_id": box.accept("told"), "now": clock.to_text(clock.now())}
    with box.database.transaction() as connection:
        for number in range(3):
            connection.execute(
                text(
                    "INSERT INTO deliveries"
                    " (webhook_id, run_id, channel, sequence, event, url, host, body, status, finished_at, created_at)"
                    " VALUES (:webhook_id, :run_id, 'callback:1', 1, 'run.output', '[\"http://x\"]', 'x:80', :body, 'dead', :now, :now)"
                ),
                row | {"webhook_id": f"msg_{number}", "body": b"{}"},
            )

        deliveries.redeliver_dead(connection, now=clock.now())

    due = [row["next_attempt_at"] is not None for row in box.rows("SELECT next_attempt_at FROM deliveries ORDER BY id")]
    assert due == [True, False, False]


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (["https://u:p@ci.example.com/done?key=1"], "https://***@ci.example.com/done?***"),
        (["https://u:p@ci.example.com/x/", {"secret": "A"}, "?key=literal"], "https://***@ci.example.com/x/${secrets.A}?***"),
        ([{"secret": "A"}], "${secrets.A}"),
    ],
    ids=["literal", "secret-in-the-path", "wholly-secret"],
)
def test_a_shown_url_holds_no_credential(stored: list[Any], shown: str) -> None:
    assert deliveries.shown_url(json.dumps(stored)) == shown


def test_what_can_never_be_sent_is_dead_at_once(box: TestBox, sender: deliveries.Sender, receiver: Inbox) -> None:
    apply(box, f"{{url: '{receiver.url()}', headers: {{X: '${{input.a}}'}}}}")
    end(box, input={"a": "line\r\nanother"})

    assert deliver(box, sender) == ["dead"]
    assert box.rows("SELECT reason FROM attempts")[0]["reason"] == "bad_url"


def test_a_database_that_is_busy_when_attempts_are_recorded_costs_no_room(
    box: TestBox, running: dispatcher.Dispatcher, receiver: Inbox
) -> None:
    receiver.delay_s = 0.5
    apply(box, f"{{url: '{receiver.url()}'}}")
    runs.stop(box.box, box.accept("told"), now=clock.now())
    wait_for(lambda: running.slots.in_flight, what="it is being sent")

    with box.database.transaction():
        # Longer than the dispatcher waits for the lock: it fails to record at least once.
        time.sleep(6)

    wait_for(lambda: box.rows("SELECT id FROM deliveries WHERE status = 'delivered'"), what="it is recorded")
    wait_for(lambda: not running.unrecorded, what="nothing is left to record")
    assert running.slots.held == 0


def test_a_freed_slot_waits_for_no_commit(box: TestBox, running: dispatcher.Dispatcher, receiver: Inbox) -> None:
    apply(box, f"{{url: '{receiver.url()}'}}")
    end(box)
    wait_for(lambda: not running.slots.held and receiver.arrived, what="the receiver is known")
    receiver.delay_s = 0.05
    # Claimed in one go, as what was due when the dispatcher looked.
    with box.database.transaction() as connection:
        connection.execute(text("UPDATE callbacks SET paused_at = 'now'"))
    for _ in range(20):
        end(box)
    resume(box, now=clock.now())
    box.bell.notify()
    wait_for(lambda: running.slots.held >= 20, what="all are claimed")

    with box.database.transaction():
        wait_for(lambda: len(receiver.arrived) == 21, within_s=4, what="all are sent, and none is recorded")

    wait_for(lambda: not running.slots.held, what="all are recorded")
    assert {row["status"] for row in rows(box)} == {"delivered"}
    assert [row["attempts"] for row in rows(box)] == [1] * 21


def test_what_was_claimed_ahead_is_handed_back_at_the_end(box: TestBox, running: dispatcher.Dispatcher, receiver: Inbox) -> None:
    apply(box, f"{{url: '{receiver.url()}'}}")
    end(box)
    wait_for(lambda: not running.slots.held and receiver.arrived, what="the receiver is known")
    answering = threading.Event()
    receiver.on_request = lambda _: answering.wait(10)
    for _ in range(20):
        end(box)
    box.bell.notify()
    wait_for(lambda: running.slots.held > running.slots.in_flight == 8, what="some wait in memory")

    running.stopping.set()
    wait_for(lambda: running.slots.held == 8, what="what waited is handed back")
    answering.set()
    wait_for(lambda: not running.slots.held, what="what was under way is recorded")

    left = [row for row in rows(box) if row["status"] == "pending"]
    assert len(left) == 12
    assert {(row["lease_owner"], row["attempts"]) for row in left} == {(None, 0)}
    assert all(row["next_attempt_at"] for row in left)
    assert len(receiver.arrived) == 9


def test_one_delivery_twice_in_a_batch_counts_once(box: TestBox, sender: deliveries.Sender, receiver: Inbox) -> None:
    receiver.answers = [(500, {}), (204, {})]
    apply(box, f"{{url: '{receiver.url()}'}}")
    end(box)
    row = claim(box)[0]
    sent = [(row, deliveries.send(row, sender, now=NOW)) for _ in range(2)]

    with box.database.transaction() as connection:
        statuses = recording.record(connection, sent, owner="d1", schedule_s=SCHEDULE_S, now=NOW)

    assert statuses == ["pending", None]
    assert (rows(box)[0]["attempts"], rows(box)[0]["retries"]) == (1, 1)
    assert attempts(box) == [(500, "status"), (204, "delivered")]


def test_a_batch_keeps_what_each_callback_has_to_be_told(box: TestBox, sender: deliveries.Sender, receiver: Inbox) -> None:
    receiver.answers = [(500, {}), (204, {}), (500, {}), (410, {}), (204, {})]
    apply(box, f"{{url: '{receiver.url()}'}}")
    for _ in range(5):
        end(box)
    sent = [(row, deliveries.send(row, sender, now=NOW)) for row in claim(box)]

    with box.database.transaction() as connection:
        statuses = recording.record(connection, sent, owner="d1", schedule_s=SCHEDULE_S, now=NOW)

    assert statuses == ["pending", "delivered", "pending", "dead", "delivered"]
    assert "410" in box.rows("SELECT pause_reason FROM callbacks")[0]["pause_reason"]
    # Paused: nothing of it is due, what failed before the pause included.
    assert {row["next_attempt_at"] for row in rows(box)} == {None}
