"""What is remembered of servers that failed."""

from __future__ import annotations

from rewardserve_client.circuit_breaker import CircuitBreaker

ORDER = ("a", "b", "c")


def test_a_server_that_failed_rests_a_second_and_then_twice_as_long_up_to_half_a_minute():
    circuit = CircuitBreaker()
    rests = []
    for n in range(8):
        circuit.record_failure("a", 1000.0 * n, None)
        rests.append(next(s for s in (1, 2, 4, 8, 16, 30) if circuit.is_available("a", 1000.0 * n + s)))
        assert not circuit.is_available("a", 1000.0 * n + rests[-1] - 0.001)
    assert rests == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_rest_doubles_sixteen_times_at_most():
    circuit = CircuitBreaker(first_open_s=2.0**-16)
    for _ in range(2000):
        circuit.record_failure("a", 0.0, None)
    assert not circuit.is_available("a", 0.999)
    assert circuit.is_available("a", 1.0)


def test_it_rests_as_long_as_it_asks_for():
    circuit = CircuitBreaker()
    circuit.record_failure("a", 0.0, 7.0)
    assert not circuit.is_available("a", 6.9)
    assert circuit.is_available("a", 7.0)


def test_one_success_and_all_is_forgotten():
    circuit = CircuitBreaker()
    for _ in range(5):
        circuit.record_failure("a", 0.0, None)
    circuit.record_success("a")
    assert circuit.is_available("a", 0.0)
    circuit.record_failure("a", 0.0, None)
    assert circuit.is_available("a", 1.0)


def test_the_first_that_is_up_is_picked_and_each_once_a_round():
    circuit = CircuitBreaker()
    assert circuit.pick(ORDER, set(), 0.0) == "a"
    assert circuit.pick(ORDER, {"a"}, 0.0) == "b"
    assert circuit.pick(ORDER, {"a", "b", "c"}, 0.0) is None


def test_servers_that_rest_are_passed_over():
    circuit = CircuitBreaker()
    circuit.record_failure("a", 0.0, None)
    assert circuit.pick(ORDER, set(), 0.5) == "b"
    assert circuit.pick(ORDER, set(), 1.0) == "a"


def test_where_all_rest_a_round_still_tries_the_one_that_is_back_first():
    circuit = CircuitBreaker()
    for url, rest in zip(ORDER, (9.0, 3.0, 5.0), strict=True):
        circuit.record_failure(url, 0.0, rest)
    assert circuit.pick(ORDER, set(), 0.0) == "b"
    assert circuit.pick(ORDER, {"b"}, 0.0) is None
