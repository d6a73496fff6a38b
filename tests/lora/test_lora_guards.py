"""The known ways in which fine-tuning fails, and for each the test in which its guard fires and names the cure.

Each is the subject of many issues of trl, peft, transformers, axolotl, unsloth, LLaMA-Factory or diffusers.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import TEMPLATE, make_adapter, make_base, make_tokenizer

from ragft_plugin.errors import AdapterError, ConfigError, DataError
from ragft_plugin.lora import LoraModel, Recipe, Renderer, check_rows
from ragft_plugin.lora.base import load_base
from ragft_plugin.lora.batches import Collator
from ragft_plugin.lora.data import as_rows
from ragft_plugin.lora.quiet import quiet
from ragft_plugin.lora.rendering import IGNORED
from ragft_plugin.lora.trainable import make_trainable

HERE = Path(__file__).parent
GUARDS = {
    "every label is masked: the answer is not shown": "data::test_a_row_with_nothing_to_learn_is_an_error",
    "every label is masked: loss and gradient stay exactly 0": (
        "training::test_a_loss_of_exactly_zero_says_to_look_at_the_mask"
    ),
    "the loss is not a number": "training::test_a_loss_that_is_not_a_number_stops_the_training",
    "max_length cuts the answers away": "data::test_an_answer_that_would_be_cut_off_is_an_error",
    "it never stops: the end is not learnt": "data::test_an_answer_whose_end_is_not_learnt_is_an_error",
    "it never stops: no end token": "rendering::test_a_tokenizer_without_end_token_is_refused",
    "it never stops: the end is masked as padding": "guards::test_the_end_is_learnt_although_it_is_the_padding_too",
    "the template differs at inference": "registry::test_the_template_is_part_of_what_is_checked",
    "the template renders prompts otherwise in training": (
        "rendering::test_a_template_that_changes_the_prompt_once_answered_is_refused"
    ),
    "the start token is doubled": "data::test_a_tokenizer_that_adds_a_start_token_does_not_double_it",
    "the user's turns are learnt too": "data::test_what_was_said_before_is_read_and_not_learnt",
    "special tokens in the data inject a role": "rendering::test_special_tokens_in_text_cannot_inject_a_role",
    "evaluation rows are training rows": "training::test_evaluation_rows_among_the_training_rows_are_refused",
    "the adapter is not applied: it changes nothing": "model::test_an_adapter_that_changes_nothing_is_refused",
    "the adapter is not applied: keys are missing": "model::test_missing_and_surplus_weights_are_refused",
    "the adapter computes otherwise than when it was saved": "registry::test_loading_reproduces_the_probe",
    "a name that PEFT cannot bear": "model::test_names_that_peft_cannot_bear_are_refused",
    "another base of the same shape": "training::test_an_adapter_for_another_base_is_refused_unless_trusted",
    "another base of another shape": "model::test_an_adapter_of_another_width_is_refused",
    "an adapter on an adapter: in training": "guards::test_training_on_top_of_an_adapter_is_refused",
    "an adapter on an adapter: as the base": "model::test_an_adapter_is_no_base",
    "a start that changes the base": "model::test_adapters_that_change_or_cannot_share_the_base_are_refused",
    "a start that changes the base: in training": (
        "methods::test_a_method_learns_and_what_is_saved_computes_what_was_trained"
    ),
    "resuming another training": "training::test_a_checkpoint_of_another_training_is_refused",
    "resuming into another state": "training::test_a_resumed_training_ends_bit_for_bit_where_a_straight_one_does",
    "merged differs from adapter": "export::test_a_merged_model_keeps_the_stored_type_and_says_what_that_costs",
    "merged into a base of 4 bits": "guards::test_merging_into_a_base_of_four_bits_is_refused",
    "over-fitting: the last step is not the best": "training::test_early_stopping_keeps_the_best_checkpoint",
    "over-fitting: no better than examples in the prompt": (
        "worth::test_a_refused_adapter_waits_and_can_be_kept_without_training_again"
    ),
    "it forgets what the base could do": "worth::test_without_a_probe_set_it_is_what_the_base_answers_right",
    "a swapped adapter of other layers or another rank": (
        "guards::test_a_new_version_of_other_rank_and_layers_computes_as_if_it_were_alone"
    ),
    "the tokenizer is replaced on loading": "model::test_a_model_type_that_replaces_the_tokenizer_is_found_out",
    "more tokens than embeddings": "model::test_a_tokenizer_with_more_tokens_than_embeddings_is_refused",
    "an encoder learns from false negatives": (
        "retrieval/encoder_tuning::test_negatives_hold_no_answer_and_no_other_positive"
    ),
    "an encoder gets worse": "retrieval/encoder_tuning::test_an_encoder_that_does_not_get_better_is_not_kept",
    "the store is not encoded again": (
        "retrieval/encoder_tuning::test_a_tuned_encoder_is_kept_and_the_knowledge_base_gets_another_fingerprint"
    ),
    "rewards that never differ": "policy::test_a_reward_that_never_differs_stops_the_training_with_advice",
}


@pytest.mark.parametrize("failure", GUARDS)
def test_every_known_failure_has_a_test_of_its_guard(failure: str) -> None:
    file, _, name = GUARDS[failure].partition("::")
    folder, _, short = f"lora/lora_{file}".rpartition("/") if "/" not in file else file.rpartition("/")
    tree = ast.parse((HERE.parent / folder / f"test_{short}.py").read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert len(found) == 1
    marks = {ast.unparse(mark) for mark in found[0].decorator_list}
    assert not any("skip" in mark or "slow" in mark for mark in marks)
    assert any(isinstance(node, ast.Assert | ast.With) for node in ast.walk(found[0]))


def test_the_end_is_learnt_although_it_is_the_padding_too() -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    rows = as_rows([{"question": "what?", "answer": "red"}, {"question": "what is it?", "answer": "blue river"}])
    ids, _ = check_rows(rows, Renderer(tokenizer), max_length=64)
    batch = Collator(tokenizer.pad_token_id)(ids)
    end = tokenizer.eos_token_id
    for row, labels, mask in zip(ids, batch["labels"], batch["attention_mask"], strict=True):
        assert labels.tolist().count(end) == 1
        assert labels[len(row.ids) - 1] == end
        assert (labels[len(row.ids) :] == IGNORED).all()
        assert int(mask.sum()) == len(row.ids)


def test_training_on_top_of_an_adapter_is_refused(base_folder: Path, tmp_path: Path) -> None:
    base = load_base(base_folder, device="cpu")
    with quiet():
        nested = get_peft_model(base.model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for model in (nested, nested.base_model.model):
        with pytest.raises(AdapterError, match=r"carries an adapter already.* merge the first one into the base"):
            make_trainable(replace(base, model=model), Recipe(), tmp_path)


def test_merging_into_a_base_of_four_bits_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from ragft_plugin.lora import merge_adapter
    from ragft_plugin.lora.quantized import load_quantized

    base_folder = make_base(tmp_path / "base", hidden=64)
    rounded = load_quantized(base_folder, device="cpu")
    rounded.model.save_pretrained(tmp_path / "rounded")
    rounded.tokenizer.save_pretrained(tmp_path / "rounded")
    adapter = make_adapter(base_folder, tmp_path / "adapter", seed=3)
    with pytest.raises(ConfigError, match="quantised"):
        merge_adapter(tmp_path / "rounded", adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_new_version_of_other_rank_and_layers_computes_as_if_it_were_alone(base_folder: Path, tmp_path: Path) -> None:
    """PEFT's own hot swap keeps the old rank in its records, and fails where the new one has more layers."""
    first = make_adapter(base_folder, tmp_path / "1", seed=5, r=2, target_modules=["q_proj"])
    second = make_adapter(base_folder, tmp_path / "2", seed=6, r=8, target_modules=["q_proj", "up_proj"])
    ids = [5, 9, 20, 31, 7]
    with LoraModel.load(base_folder, device="cpu") as alone:
        alone.load_adapter("x", second)
        expected = alone.logprobs(ids, 1, adapter="x")
    with LoraModel.load(base_folder, device="cpu") as model:
        model.load_adapter("x", first)
        old = model.logprobs(ids, 1, adapter="x")
        model.load_adapter("x", second)
        assert model.logprobs(ids, 1, adapter="x") == expected
        model.load_adapter("x", first)  # and back, to fewer layers
        assert model.logprobs(ids, 1, adapter="x") == old
    assert torch.tensor(old).ne(torch.tensor(expected)).any()


def test_a_template_that_hides_the_answer_is_found_before_the_first_step() -> None:
    renderer = Renderer(make_tokenizer(TEMPLATE.replace(" {{ m['content'] }}<|end|>", "<|end|>")))
    with pytest.raises(DataError, match="check that its answer is not empty, and that the template shows it"):
        check_rows(as_rows([{"question": "what?", "answer": "red"}]), renderer, max_length=64)
