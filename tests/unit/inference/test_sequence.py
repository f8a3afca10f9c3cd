"""When a generation ends, and which rows of its prompt are needed."""

from services.inference.sampling import SamplingParams
from services.inference.sequence import Embedding, Generation, Scoring


def generation(prompt: list[int], **sampling: object) -> Generation:
    return Generation(0, prompt, SamplingParams(seed=0, **sampling), 100)


def ends(seq: Generation, ids: list[int]) -> list[str | None]:
    return [seq.append(token_id) for token_id in ids]


def test_a_stop_sequence_ends_generation_with_its_last_id():
    seq = generation([1], stop_sequences=((5, 6), (7, 8, 9)))
    assert ends(seq, [5, 7, 8, 6, 7, 8, 9]) == [None] * 6 + ["STOP"]


def test_a_stop_sequence_that_begins_in_the_prompt_ends_nothing():
    seq = generation([1, 5], stop_sequences=((5, 6),))
    assert ends(seq, [6, 5, 6]) == [None, None, "STOP"]


def test_a_stop_sequence_of_one_id_is_a_stop_id():
    assert ends(generation([1], stop_sequences=((5,),)), [4, 5]) == [None, "STOP"]


def test_nothing_stops_before_so_many_tokens():
    seq = generation([1], stop_sequences=((5, 6),), stop_ids=frozenset({4}), min_tokens=3)
    assert ends(seq, [5, 6, 2, 4]) == [None, None, None, "STOP"]


def test_the_length_ends_generation_and_a_stop_at_the_same_token_goes_first():
    assert ends(generation([1], max_tokens=2), [4, 5]) == [None, "LENGTH"]
    assert ends(generation([1], max_tokens=2, stop_ids=frozenset({5})), [4, 5]) == [None, "STOP"]
    assert ends(Generation(0, [1], SamplingParams(seed=0), 3), [4, 5]) == [None, "LENGTH"]


def test_prompt_log_probabilities_need_every_row_that_is_not_there_yet():
    seq = generation([1, 2, 3, 4], prompt_logprobs=0)
    assert (seq.is_scored, seq.first_needed) == (True, 0)
    seq.logprobs.extend([0.0, 0.0])
    assert (seq.is_scored, seq.first_needed) == (True, 2)
    seq.logprobs.append(0.0)
    assert (seq.is_scored, seq.first_needed) == (False, 3)


def test_a_prompt_of_one_token_has_no_log_probabilities():
    assert not generation([1], prompt_logprobs=5).is_scored


def test_a_scored_continuation_needs_rows_from_the_last_of_its_context_on():
    seq = Scoring(0, [1, 2, 3], [4, 5])
    assert (seq.num_inputs, seq.first_needed) == (4, 2)


def test_the_mean_needs_every_state_and_the_last_one():
    assert Embedding(0, [1, 2, 3], "mean", True).first_needed == 0
    assert Embedding(0, [1, 2, 3], "last", True).first_needed == 2


def test_choices_have_the_prompt_and_their_own_number():
    seq = Generation(7, [1, 2], SamplingParams(seed=0, n=2, best_of=3), 100, priority=2, client="c", deadline=9.0)
    forks = seq.forks()
    assert [fork.choice for fork in forks] == [1, 2]
    assert all(list(fork.token_ids) == [1, 2] and fork.num_prompt == 2 for fork in forks)
    assert all((fork.request_id, fork.priority, fork.client, fork.deadline) == (7, 2, "c", 9.0) for fork in forks)
    assert all(fork.max_length == seq.max_length == 66 for fork in forks)
    assert seq.num_forks == forks[0].num_forks == 0
    forks[0].append(5)
    assert list(seq.token_ids) == list(forks[1].token_ids) == [1, 2]


def test_only_the_first_choice_reports_the_prompt():
    seq = Generation(7, [1, 2], SamplingParams(seed=0, n=2, best_of=2, prompt_logprobs=1), 100)
    seq.logprobs.append(0.0)
    (fork,) = seq.forks()
    assert (fork.is_scored, fork.first_needed) == (False, 1)
