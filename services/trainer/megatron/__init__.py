"""BigScience's Megatron-DeepSpeed checkpoints with their optimizer's state, to our checkpoints and back.

    python -m services.trainer.megatron import --config 176b global_step95000 FOLDER
    python -m services.trainer.megatron export --layout 4x12x8 CHECKPOINT FOLDER

Their folder has the weights in layer_XX-model_YY-model_states.pt (bloom/megatron.py), and of each rank a
bf16_zero_pp_rank_D_mp_rank_MM_optim_states.pt: replica D's part of what DeepSpeed's BF16_Optimizer keeps of the
parameters of stage and tensor-parallel rank MM, laid end to end in groups. mp_rank_MM_model_states.pt counts steps.
Source: microsoft/DeepSpeed, runtime/bf16_optimizer.py and checkpoint/ds_to_universal.py;
bigscience-workshop/Megatron-DeepSpeed, megatron/optimizer/__init__.py and tools/convert_checkpoint.
"""
