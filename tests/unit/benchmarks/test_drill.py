"""The servers of a drill can be started, and its notifications are sorted by sender."""

import json
import runpy
import sys

import pytest

from benchmarks.drill import RUNS, SERVERS, Notifications, ServerTooSlow, check_rate
from benchmarks.webhook_receiver import WebhookRequest
from rewardserve.model.backends import BACKENDS


@pytest.mark.parametrize("module", sorted(set(SERVERS.values())))
def test_every_server_is_a_command_that_takes_the_flags_of_serve(module, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [*module, "--help"])
    monkeypatch.setitem(BACKENDS, "torch", BACKENDS["torch"])  # one of them has a backend in its place
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module[0], run_name="__main__", alter_sys=True)
    assert not end.value.code
    assert "--port" in capsys.readouterr().out


def test_a_drill_on_a_server_that_cannot_keep_up_is_no_result():
    wanted = 12 * len(RUNS)
    check_rate(wanted * 81, 100.0, 12.0)
    with pytest.raises(ServerTooSlow, match=rf"scored 5 samples a second, and the drill needs {wanted}:"):
        check_rate(500, 100.0, 12.0)


def test_messages_of_alertmanager_are_kept_apart_from_alerts_of_servers():
    notifications = Notifications()
    labels = {"run": "a", "cause": "policy"}
    firing = {"status": "firing", "labels": {"alertname": "RewardHacking", **labels}}
    messages = [
        {"run": "a", "cause": "policy", "is_update": False},
        {"groupKey": "k", "groupLabels": labels, "alerts": [firing, {**firing, "status": "resolved"}]},
        {"groupKey": "k", "groupLabels": labels, "alerts": [{**firing, "status": "resolved"}]},
    ]
    for message in messages:
        notifications.add(WebhookRequest({}, json.dumps(message).encode()))
    assert [alert for _, alert in notifications.alerts] == messages[:1]
    assert [message.alerts for message in notifications.of("a", "policy")] == [[firing]]
    assert notifications.named("RewardHacking") == notifications.messages
