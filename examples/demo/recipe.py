"""The demo's hyper-parameters, chosen on articles 3, 13, 21 and 27 with those and the reported five held out."""

import json

from anthesis.v1.job_pb2 import TrainOptions

PRETRAINED, FINE_TUNED = "seedling", "seedling-z"  # the aliases, and the models' names

VOCAB_SIZE = 4096

CONFIG = json.dumps(
    {
        "model_type": "bloom",
        "vocab_size": 0,  # the tokenizer's
        "hidden_size": 192,
        "n_layer": 3,
        "n_head": 6,
        "seq_length": 2048,
    }
)

PRETRAIN = TrainOptions(
    steps=440,
    sequence_length=256,
    micro_batch=8,
    layout="1x1x2",
    precision="bf16",
    optimizer="muon",
    muon_learning_rate=0.02,
    learning_rate=4e-3,
    min_learning_rate=0.0,
    weight_decay=0.5,
    dropout=0.15,
    bpe_dropout=0.1,
    checkpoint_every_steps=200,
    seed=1,
)

FINE_TUNE = TrainOptions(
    steps=150,
    sequence_length=512,
    micro_batch=4,
    layout="1x1x2",
    precision="bf16",
    optimizer="muon",
    muon_learning_rate=0.01,
    learning_rate=2e-3,
    min_learning_rate=0.0,
    weight_decay=0.1,
    dropout=0.1,
    checkpoint_every_steps=200,
    seed=1,
)
