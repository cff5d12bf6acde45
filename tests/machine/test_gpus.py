"""Which GPUs are meant, and by which names a process is shown one of them."""

import pytest

from losa_cache.errors import UserError
from losa_cache.machine.gpus import count_gpus, names_of_gpus, parse_gpus


def test_numbers_are_read_as_a_command_a_file_and_a_caller_give_them():
    assert parse_gpus("all") is None
    assert parse_gpus("0,2,3") == parse_gpus("0, 2,3,") == parse_gpus([0, 2, 3]) == [0, 2, 3]
    assert parse_gpus(1) == parse_gpus("1") == [1]


@pytest.mark.parametrize("gpus", ["", ",", "every", "0-3", "-1", "cuda:0", [], "0;1", "\u0661", True])
def test_other_words_are_refused(gpus):
    with pytest.raises(UserError, match="write all, or numbers of GPUs, as in --gpus 0,2,3"):
        parse_gpus(gpus)


def test_a_forecast_takes_a_number_or_the_gpus_of_an_extraction():
    assert [count_gpus(gpus, 4) for gpus in (8, "64", "all", "0,2,3", [1, 2])] == [8, 64, 4, 3, 2]
    with pytest.raises(UserError, match="write all, or numbers"):
        count_gpus("every", 4)


def test_a_gpu_cannot_have_two_processes():
    with pytest.raises(UserError, match=r"'0,1,0', which names a GPU twice"):
        parse_gpus("0,1,0")


@pytest.mark.parametrize(
    ("numbers", "count", "visible", "names"),
    [
        (None, 3, None, {0: "0", 1: "1", 2: "2"}),
        ([2, 0], 3, None, {2: "2", 0: "0"}),
        ([1], 2, "5,7", {1: "7"}),  # a batch system has chosen: numbers are of what this process sees
        (None, 2, "GPU-8f6b, MIG-12ab", {0: "GPU-8f6b", 1: "MIG-12ab"}),
        (None, 1, "3,99,4", {0: "3"}),  # CUDA leaves out what follows a number that is not there
    ],
)
def test_numbers_are_those_of_the_gpus_that_this_process_sees(numbers, count, visible, names):
    assert names_of_gpus(numbers, count, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == names


@pytest.mark.parametrize(
    ("numbers", "count", "said"),
    [
        ([0, 4], 4, "there is no GPU 4: they are numbered from 0 to 3"),
        ([1], 1, "there is no GPU 1: 0 is the only one"),
        (None, 0, "needs a GPU, and there is none here: leave it out, or pass --processes to use the CPU"),
    ],
)
def test_a_gpu_that_is_not_there_is_one_sentence(numbers, count, said):
    with pytest.raises(UserError, match=said):
        names_of_gpus(numbers, count, {})
