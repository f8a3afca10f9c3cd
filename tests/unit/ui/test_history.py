"""A job's events, gathered for its page."""

import pytest
from anthesis.v1 import job_pb2 as pb

from ui import history


class Watched:
    """Stands for the client: yields given events after the cursor."""

    def __init__(self, *events: pb.JobEvent) -> None:
        self.jobs = self
        self.events = events
        self.asked: list[int] = []

    async def watch(self, job_id, *, after_sequence=0, patience_s=0):
        self.asked.append(after_sequence)
        for event in self.events:
            if event.sequence > after_sequence:
                yield event


def progress(sequence: int, step: int, loss: float = 1.0) -> pb.JobEvent:
    return pb.JobEvent(sequence=sequence, progress=pb.TrainingProgress(step=step, total_steps=9, loss=loss))


def test_a_page_asks_only_for_what_it_has_not_seen():
    past, client = history.History(), Watched(progress(1, 1), progress(2, 2))
    past.catch_up(client, "job")
    client.events = (*client.events, progress(3, 3))
    past.catch_up(client, "job")
    assert client.asked == [0, 2]
    assert [point["step"] for point in past.points] == [1, 2, 3]


def test_steps_repeated_by_a_resumed_attempt_replace_the_first_ones():
    past = history.History()
    events = [progress(1, 1, 4.0), progress(2, 2, 3.0), progress(3, 3, 2.0), progress(4, 2, 3.1), progress(5, 3, 2.1)]
    past.catch_up(Watched(*events), "job")
    assert [(point["step"], round(point["loss"], 1)) for point in past.points] == [(1, 4.0), (2, 3.1), (3, 2.1)]


def validated(sequence: int, step: int, **bits: float) -> pb.JobEvent:
    losses = [pb.ValidationLoss(dataset="d", language=name, bits_per_byte=value) for name, value in bits.items()]
    return pb.JobEvent(sequence=sequence, progress=pb.TrainingProgress(step=step, total_steps=9, validation=losses))


def test_validations_are_a_line_for_each_language_and_one_done_again_replaces_the_first():
    past = history.History()
    events = [validated(1, 1, en=2.0, fr=3.0), progress(2, 2), validated(3, 3, en=1.5, fr=2.5), validated(4, 3, en=1.0)]
    past.catch_up(Watched(*events), "job")
    found = [(point["step"], point["of"], point["bits"]) for point in past.validation]
    assert found == [(1, "d: en", 2.0), (1, "d: fr", 3.0), (3, "d: en", 1.0)]
    assert history.validation_chart(past.validation).to_dict()["encoding"]["color"]["field"] == "of"


@pytest.mark.parametrize(
    ("per_second", "text"), [(0, "0.0 FLOP/s"), (999, "999.0 FLOP/s"), (1.498e14, "149.8 TFLOP/s")]
)
def test_flops_are_short(per_second, text):
    assert history.flops(per_second) == text


def test_states_and_messages_make_the_log_and_an_ended_job_is_asked_no_more():
    past = history.History()
    ended = pb.JobEvent(sequence=2, state=pb.JOB_STATE_SUCCEEDED)
    client = Watched(pb.JobEvent(sequence=1, message="attempt 2 resumed from step 300"), ended)
    past.catch_up(client, "job")
    past.catch_up(client, "job")
    assert [text for _, text in past.messages] == ["attempt 2 resumed from step 300", "Succeeded"]
    assert client.asked == [0]


def test_long_histories_are_thinned_but_keep_their_newest_point():
    past = history.History()
    past.catch_up(Watched(*(progress(step, step) for step in range(1, 4001))), "job")
    line = history.loss_chart(past.points).to_dict()["datasets"]
    longest = max(line.values(), key=len)
    assert len(longest) <= 2 * history.MAX_POINTS
    assert longest[-1]["step"] == 4000


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (75, "1 min 15 s"), (3600, "1 h 00 min"), (7500, "2 h 05 min")]
)
def test_durations_are_short(seconds, text):
    assert history.duration(seconds) == text
