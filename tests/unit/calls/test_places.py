"""How many calls run at a time: whose turn it is, and a node's places among processes."""

import os
from collections import Counter
from contextlib import contextmanager

import pytest

from qrmi_slurm.calls import places
from qrmi_slurm.calls.places import LATE_NODES, LATE_USERS, NODES, USERS, Node, Places, Turns, Work, service_of
from qrmi_slurm.errors import RecordError


def started(turns):
    """Return all that may begin now."""
    found = []
    while (number := turns.next()) is not None:
        found.append(number)
    return found


# --- turns -------------------------------------------------------------------------------------------------------


def services(text):
    """Return a service for each letter."""
    return [(letter,) for letter in text]


def shares(turns, text):
    """Return how many of each service may begin now."""
    return Counter(text[number] for number in started(turns))


def test_few_calls_all_have_their_turn():
    turns = Turns(services("aba"), 3)
    assert sorted(started(turns)) == [0, 1, 2]
    assert turns.waiting == []


def test_the_next_has_its_turn_when_one_is_over():
    turns = Turns(services("aaaaa"), 2)
    assert started(turns) == [0, 1]
    assert turns.waiting == [2, 3, 4]
    turns.end(0)
    assert started(turns) == [2]
    assert turns.lack == "2 other calls were still waiting for an answer"


def test_each_service_has_its_share():
    text = "a" * 9 + "b" * 9 + "c" * 9
    assert shares(Turns(services(text), 9), text) == {"a": 3, "b": 3, "c": 3}


def test_a_service_that_is_done_leaves_its_share_to_the_others():
    text = "aaaaaaaaab"
    turns = Turns(services(text), 4)
    assert shares(turns, text) == {"a": 2, "b": 1}
    turns.end(9)
    assert shares(turns, text) == {"a": 2}


def test_with_more_services_than_places_each_has_one():
    text = "aabbccddeeff"
    assert shares(Turns(services(text), 4), text) == {"a": 1, "b": 1, "c": 1, "d": 1}


def test_a_service_goes_by_its_addresses():
    """Not by keys, nor by variables of another resource or of the site."""
    environment = {
        "q_QRMI_X_URL": "b",
        "q_QRMI_IAM_ENDPOINT": "a",
        "q_QRMI_TOKEN": "t",
        "HTTP_PROXY": "p",
        "q2_X_URL": "c",
    }
    assert service_of("q", environment) == ("a", "b")


# --- places ------------------------------------------------------------------------------------------------------


@contextmanager
def other_process(node, count, kind=places.CALLS):
    """Let another process hold so many places until the block ends."""
    told_read, told_write = os.pipe()
    end_read, end_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end_write)
        held = Places(node, kind)
        taken = sum(held.take() for _ in range(count))
        os.write(told_write, taken.to_bytes(2, "little"))
        os.read(end_read, 1)
        os._exit(0)
    try:
        yield int.from_bytes(os.read(told_read, 2), "little")
    finally:
        for fd in (told_read, told_write, end_read, end_write):
            os.close(fd)
        os.waitpid(pid, 0)


def take_all(held):
    count = 0
    while held.take():
        count += 1
    return count


def test_a_user_has_half_of_a_nodes_places_at_most(tmp_path):
    node = Node(tmp_path, "n1", 1000)
    with other_process(node, USERS + 5) as taken:
        assert taken == USERS
        mine = Places(node)
        assert not mine.take()
        assert mine.lack == "32 calls of your jobs on node n1 were still waiting for an answer"
        other = Places(node._replace(uid=1001))
        assert take_all(other) == NODES - USERS
    assert mine.take(), "the kernel has given back what the process had"


def test_two_users_can_take_all_of_a_node_but_not_of_another(tmp_path):
    with (
        other_process(Node(tmp_path, "n1", 0), USERS),
        other_process(Node(tmp_path, "n1", 2**32 - 2), USERS),
    ):
        third = Places(Node(tmp_path, "n1", 1000))
        assert not third.take()
        assert third.lack == "64 calls of other jobs on node n1 were still waiting for an answer"
        assert Places(Node(tmp_path, "n2", 1000)).take()


def test_a_place_that_was_given_back_is_free(tmp_path):
    node = Node(tmp_path, "n1", 1000)
    mine = Places(node)
    assert take_all(mine) == USERS
    mine.give_back()
    with other_process(node, 5) as taken:
        assert taken == 1
        assert not mine.take()
    assert mine.take()
    mine.close()
    with other_process(node, USERS) as taken:
        assert taken == USERS


def test_calls_wait_for_a_place_and_give_it_back(tmp_path):
    node = Node(tmp_path, "n1", 1000)
    with other_process(node, USERS):
        turns = Turns([()], 4, node)
        assert turns.next() is None
        assert turns.needs_place
        assert "calls of your jobs" in turns.lack
    assert turns.next() == 0
    assert not turns.needs_place
    turns.end(0)
    turns.close()
    with other_process(node, USERS) as taken:
        assert taken == USERS


def test_the_file_is_roots_alone(tmp_path):
    assert Places(Node(tmp_path, "n1", 1000)).take()
    assert (tmp_path / places._FOLDER).stat().st_mode & 0o777 == 0o700
    assert (tmp_path / places._FOLDER / "node-n1").stat().st_mode & 0o777 == 0o600


def test_a_state_directory_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / places._FOLDER).touch()
    with pytest.raises(RecordError, match="cannot open"):
        Places(Node(tmp_path, "n1", 1000)).take()


# --- calls that are late -----------------------------------------------------------------------------------------


def test_late_calls_have_places_of_their_own_and_fewer(tmp_path):
    """Services that hang do not pile up processes, nor take the places of calls that are in time."""
    node = Node(tmp_path, "n1", 1000)
    late = Places(node, places.LATE)
    assert [late.take() for _ in range(LATE_USERS + 1)] == [True] * LATE_USERS + [False]
    assert LATE_USERS < LATE_NODES < USERS
    assert Places(node).take()
    late.close()


# --- hooks at work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cpus", "of_user", "of_node"), [(1, 2, 3), (2, 5, 6), (128, 288, 384), (1000, 768, 1024)])
def test_one_user_leaves_a_quarter_of_the_places_at_work_to_the_others(cpus, of_user, of_node):
    kind = places.at_work(cpus)
    assert (kind.of_user, kind.of_node) == (of_user, of_node)


def test_a_hook_has_one_place_at_work_until_it_gives_it_back(tmp_path):
    node, kind, work = Node(tmp_path, "n1", 1000), places.at_work(1), Work()
    assert work.begin(node, kind) == ""
    assert work.is_at_work
    with other_process(node, 9, kind) as taken:
        assert taken == 1
        work.end()
        assert not work.is_at_work
        assert Work().begin(node, kind) == ""
    work.end()


def test_the_lack_of_a_place_at_work_is_said(tmp_path):
    node, kind = Node(tmp_path, "n1", 1000), places.at_work(1)
    with other_process(node, 9, kind):
        assert Work().begin(node, kind) == "2 of your jobs were starting on node n1 at that time"
        with other_process(node._replace(uid=1001), 9, kind) as taken:
            assert taken == 1
            assert Work().begin(node._replace(uid=7), kind) == "3 of other jobs were starting on node n1 at that time"


def test_an_epilog_takes_a_place_if_there_is_one_and_half_of_them_at_most(tmp_path):
    node, kind = Node(tmp_path, "n1", 1000), places.at_work(2)
    with other_process(node._replace(uid=places._EPILOGS), 9, kind._replace(of_user=3)) as taken:
        assert taken == 3
        epilog = Work()
        epilog.begin_epilog(node, kind)
        assert not epilog.is_at_work
        with other_process(node, 9, kind) as prologs:
            assert prologs == 3


def test_places_at_work_and_those_of_calls_are_apart(tmp_path):
    node, work = Node(tmp_path, "n1", 1000), Work()
    calls = Places(node)
    assert calls.take()
    work.begin(node, places.at_work(1))
    work.end()
    with other_process(node, USERS + 5) as taken:
        assert taken == USERS - 1, "closing the one file gives nothing back of the other"
