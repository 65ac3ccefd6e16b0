"""Arguments of TRL's GRPOConfig and GRPOTrainer that are not offered, and why (TRL 1.16)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stipule.errors import RecipeError


class NotOffered(NamedTuple):
    """Values that a script may give, because they ask for what happens here anyway, and the reason for the others."""

    accepted: tuple[Any, ...]
    reason: str


def _off(reason: str, **accepted: Any) -> dict[str, NotOffered]:
    """Arguments with the one value, mostly TRL's default, that is accepted."""
    return {name: NotOffered((value,), reason) for name, value in accepted.items()}


NOT_OFFERED: Mapping[str, NotOffered] = {
    # Batches and steps
    **_off(
        "a rollout batch is one batch of the optimizer, as with TRL's default: per_device_train_batch_size x "
        "gradient_accumulation_steps x processes; set these",
        generation_batch_size=None,
        steps_per_generation=None,
    ),
    **_off(
        "the optimizer is AdamW; a linear warm-up (warmup_steps) and then a constant learning rate",
        lr_scheduler_kwargs=None,
        optim_args=None,
        adam_epsilon=1e-8,
        optim_target_modules=None,
    ),
    "lr_scheduler_type": NotOffered(
        ("constant", "constant_with_warmup"),
        "the learning rate is constant after a linear warm-up (warmup_steps); leave it out, or give "
        "constant_with_warmup",
    ),
    "optim": NotOffered(("adamw_torch", "adamw_torch_fused"), "the optimizer is AdamW of torch; leave it out"),
    **_off(
        "every step uses all of its responses, so batch sizes are fixed",
        auto_find_batch_size=False,
        dataloader_drop_last=False,
        train_sampling_strategy="random",
        length_column_name="length",
        group_by_length=False,
    ),
    **_off("problems are in a new random order in each epoch, by `seed`", shuffle_dataset=True, data_seed=None),
    **_off(
        "problems are texts in memory; there is no data loader",
        dataloader_num_workers=0,
        dataloader_pin_memory=True,
        dataloader_persistent_workers=False,
        dataloader_prefetch_factor=None,
        dataloader_multiprocessing_context=None,
        dataloader_in_order=True,
        ignore_data_skip=False,
        pad_to_multiple_of="auto",
    ),
    **_off("reward functions get every column, always", remove_unused_columns=False, label_names=None),
    # Loss
    **_off(
        "it belongs to a loss that is not offered; loss_type is grpo, dapo or bnpo",
        delta=None,
        sapo_temperature_neg=1.05,
        sapo_temperature_pos=1.0,
        vespo_k_pos=2.0,
        vespo_lambda_pos=3.0,
        vespo_k_neg=3.0,
        vespo_lambda_neg=2.0,
        off_policy_mask_threshold=None,
        label_smoothing_factor=0.0,
    ),
    **_off(
        "a diffusion model gives no entropy of the next token",
        top_entropy_quantile=1.0,
        entropy_coef=0.0,
        use_adaptive_entropy=False,
        entropy_coef_min=0.0,
        entropy_coef_max=1.0,
        entropy_coef_delta=0.005,
        entropy_target=0.2,
    ),
    **_off(
        "the reward is the weighted sum of all functions (docs/rewards.md)",
        multi_objective_aggregation="sum_then_normalize",
    ),
    **_off(
        "a response has a fixed number of tokens and ends at its end-of-text token or at the last one",
        mask_truncated_completions=False,
    ),
    **_off(
        "the reference is the model at the start",
        sync_ref_model=False,
        ref_model_mixup_alpha=0.6,
        ref_model_sync_steps=512,
        use_bias_correction_kl=True,
    ),
    **_off("token counts are those of all processes, always", average_tokens_across_devices=True),
    **_off("the router of a mixture of experts has no loss of its own", router_aux_loss_coef=None),
    # Sampling
    **_off(
        "tokens are sampled from the whole distribution at `temperature`: a truncated one would not be the policy "
        "whose likelihood is estimated",
        top_p=1.0,
        top_k=0,
        min_p=None,
        repetition_penalty=1.0,
        generation_kwargs=None,
    ),
    **_off(
        "vLLM and continuous batching decode from left to right; diffusion models have their own sampler here "
        "(diffusion_steps, block_length, confidence_threshold)",
        use_vllm=False,
        vllm_mode="colocate",
        vllm_model_impl="vllm",
        vllm_enable_sleep_mode=False,
        vllm_structured_outputs_regex=None,
        vllm_server_base_url=None,
        vllm_server_host="0.0.0.0",
        vllm_server_port=8000,
        vllm_server_timeout=240.0,
        vllm_group_port=51216,
        vllm_gpu_memory_utilization=0.3,
        vllm_max_model_length=None,
        vllm_tensor_parallel_size=1,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode="sequence_mask",
        vllm_importance_sampling_clip_max=3.0,
        vllm_importance_sampling_clip_min=None,
        vllm_importance_sampling_cap=None,
        use_transformers_continuous_batching=False,
        transformers_continuous_batching_config=None,
        use_transformers_paged=False,
        cache_implementation=None,
        use_cache=False,
    ),
    **_off("evaluation is greedy, one response per problem", num_generations_eval=None, per_device_eval_batch_size=8),
    **_off("prompts are encoded by the chat template of the model", chat_template_kwargs=None),
    **_off("tools are not offered", max_tool_calling_iterations=None),
    # Model and precision
    **_off("code of a checkpoint is never run (docs/models.md)", trust_remote_code=False),
    "disable_dropout": NotOffered((True, False), "there is no dropout in a model (in adapters: peft_config)"),
    **_off(
        "logits of the response only are computed, in float32 and in tiles, always",
        cast_lm_head_to_fp32=False,
        use_liger_kernel=False,
        liger_kernel_config=None,
    ),
    **_off(
        "weights are float32, computed in bfloat16 with bf16=True; weights in bfloat16 are "
        "model_init_kwargs={'dtype': 'bfloat16'}",
        fp16=False,
        bf16_full_eval=False,
        fp16_full_eval=False,
        tf32=None,
    ),
    **_off(
        "checkpointing is that of transformers, of whole layers",
        activation_checkpointing_kwargs=None,
        gradient_checkpointing_kwargs=None,
    ),
    **_off(
        "shapes change in each forward pass",
        torch_compile=False,
        torch_compile_backend=None,
        torch_compile_mode=None,
        torch_empty_cache_steps=None,
    ),
    **_off("no noise is added to embeddings", neftune_noise_alpha=None),
    # Processes
    **_off(
        "the launcher decides: accelerate launch --config_file recipes/launch/..., where the files for DDP, FSDP 2 "
        "and ZeRO 2 are",
        accelerator_config=None,
        parallelism_config=None,
        ddp_find_unused_parameters=None,
        ddp_bucket_cap_mb=None,
        ddp_broadcast_buffers=None,
        ddp_static_graph=None,
        ddp_backend=None,
        ddp_timeout=1800,
        fsdp=None,
        fsdp_config=None,
        deepspeed=None,
        ds3_gather_for_generation=True,
        local_rank=-1,
    ),
    **_off("set the environment variable ACCELERATE_USE_CPU=true", use_cpu=False),
    **_off("runs are deterministic without it, up to the kernels of the device", full_determinism=False),
    # Logs
    **_off("metrics.jsonl has every step", logging_strategy="steps", logging_first_step=False, log_on_each_node=True),
    **_off("a value that is not finite stops the run", logging_nan_inf_filter=True),
    **_off(
        "the report shows saved responses (stipule report)",
        log_multimodal=True,
        num_completions_to_print=None,
        log_unique_prompts=False,
        log_completions_hub_repo=None,
    ),
    **_off("the name of a run is that of its folder", run_name=None, project="huggingface"),
    **_off(
        "set it by the tracker's own environment variables",
        trackio_space_id=None,
        trackio_bucket_id=None,
        trackio_static_space_id=None,
    ),
    **_off(
        "use Python's warnings and the terminal's size",
        log_level="passive",
        log_level_replica="warning",
        debug="",
    ),
    **_off("forward passes and peak memory are in metrics.jsonl", skip_memory_metrics=True),
    "include_num_input_tokens_seen": NotOffered(("no", False), "tokens are counted by forward pass in metrics.jsonl"),
    # Evaluations and checkpoints
    **_off(
        "an evaluation is the accuracy of greedy responses (eval_strategy, eval_steps)",
        eval_delay=0,
        prediction_loss_only=False,
        eval_on_start=False,
        eval_do_concat_batches=True,
        eval_use_gather_object=False,
        eval_accumulation_steps=None,
        batch_eval_metrics=False,
        load_best_model_at_end=False,
        metric_for_best_model=None,
        greater_is_better=None,
    ),
    "include_for_metrics": NotOffered(([], None), "an evaluation is the accuracy of greedy responses"),
    **_off(
        "a checkpoint has everything that an exact continuation needs, every `save_steps` updates",
        save_strategy="steps",
        save_only_model=False,
        save_on_each_node=False,
        enable_jit_checkpoint=False,
        restore_callback_states_from_checkpoint=False,
    ),
    **_off(
        "nothing is uploaded: stipule export writes a folder, and `hf upload` takes it",
        push_to_hub=False,
        hub_token=None,
        hub_private_repo=None,
        hub_model_id=None,
        hub_strategy="every_save",
        hub_always_push=False,
        hub_revision=None,
    ),
    **_off("call train() or evaluate()", do_train=False, do_eval=False, do_predict=False),
    **_off("give it to train()", resume_from_checkpoint=None),
}

NOT_OFFERED_BY_THE_TRAINER: Mapping[str, str] = {
    "reward_processing_classes": "reward models are not offered; wrap one in a reward function",
    "optimizers": "the optimizer is AdamW with the settings of args",
    "quantization_config": "4-bit weights are args.overrides=['model.quantize=nf4']",
    "tools": "tools are not offered",
    "rollout_func": "rollouts are made by the sampler of the recipe",
    "environment_factory": "environments are not offered; a reward function may call one",
}


def offered_arguments(given: Mapping[str, Any], offered: Sequence[str]) -> dict[str, Any]:
    """The arguments that are offered; those that ask for what happens anyway are left out.

    Raises RecipeError, with the reason, for another value of an argument that is not offered, and for an unknown one.
    """
    for name, value in given.items():
        if name in NOT_OFFERED and value not in NOT_OFFERED[name].accepted:
            accepted, reason = NOT_OFFERED[name]
            raise RecipeError(
                f"{name} is {value!r}, which is not offered ({' or '.join(map(repr, accepted))} is): {reason}; "
                "docs/from-trl.md has all arguments"
            )
        if name not in NOT_OFFERED and name not in offered:
            nearest = difflib.get_close_matches(name, offered, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "docs/from-trl.md has all arguments"
            raise RecipeError(f"{name} is no argument of DiffusionGRPOConfig; {hint}")
    return {name: value for name, value in given.items() if name in offered}
