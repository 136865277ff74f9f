"""The queue and its labels, in each database."""

from __future__ import annotations

import pytest

from rewardserve.service.review.records import SampleFilter
from tests.unit.service.review.test_store import alert, sample

TEXTS = {f"response {n}" for n in range(8)}


@pytest.fixture
def labels(store):
    store.add([sample(n) for n in range(8)])  # four prompts of two responses
    return store.labels


def label_all(labels, annotator, verdict="first", sampling="random"):
    """Label pair after pair as a person would; the pairs in the order in which they came."""
    seen = []
    while page := labels.queue("a", annotator, sampling, 1, 5.0).pairs:
        seen.append(page[0])
        assert labels.add(page[0].id, annotator, verdict, 6.0) is not None
    return seen


def test_every_pair_comes_once_and_progress_is_counted(labels):
    page = labels.queue("a", "ann", "random", 10, 5.0)
    assert (len(page.pairs), page.n_labelled, page.n_left) == (4, 0, 4)
    seen = label_all(labels, "ann")
    assert [each.id for each in seen] == [each.id for each in page.pairs]
    assert {text for each in seen for text in (each.first, each.second)} == TEXTS
    done = labels.queue("a", "ann", "random", 10, 5.0)
    assert (done.pairs, done.n_labelled, done.n_left) == ([], 4, 0)


def test_an_id_is_drawn_and_not_made_of_the_samples(store, labels):
    first = {(each.first, each.second): each.id for each in labels.queue("a", "ann", "random", 10, 5.0).pairs}
    store.delete_run("a")
    store.add([sample(n) for n in range(8)])
    again = {each.id for each in labels.queue("a", "ann", "random", 10, 5.0).pairs}
    assert len(again) == 4
    assert not again & set(first.values())


def test_the_order_is_drawn_for_each_annotator_and_stays(labels):
    orders = {}
    for name in ("ann", "bo", "cy", "di", "eve", "flo"):
        first = {each.id: each.first for each in labels.queue("a", name, "random", 10, 5.0).pairs}
        assert {each.id: each.first for each in labels.queue("a", name, "random", 10, 5.0).pairs} == first
        orders[name] = first
    assert any(len({order[pair] for order in orders.values()}) == 2 for pair in orders["ann"])


def test_a_verdict_is_stored_of_the_samples_not_of_their_places(labels):
    for name in ("ann", "bo", "cy", "di"):
        for pair in labels.queue("a", name, "random", 10, 5.0).pairs:
            better = "first" if pair.first < pair.second else "second"  # every annotator likes the same text
            labels.add(pair.id, name, better, 6.0)
    for each in labels.labelled("a"):
        better = "earlier" if each.earlier.response < each.later.response else "later"
        assert set(each.verdicts.values()) == {better}


def test_another_annotator_gets_labelled_pairs_only_as_second_opinions(store):
    store.add([sample(n) for n in range(400)])
    seen = label_all(store.labels, "ann")
    assert len(seen) == 200
    others = store.labels.queue("a", "bo", "random", 100, 7.0)
    assert {each.id for each in others.pairs} <= {each.id for each in seen}
    assert 15 <= others.n_left <= 70  # a fifth of 200


def test_a_later_verdict_replaces_an_earlier_one(labels):
    (pair,) = labels.queue("a", "ann", "random", 1, 5.0).pairs
    labels.add(pair.id, "ann", "tie", 6.0)
    labels.add(pair.id, "ann", "both_bad", 7.0)
    (labelled,) = labels.labelled("a")
    assert labelled.verdicts == {"ann": "both_bad"}


def test_only_an_own_label_is_taken_back_and_the_pair_comes_again(labels):
    (pair,) = labels.queue("a", "ann", "random", 1, 5.0).pairs
    number = labels.add(pair.id, "ann", "tie", 6.0)
    assert not labels.remove(number, "bo")
    assert labels.remove(number, "ann")
    assert not labels.remove(number, "ann")
    assert labels.queue("a", "ann", "random", 1, 5.0).pairs == [pair]


def test_a_pair_that_does_not_exist(labels):
    assert labels.run_of("0" * 16) is None
    assert labels.add("0" * 16, "ann", "tie", 6.0) is None


def test_alerts_point_at_pairs(store):
    store.add([sample(n, prompt_key="p" * 16, step=n) for n in range(4)], [alert()])
    assert store.labels.queue("a", "ann", "alert", 9, 5.0).pairs == []
    store.add([sample(9, prompt_key="p" * 16, step=9, flags=["flattery"])])
    (pair,) = store.labels.queue("a", "ann", "alert", 9, 5.0).pairs
    assert {pair.first, pair.second} == {"response 0", "response 9"}


@pytest.mark.parametrize("how", ["sample", "run", "age", "size"])
def test_labels_go_with_their_samples(store, labels, how):
    label_all(labels, "ann")
    if how == "sample":
        for each in store.samples(SampleFilter(run="a")):
            store.delete_sample(each.id)
    elif how == "run":
        store.delete_run("a")
    elif how == "age":
        store.expire(9_999.0, 2**40)
    else:
        store.expire(0.0, 0)
    assert list(labels.labelled()) == []
    assert labels.agreement().by_annotator == {}


def test_agreement_does_not_count_skips(labels):
    pairs = labels.queue("a", "ann", "random", 10, 5.0).pairs
    for name in ("ann", "bo"):
        for pair in pairs:
            labels.add(pair.id, name, "tie" if pair is pairs[0] else "skip", 6.0)
    found = labels.agreement("a")
    assert (found.n_labelled, found.n_labelled_twice, found.raw) == (1, 1, 1.0)
    assert labels.agreement("other").n_labelled == 0


def test_a_store_of_the_first_version_forms_the_same_pairs(store):
    store.add([sample(0, score=1.0, audit=0.0), sample(1, score=0.0, audit=1.0), sample(2), sample(3, audit=0.5)])
    before = store.labels.queue("a", "ann", "disagreement", 9, 5.0).pairs
    store.downgrade("0001")
    store.upgrade()
    after = store.labels.queue("a", "ann", "disagreement", 9, 5.0).pairs
    assert [{each.first, each.second} for each in after] == [{each.first, each.second} for each in before]
    assert len(after) == 1
