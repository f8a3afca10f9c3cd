"""Adapters beside weights in NF4: as peft trains them beside bitsandbytes' layers, and merged as they were trained."""

import dataclasses

import pytest
import torch
from transformers import BitsAndBytesConfig, BloomForCausalLM

from services.common.artifacts import ArtifactStore
from services.trainer.config import LoraConfig
from tests.distributed.test_adapters import RANK, peft_model, peft_run
from tests.distributed.test_layouts_equal_transformers import config_of
from tests.support.bloom_models import make_hf_folder
from tests.support.training import job_folder, make_run, progress, run_stages

QLORA = LoraConfig(rank=RANK, alpha=12.0, base_weights="nf4")
IN_NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_compute_dtype=torch.float32,
    bnb_4bit_use_double_quant=False,
)


@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        ("3x1x1", "fp32"),
        pytest.param("1x1x2", "fp32", marks=pytest.mark.long),
        pytest.param("1x2x1", "bf16", marks=pytest.mark.long),
    ],
)
def test_adapters_train_beside_4_bits_as_in_peft_and_are_merged_into_these(tmp_path, layout, precision):
    base = make_hf_folder(tmp_path / "base", n_head=6, hidden=192, vocab=512)  # 64 columns for each of 3 ranks
    config = dataclasses.replace(config_of(layout, lora=QLORA, precision=precision), steps=6, learning_rate=1e-2)
    spec = make_run(tmp_path, config)
    store = ArtifactStore(spec.artifacts_url, tmp_path / "cache")
    files = tuple((path.name, store.write_file(path)) for path in sorted(base.iterdir()))
    spec = dataclasses.replace(spec, base_files=files)
    job_folder(spec).precision.write_text(precision)
    folder = run_stages(spec)

    model = peft_model(BloomForCausalLM.from_pretrained(base, quantization_config=IN_NF4, dtype=torch.float32))
    want, _ = peft_run(folder, config, model)
    got = [(step.loss, step.grad_norm) for step in progress(folder)]
    allowed = 1e-5 if precision == "fp32" else 0.02
    assert max(abs(a[0] - b[0]) for a, b in zip(got, want, strict=True)) < allowed
    if precision == "bf16":
        return
    whole, _ = peft_run(folder, config, peft_model(BloomForCausalLM.from_pretrained(base)))
    assert abs(whole[0][0] - want[0][0]) > 2 * allowed  # 4 bits can be told from 32
    assert max(abs(a[1] / b[1] - 1) for a, b in zip(got, want, strict=True)) < 1e-4

    ids = torch.arange(5, 37)[None]
    with torch.no_grad():
        # Where there is AVX512_BF16, bitsandbytes computes in bf16 outside of training. Nothing is dropped out here.
        trained = model.train()(ids).logits
        exported = BloomForCausalLM.from_pretrained(folder.export).eval()(ids).logits
    torch.testing.assert_close(exported, trained, rtol=0, atol=1e-3)
