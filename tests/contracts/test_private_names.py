"""Every private name of other packages that lit_cpt uses has a contract, which is named here."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PYTHONS_OWN = {"_exit", "_asdict", "_replace", "_fields"}  # documented in spite of their names

CONTRACTS = {
    "test_litdata.py": {
        "_create_cache": "test_create_cache_opens_a_source_and_its_reader_holds_the_item_loader",
        "_reader": "test_create_cache_opens_a_source_and_its_reader_holds_the_item_loader",
        "_item_loader": "test_create_cache_opens_a_source_and_its_reader_holds_the_item_loader",
        "_mmap_keep": "test_mmap_keep_is_the_number_of_chunks_that_stay_mapped",
        "_mmaps": "test_a_chunk_that_is_taken_out_of_the_loaders_mappings_is_mapped_anew",
        "_buffers": "test_a_chunk_that_is_taken_out_of_the_loaders_mappings_is_mapped_anew",
        "_counter": "test_a_chunk_that_is_taken_out_of_the_loaders_mappings_is_mapped_anew",
        "_mmap": "test_a_chunk_that_is_taken_out_of_the_loaders_mappings_is_mapped_anew",
        "_WorkerEnv": "test_a_worker_knows_its_number_among_the_workers",
        "_DistributedEnv": "test_the_environment_tells_rank_and_world_size_without_a_process_group",
        "_get_iterator": "test_get_iterator_starts_workers_that_shutdown_workers_ends",
        "_shutdown_workers": "test_get_iterator_starts_workers_that_shutdown_workers_ends",
        "_datasets": "test_a_loader_hands_its_dataset_the_batch_size_and_plain_tensors_to_the_collate_function",
        "_weights": "test_weights_set_between_epochs_are_those_of_the_next",
        "_iterate_over_all": "test_a_combined_dataset_tells_how_it_was_built",
        "_batching_method": "test_a_combined_dataset_tells_how_it_was_built",
        "_seed": "test_a_combined_dataset_tells_how_it_was_built",
    },
    "test_object_stores.py": {
        "_DOWNLOADERS": "test_the_prefix_of_a_url_decides_the_downloader",
        "_OBSTORE_CLIENT_OPTIONS": "test_obstore_refuses_plain_http_unless_its_client_options_allow_it",
        "_CredentialsConfigurationError": "test_an_error_of_credentials_can_be_told_by_its_name",
    },
    "test_lightning.py": {
        "_should_accumulate": "test_should_accumulate_is_true_at_the_end_of_every_batch_but_a_steps_last",
        "_combined_loader": "test_the_fit_loop_holds_the_very_loaders_that_it_was_given",
        "_data_fetcher": "test_iterating_over_the_data_fetcher_again_fetches_from_the_loader_as_it_is_then",
        "_num_ready_batches_reached": "test_the_last_batch_is_known_at_its_end",
        "_should_check_val_fx": "test_whether_a_validation_follows_can_be_asked_at_the_end_of_a_batch",
        "_should_check_val_epoch": "test_whether_a_validation_follows_can_be_asked_at_the_end_of_a_batch",
        "_batches_that_stepped": "test_the_counters_of_a_checkpoint_are_those_that_set_progress_writes",
        "_trainer": "test_a_module_is_without_a_trainer_until_it_is_fitted",
        "_get": "test_the_command_line_knows_its_subcommands_parsers_and_its_config",
        "_subcommand_parsers": "test_the_command_line_knows_its_subcommands_parsers_and_its_config",
        "_parse_ckpt_path": "test_a_checkpoints_hyperparameters_override_the_command_line",
        "_checkpoint_connector": "test_dump_checkpoint_is_what_save_checkpoint_writes",
        "_run_subcommand": "test_a_subcommand_runs_between_its_before_and_its_after",
    },
    "test_torch.py": {
        "_orig_mod": "test_a_compiled_model_holds_the_one_that_was_compiled",
        "_version": "test_a_step_of_adamw_is_seen_in_the_versions_of_parameters_and_moments",
        "_iterator": "test_the_iterator_of_workers_can_be_ended_and_a_persistent_one_is_kept_in_iterator",
    },
    "test_transformers.py": {
        "_is_hf_initialized": "test_weights_marked_as_initialised_are_kept_and_what_no_file_holds_is_computed",
        "_actions": "test_a_parser_knows_its_keys_and_which_of_them_are_flags",
        "_typehint": "test_a_parser_knows_its_keys_and_which_of_them_are_flags",
    },
}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.isidentifier() and name != "_"


def sources() -> dict[str, ast.Module]:
    """Every file of the package, parsed; the links lit_cpt/callbacks and lit_cpt/configs are left out."""
    files = [path for path in (ROOT / "lit_cpt").rglob("*.py") if path.relative_to(ROOT).parts[1] != "callbacks"]
    files += (ROOT / "callbacks").glob("*.py")
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def classes(tree: ast.Module) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def inherits(node: ast.ClassDef, ours: set[str]) -> bool:
    """Whether a class may have inherited its private names from another package."""
    return any(ast.unparse(base).split("[")[0] not in {*ours, "Protocol", "NamedTuple", "Exception", "OSError"}
               for base in node.bases)


def own_names(trees: Iterable[ast.Module], ours: set[str]) -> set[str]:
    """Private names given here: to functions, classes, variables, attributes of self, and methods called on self."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    inherited = {method for node in nodes if isinstance(node, ast.ClassDef) and inherits(node, ours)
                 for method in node.body}
    called = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"}
    names = set()
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (node not in inherited or node.name in called):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def foreign_names(tree: ast.Module, own: set[str], here: set[str]) -> Iterator[tuple[str, int]]:
    """Private names of other packages in a file, each with its line: attributes, imports, overrides and strings.

    Args:
        tree: The file.
        own: Names that the package gives: an attribute of self that is called so is its own.
        here: Names that this file gives: so is any other attribute.
    """
    pieces = {piece for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in node.values}
    for node in ast.walk(tree):
        found: list[str] = []
        known = here
        if isinstance(node, ast.Attribute):
            found, holder = [node.attr], ast.unparse(node.value)
            known = own if holder in ("self", "cls") else set() if holder == "super()" else here
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("lit_cpt"):
            found, known = [alias.name for alias in node.names], set()
        elif isinstance(node, ast.FunctionDef):
            found = [node.name]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in pieces:
            found = [node.value] if not node.value.endswith("_") else []
        yield from ((name, node.lineno) for name in found if private(name) and name not in known | PYTHONS_OWN)


def uses() -> dict[str, list[str]]:
    """Private name of another package -> where the package uses it."""
    trees = sources()
    ours = {node.name for tree in trees.values() for node in classes(tree)}
    own = own_names(trees.values(), ours)
    found: dict[str, list[str]] = {}
    for file, tree in trees.items():
        for name, line in foreign_names(tree, own, own_names([tree], ours)):
            found.setdefault(name, []).append(f"{file}:{line}")
    return found


@pytest.fixture(scope="module")
def used():
    return uses()


def test_every_private_name_of_another_package_has_a_contract(used):
    known = {name for contracts in CONTRACTS.values() for name in contracts}
    missing = {name: places for name, places in used.items() if name not in known}
    assert not missing, (
        f"{missing}: a private name may change with any version. Use something public; or write a test in "
        "tests/contracts that shows on the real object what the code counts on, and name it in CONTRACTS")


def test_every_contract_of_a_private_name_is_still_needed(used):
    idle = {name for contracts in CONTRACTS.values() for name in contracts} - used.keys()
    assert not idle, f"{sorted(idle)}: nothing uses these any more; take them out of CONTRACTS"


@pytest.mark.parametrize("file", CONTRACTS)
def test_the_contracts_that_are_named_exist(file):
    tests = {node.name for node in ast.walk(ast.parse((HERE / file).read_text(encoding="utf-8")))
             if isinstance(node, ast.FunctionDef)}
    missing = set(CONTRACTS[file].values()) - tests
    assert not missing, f"{file} has no {sorted(missing)}"


def test_the_search_sees_attributes_imports_overrides_strings_and_super():
    text = """
from upstream import Parent, _imported
class Mine(Parent):
    def _method(self):
        pass
    def _overridden(self):
        self._mine = 1
        self._method()
        super()._parents()
        thing._deep._mine
        getattr(thing, "_asked")
        f"{self}_piece"
"""
    tree = ast.parse(text)
    own = own_names([tree], {"Mine"})
    names = {name for name, _ in foreign_names(tree, own, own)}
    assert names == {"_imported", "_overridden", "_parents", "_deep", "_asked"}
