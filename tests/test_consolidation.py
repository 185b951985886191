"""What a checkpoint holds, and one file of what several ranks wrote: as if one process had written it."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from lit_cpt.consolidation import consolidate, holdings
from lit_cpt.publishing import COMPLETE
from lit_cpt.weights import build_model, load_moments, parameter_groups, read_moments

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Module(nn.Module):
    """Holds a model as the LightningModule does."""

    def __init__(self, model):
        super().__init__()
        self.model = model


@pytest.fixture
def trained(tiny):
    """A model after two steps, and its optimizer."""
    torch.manual_seed(0)
    module = Module(build_model(None, tiny))
    optimizer = torch.optim.AdamW(parameter_groups(module.model, 0.1), lr=1e-3)
    for _ in range(2):
        module.model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
        optimizer.step()
    return module, optimizer


@pytest.fixture
def folder(trained, tmp_path):
    """The checkpoint that ranks would write of it."""
    module, optimizer = trained
    path = tmp_path / "step-00000002.ckpt"
    dcp.save({"state_dict": module.state_dict(), "optimizer_0": get_optimizer_state_dict(module, optimizer)},
             checkpoint_id=path)
    torch.save({"global_step": 2, "lit_cpt": {"tokens_seen": 16, "architecture": {"model_type": "llama"}}},
               path / "meta.pt")
    (path / COMPLETE).touch()
    return path


def test_the_file_is_what_one_process_writes(trained, folder, tmp_path):
    module, optimizer = trained
    output = tmp_path / "new" / "whole.ckpt"
    consolidate(folder, output)
    saved = torch.load(output, weights_only=True)
    assert saved["global_step"] == 2
    assert saved["state_dict"].keys() == module.state_dict().keys()
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in saved["state_dict"].items())
    mine, theirs = saved["optimizer_states"][0], optimizer.state_dict()
    assert mine["state"].keys() == theirs["state"].keys()
    for index, one in theirs["state"].items():
        assert all(torch.equal(mine["state"][index][key], value) for key, value in one.items())
    assert [group["params"] for group in mine["param_groups"]] == [group["params"] for group in theirs["param_groups"]]
    optimizer.load_state_dict(mine)
    assert [path.name for path in output.parent.iterdir()] == ["whole.ckpt"]


def test_moments_are_read_from_the_file(trained, folder, tmp_path, tiny):
    module, optimizer = trained
    consolidate(folder, tmp_path / "whole.ckpt")
    other = build_model(None, tiny)
    fresh = torch.optim.AdamW(parameter_groups(other, 0.1), lr=1e-3)
    load_moments(other, fresh, read_moments(tmp_path / "whole.ckpt", other))
    old = dict(module.model.named_parameters())
    for name, parameter in other.named_parameters():
        assert torch.equal(fresh.state[parameter]["exp_avg"], optimizer.state[old[name]]["exp_avg"]), name


def test_a_folder_and_its_file_hold_the_same(folder, tmp_path):
    consolidate(folder, tmp_path / "whole.ckpt")
    several, one = holdings(folder), holdings(tmp_path / "whole.ckpt")
    assert (several.ranks, one.ranks) == (1, 0)
    for found in (several, one):
        assert (found.step, found.tokens_seen, found.model, found.optimizer, found.damage) == (
            2, 16, "llama", True, None)
        assert found.bytes > 3 * 4 * found.parameters  # weights and two moments, fp32
    assert several.parameters == one.parameters


def test_a_damaged_one_is_told_and_not_consolidated(folder, tmp_path):
    (folder / COMPLETE).unlink()
    found = holdings(folder)
    assert (found.step, found.parameters) == (2, None)
    assert "it has no file COMPLETE" in found.damage
    with pytest.raises(ValueError, match=r"step-00000002.ckpt is damaged: it has no file COMPLETE"):
        consolidate(folder, tmp_path / "whole.ckpt")


def test_what_cannot_be_consolidated_is_refused(folder, tmp_path):
    (tmp_path / "there").touch()
    with pytest.raises(FileExistsError, match=r"--output .*there is there already"):
        consolidate(folder, tmp_path / "there")
    with pytest.raises(ValueError, match=r"there was not written by several ranks"):
        consolidate(tmp_path / "there", tmp_path / "other")
    nothing = tmp_path / "nothing.ckpt"
    for ask in (lambda: holdings(nothing), lambda: consolidate(nothing, tmp_path / "other")):
        with pytest.raises(FileNotFoundError, match=r"nothing.ckpt: there is no such checkpoint"):
            ask()
