"""How a fine-tuning trains where its client leaves it open, and what its model is called."""

import pytest
from anthesis.names import check_model_name, check_name
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.fine_tuning import File
from services.gateway.fine_tuning_service import model_name
from services.gateway.hyperparameters import Hyperparameters, choose_training


def file_of(num_rows: int, *, longest: int = 100, size: int | None = None) -> File:
    return File(
        id="file-1",
        filename="a",
        purpose="fine-tune",
        digest="",
        size_bytes=num_rows * longest if size is None else size,
        format="MULTITASK",
        num_rows=num_rows,
        longest_row_bytes=longest,
        created_s=0,
        expires_s=None,
    )


@pytest.mark.parametrize(
    ("num_rows", "epochs"), [(1, 25), (10, 10), (33, 3), (34, 3), (1000, 3), (8333, 3), (10_000, 2), (60_000, 1)]
)
def test_small_files_are_passed_more_often(num_rows, epochs):
    assert choose_training(Hyperparameters(), file_of(num_rows), None).epochs == epochs


@pytest.mark.parametrize(("longest", "window"), [(1, 256), (256, 256), (257, 512), (2000, 2048), (1 << 20, 2048)])
def test_a_window_has_room_for_the_longest_row_as_far_as_windows_go(longest, window):
    assert choose_training(Hyperparameters(), file_of(3, longest=longest), None).sequence_length == window


def test_what_is_asked_for_is_what_is_done():
    asked = Hyperparameters(n_epochs=7, batch_size=12, learning_rate_multiplier=0.5)
    training = choose_training(asked, file_of(10), 3)
    assert (training.epochs, training.learning_rate, training.seed) == (7, 1e-4, 3)
    assert (training.micro_batch, training.gradient_accumulation) == (12, 1)
    assert choose_training(asked, file_of(10, longest=2000), 3).micro_batch == 2


@given(
    batch=st.none() | st.integers(1, 256),
    num_rows=st.integers(1, 10**6),
    longest=st.integers(1, 1 << 24),
    size=st.integers(1, 1 << 40),
)
def test_a_batch_is_whole_micro_batches_of_few_tokens(batch, num_rows, longest, size):
    training = choose_training(Hyperparameters(batch_size=batch), file_of(num_rows, longest=longest, size=size), None)
    made = training.micro_batch * training.gradient_accumulation
    assert made == batch if batch else 1 <= made <= 8
    assert training.micro_batch * training.sequence_length <= 4096


names = st.from_regex(r"[a-z0-9_][a-z0-9._-]{0,99}(/[a-z0-9_][a-z0-9._-]{0,98})?@[1-9]\d{0,5}", fullmatch=True)


@given(base=names, suffix=st.from_regex(r"([a-z0-9._-]{1,64})?", fullmatch=True))
def test_a_models_name_is_one_that_models_and_aliases_may_have(base, suffix):
    name = model_name(base, suffix, "0123456789ab")
    assert check_model_name(name) == check_name("alias", name) == name
    assert name.endswith(f".{suffix}.0123456789ab" if suffix else ".0123456789ab")


def test_a_models_name_tells_of_its_base():
    assert model_name("bigscience/bloom-560m@1", "tales", "0f") == "ft.bloom-560m.tales.0f"
    assert model_name("seedling@12", "", "0f") == "ft.seedling.0f"
