"""What torch does where lit_cpt counts on it or works around it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import relied_on, worked_around
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, IterableDataset

MODULE, WEIGHTS, CHECKPOINTS = "lit_cpt/module.py", "lit_cpt/weights.py", "lit_cpt/checkpoints.py"


def trained(**settings: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small model after a step of AdamW with named parameters."""
    model = nn.Linear(3, 2)
    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW([{"params": named[:1], "weight_decay": 0.1}, {"params": named[1:]}], lr=0.1,
                                  **settings)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


# The scheduler and the optimizer ----------------------------------------------------------------------


class Counting(LRScheduler):
    """Counts how often it is asked for a rate."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.asked = 0
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        self.asked += 1
        return [float(self.asked)]


def test_a_scheduler_asks_for_the_rate_once_when_built_and_once_a_step():
    optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=9.0)
    with relied_on(MODULE, "CurveLR counts tokens in get_lr, and begins one step below zero"):
        scheduler = Counting(optimizer)
        assert (scheduler.asked, optimizer.param_groups[0]["lr"]) == (1, 1.0)
        optimizer.step()
        scheduler.step()
        assert (scheduler.asked, scheduler.last_epoch, optimizer.param_groups[0]["lr"]) == (2, 1, 2.0)


def test_fused_adamw_runs_on_a_cpu_and_agrees_with_the_plain_one():
    results = []
    with relied_on(MODULE, "configure_optimizers asks for fused=True on cpu and cuda"):
        for fused in (True, False):
            torch.manual_seed(0)
            results.append(trained(fused=fused)[0].weight.detach())
        assert torch.allclose(*results, atol=1e-6)


def test_adamws_state_is_step_exp_avg_and_exp_avg_sq_with_the_step_as_a_float_on_the_cpu():
    with relied_on(WEIGHTS, "load_moments writes this state itself, and read_moments looks for exp_avg"):
        model, optimizer = trained(fused=True)
        state = optimizer.state[model.weight]
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert (state["step"].dtype, state["step"].device.type, float(state["step"])) == (torch.float32, "cpu", 1.0)


def test_moments_set_before_the_first_step_are_those_that_it_goes_on_from():
    with relied_on(WEIGHTS, "load_moments sets optimizer.state before any step"):
        _, before = trained(fused=True)
        model, _ = trained()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        moments = {name: value.clone() for name, value in next(iter(before.state.values())).items()}
        optimizer.state[model.weight] = moments
        optimizer.step()
        assert float(optimizer.state[model.weight]["step"]) == 2.0


def test_an_optimizer_built_with_names_saves_them_and_numbers_parameters_through_its_groups():
    with relied_on(WEIGHTS, "saved_names finds the parameters' names in param_groups"):
        groups = trained()[1].state_dict()["param_groups"]
        assert [(group["params"], group["param_names"]) for group in groups] == [([0], ["weight"]), ([1], ["bias"])]


def test_hooks_behind_a_step_run_in_the_order_they_were_registered():
    model, optimizer = trained()
    heard: list[Any] = []
    with relied_on("tests/exactness/faults.py", "the ledger is written right behind the optimizer's update"):
        for number in (1, 2):
            optimizer.register_step_post_hook(
                lambda *_, number=number: heard.append((number, float(optimizer.state[model.weight]["step"]))))
        optimizer.step()
        assert heard == [(1, 2.0), (2, 2.0)]


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_of_adamw_is_seen_in_the_versions_of_parameters_and_moments(fused):
    model, optimizer = trained(fused=fused)

    def writes() -> int:  # a fused step is seen in its `step` alone, which is counted up before anything is written
        moments = (value for state in optimizer.state.values() for value in state.values())
        return sum(value._version for value in [*model.parameters(), *moments])

    with relied_on("callbacks/run_checkpoint.py", "writes() tells by _version whether an update was cut short"):
        before = writes()
        model(torch.ones(1, 3)).sum().backward()
        assert writes() == before
        optimizer.step()
        assert writes() > before


def test_clipping_to_infinity_measures_the_norm_and_leaves_gradients_as_they_are():
    model = nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    before = model.weight.grad.clone()
    with relied_on(MODULE, "without a clip it clips to infinity, to log the norm"):
        norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        assert float(norm) == pytest.approx(8 ** 0.5)
        assert torch.equal(model.weight.grad, before)


# Files ------------------------------------------------------------------------------------------------


def saved(folder: Path) -> Path:
    path = folder / "saved.ckpt"
    torch.save({"state_dict": {"model.weight": torch.ones(300)}, "plain": {"values": [1, 2.0, "three", None, True]}},
               path)
    return path


def test_a_saved_file_is_an_archive_whose_table_of_contents_comes_last(tmp_path):
    path = saved(tmp_path)
    with relied_on(CHECKPOINTS, "damage() takes a file for whole if its table of contents is there and names data.pkl"):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        assert sum(entry.filename.endswith("data.pkl") for entry in entries) == 1
        assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
        content = path.read_bytes()
        for length in (len(content) - 1, len(content) * 9 // 10, 100):
            path.write_bytes(content[:length])
            with pytest.raises(zipfile.BadZipFile):
                zipfile.ZipFile(path)


def test_plain_values_and_tensors_load_without_running_code(tmp_path):
    with relied_on(WEIGHTS, "it loads checkpoints with weights_only=True and mmap=True"):
        loaded = torch.load(saved(tmp_path), map_location="cpu", weights_only=True, mmap=True)
        assert loaded["plain"] == {"values": [1, 2.0, "three", None, True]}
        assert torch.equal(loaded["state_dict"]["model.weight"], torch.ones(300))


class FullDisk(io.BytesIO):
    """A file on a disk that is full."""

    def write(self, content: Any) -> int:
        raise OSError(28, "No space left on device")


def test_the_error_of_a_full_disk_is_behind_torchs_own():
    with relied_on(CHECKPOINTS, "disk_error looks for the OSError that torch's error was raised upon"):
        with pytest.raises((OSError, RuntimeError)) as caught:
            torch.save({"weight": torch.ones(300)}, FullDisk())
        error: BaseException | None = caught.value
        while error is not None and not isinstance(error, OSError):
            error = error.__cause__ or error.__context__
        assert error is not None
        assert error.errno == 28


# Data -------------------------------------------------------------------------------------------------


def test_tokens_of_16_bits_stack_and_convert():
    with relied_on("lit_cpt/prepare/tokens.py", "dtype_of stores small vocabularies as uint16"):
        block = torch.tensor([65_534, 3], dtype=torch.uint16)
        assert torch.stack([block, block]).long().tolist() == [[65_534, 3]] * 2


def test_tokens_of_16_bits_have_no_embedding():
    with worked_around("lit_cpt/stream/loader.py", "collate turns tokens into int64"), \
            pytest.raises((RuntimeError, NotImplementedError)):
        nn.Embedding(8, 2)(torch.tensor([1], dtype=torch.uint16))


class Endless(IterableDataset):
    """Numbers without end."""

    def __iter__(self):
        number = 0
        while True:
            yield number
            number += 1


def test_the_iterator_of_workers_can_be_ended_and_a_persistent_one_is_kept_in_iterator():
    loader = DataLoader(Endless(), batch_size=2, num_workers=1, persistent_workers=True)
    with relied_on("lit_cpt/stream/fetching.py", "close_iterators ends loader._iterator and sets it to None"):
        iterator = iter(loader)
        assert loader._iterator is iterator
        next(iterator)
        iterator._shutdown_workers()
        loader._iterator = None
        assert next(iter(loader)).tolist() == [0, 1]
        loader._iterator._shutdown_workers()


def test_worker_processes_keep_the_copy_of_the_dataset_that_they_began_with():
    dataset = Endless()
    loader = DataLoader(dataset, batch_size=1, num_workers=1, persistent_workers=True, collate_fn=list)
    with worked_around("lit_cpt/stream/loader.py", "persistent_workers is refused, and a switch rebuilds the workers"):
        next(iter(loader))
        dataset.__class__ = type("Other", (Endless,), {"__iter__": lambda self: iter([7, 7, 7])})
        assert next(iter(loader)) == [0]
        loader._iterator._shutdown_workers()


# Models -----------------------------------------------------------------------------------------------


def test_a_compiled_model_holds_the_one_that_was_compiled():
    model = nn.Linear(2, 2)
    with relied_on("lit_cpt/harness/network.py", "the model inside is evaluated, which compiles nothing"):
        assert torch.compile(model)._orig_mod is model
