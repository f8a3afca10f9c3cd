from services.inference.best_of import BestOf
from services.inference.messages import Token
from services.inference.sampling import SamplingParams


def token(choice: int, token_id: int, logprob: float, finish: str | None = None) -> Token:
    return Token(1, token_id, logprob, [], finish, choice=choice)


def test_the_likeliest_choices_per_token_come_best_first_when_all_have_ended():
    best_of = BestOf(SamplingParams(seed=0, n=2, best_of=3, logprobs=0))
    assert best_of.add(token(0, 10, -3.0, "STOP")) == []
    assert best_of.add(token(1, 20, -2.0)) == []
    assert best_of.add(token(2, 30, -1.0, "LENGTH")) == []
    assert best_of.add(token(1, 21, -2.0, "LENGTH")) == [
        token(0, 30, -1.0, "LENGTH"),
        token(1, 20, -2.0),
        token(1, 21, -2.0, "LENGTH"),
    ]


def test_of_equals_the_first_drawn_comes_first():
    best_of = BestOf(SamplingParams(seed=0, n=1, best_of=2, logprobs=0))
    best_of.add(token(1, 20, -1.0, "STOP"))
    assert best_of.add(token(0, 10, -1.0, "STOP")) == [token(0, 10, -1.0, "STOP")]


def test_log_probabilities_that_nobody_asked_for_are_not_sent():
    best_of = BestOf(SamplingParams(seed=0, n=1, best_of=2))
    best_of.add(token(0, 10, -1.0, "STOP"))
    assert best_of.add(token(1, 20, -2.0, "STOP"))[0].logprob is None
