"""The socket between two ranks, when one of them is gone."""

import socket

from services.inference.rank_channel import Channel, Connect, Failed


def test_what_is_sent_to_a_rank_that_has_ended_is_lost_and_no_answer_comes():
    ours, theirs = (Channel(end) for end in socket.socketpair())
    theirs.close()
    for _ in range(3):
        ours.send(Connect())
    assert ours.receive() is None
    ours.close()


def test_what_a_rank_said_before_it_ended_is_still_heard():
    ours, theirs = (Channel(end) for end in socket.socketpair())
    theirs.send(Failed("no weights"))
    theirs.close()
    ours.send(Connect())
    assert ours.receive() == Failed("no weights")
    ours.close()
