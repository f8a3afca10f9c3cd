"""Fine-tune: data, base and settings of a new job."""

import tempfile
from collections.abc import Sequence

import streamlit as st
from anthesis import AnthesisError, FineTuneSpec, LoraOptions, TrainOptions
from anthesis.datasets import pinned
from anthesis.row_files import suffix_of
from anthesis.row_files.limits import Limits
from anthesis.v1.evaluation_pb2 import SUITE_KIND_BITS_PER_BYTE
from anthesis.v1.registry_pb2 import DATASET_FORMAT_MULTITASK, DATASET_FORMAT_TEXT, Dataset, DatasetFormat
from streamlit.runtime.uploaded_file_manager import UploadedFile

from ui.chrome import VIEWS, page, show_error
from ui.dataset_look import look_into
from ui.evaluations import suites_of
from ui.licences import ask_to_accept
from ui.platform import connect

FORMATS: dict[str, DatasetFormat.ValueType] = {
    "Tasks": DATASET_FORMAT_MULTITASK,
    "Text": DATASET_FORMAT_TEXT,
}
state = st.session_state
TABLES = (".csv", ".csv.gz", ".csv.zst", ".parquet")
LIMITS = Limits(max_bytes=4 << 30)  # of what an uploaded file unpacks to, on the playground's disk
ROWS = {
    "Tasks": '{"inputs": "Translate to French: Good morning.", "targets": "Bonjour.", "language": "fr"}',
    "Text": '{"text": "Il était une fois…", "language": "fr"}',
}


def main() -> None:
    with page("Fine-tune", "Teach a model something new; the result becomes a new version, with its lineage."):
        client = connect().client
        names = [alias.name for alias in client.aliases.list()]
        bases = names + [version.name for version in client.models.list_versions()]
        if not bases:
            st.info("**There is no model to tune yet.** `make demo` trains one; or import one (see Models).", icon="🌱")
            return
        chosen = choose_data(client.datasets.list())
        datasets = list(map(pinned, chosen))
        with st.container(border=True):
            st.markdown("##### 2 · Model")
            first, second, third = st.columns(3)
            base = first.selectbox("Base", bases, key="base", help="Training starts from this model's weights.")
            suggested = f"{base.split('@')[0].split('/')[-1]}-tuned"
            # A placeholder and not a value that follows the base: a rerun must not replace a name being typed.
            output = second.text_input(
                "Name of the new model",
                key="output",
                placeholder=suggested,
                help="Lower-case letters, digits, '.', '_' and '-'. If it exists, it gets a new version.",
            )
            output = output.strip() or suggested
            deploy = third.text_input(
                "Deploy as (optional)",
                key="deploy_as",
                placeholder="an alias, for example my-model",
                help="When the job succeeds, this alias points to the new version and a worker loads it.",
            )
        if chosen:
            look_into(chosen, base)
        spec = choose_options(base, output, datasets)
        blocked = ask_to_accept([base])
        ready = bool(datasets) and not blocked
        if st.button("Start training", type="primary", icon=":material/play_arrow:", disabled=not ready):
            job = client.jobs.create(spec, deploy_alias=deploy.strip())
            st.switch_page(VIEWS / "jobs.py", query_params={"job": job.id})
        if not datasets:
            st.caption("Choose at least one dataset first.")


def choose_data(known: Sequence[Dataset]) -> list[Dataset]:
    with st.container(border=True):
        st.markdown("##### 1 · Data")
        by_name = {dataset.name: dataset for dataset in known}
        if uploaded := state.pop("uploaded", None):
            state["datasets"] = list(dict.fromkeys([*state.get("datasets", []), uploaded]))
        chosen = st.multiselect(
            "Datasets",
            list(by_name),
            key="datasets",
            format_func=lambda name: describe(by_name[name]),
            placeholder="Choose datasets" if by_name else "There is none yet: upload one below",
        )
        with st.expander("Upload a file", icon=":material/upload_file:", expanded=not by_name):
            upload_data()
    return [by_name[name] for name in chosen]


def describe(dataset: Dataset) -> str:
    labels = {value: label for label, value in FORMATS.items()}
    kind = labels.get(dataset.format, DatasetFormat.Name(dataset.format).removeprefix("DATASET_FORMAT_"))
    version = f" (version {dataset.version})" if dataset.version > 1 else ""
    return f"{dataset.name}{version} · {kind.lower()}, {dataset.num_rows:,} rows"


def upload_data() -> None:
    kind = st.segmented_control(
        "What is in it",
        list(FORMATS),
        default="Tasks",
        required=True,
        key="format",
        help="Tasks: an input and the target to learn. Text: plain text to learn as it is.",
    )
    assert kind is not None
    st.code(ROWS[kind], language="json", wrap_lines=True)
    types = ["jsonl", "json", "csv", "parquet", "gz", "zst"]
    file = st.file_uploader("One JSON object a line, or a table with such columns", type=types, key="file")
    stem = file.name.lower().removesuffix(suffix_of(file.name)) if file else ""
    name = st.text_input(
        "Name of the dataset",
        stem,
        key=f"dataset-{file.name if file else ''}",
        help="One that is there gets a new version.",
    )
    columns = ""
    if file and suffix_of(file.name) in TABLES:
        example = "inputs=question, targets=answer" if kind == "Tasks" else "text=body"
        columns = st.text_input("Columns that are called otherwise (optional)", key="columns", placeholder=example)
    if st.button("Upload", disabled=not (file and name), icon=":material/upload:") and file:
        try:
            store(name, file, FORMATS[kind], columns)
        except AnthesisError as error:
            show_error(error)  # here, where the file can be chosen anew


def store(name: str, file: UploadedFile, format: DatasetFormat.ValueType, columns: str) -> None:
    pairs = (pair.partition("=") for pair in columns.split(",") if pair.strip())
    chosen = {field.strip(): column.strip() for field, _, column in pairs}
    with tempfile.NamedTemporaryFile(suffix=suffix_of(file.name)) as copy, st.spinner("Checking every row…"):
        copy.write(file.getbuffer())
        copy.flush()
        dataset = connect().client.datasets.upload(name, copy.name, format, columns=chosen, limits=LIMITS)
    state["uploaded"] = dataset.name
    st.rerun()


def choose_options(base: str, output: str, datasets: list[str]) -> FineTuneSpec:
    with st.container(border=True):
        st.markdown("##### 3 · Training")
        first, second, third = st.columns(3)
        method = first.segmented_control(
            "What is trained",
            ["All parameters", "LoRA"],
            default="All parameters",
            required=True,
            key="method",
            help="LoRA trains small matrices beside the weights and merges them at the end: less memory.",
        )
        steps = second.number_input(
            "Steps", 1, 1_000_000, 200, key="steps", help="Updates of the weights, each over one batch."
        )
        rate = third.number_input(
            "Learning rate",
            0.0,
            1.0,
            2e-5 if method == "All parameters" else 2e-4,
            format="%.1e",
            step=1e-5,
            key=f"rate-{method}",
            help="Peak of the schedule: warm-up over the first steps, then a cosine down to a tenth.",
        )
        lora = LoraOptions(rank=8, alpha=16) if method == "LoRA" else None
        with st.expander("More settings", icon=":material/tune:"):
            options = more_options(int(steps), float(rate))
            if lora:
                one, two, three = st.columns(3)
                lora.rank = int(one.number_input("LoRA rank", 1, 1024, 8, key="rank"))
                lora.alpha = float(two.number_input("LoRA alpha", 0.1, 4096.0, 16.0, key="alpha"))
                lora.dropout = float(three.number_input("LoRA dropout", 0.0, 0.95, 0.0, 0.05, key="lora_dropout"))
                in_4_bits = st.toggle(
                    "Frozen weights in 4 bits (QLoRA)",
                    key="qlora",
                    help="NF4 in place of 16 or 32 bits while adapters train: a larger model fits. Slower.",
                )
                lora.base_weights = "nf4" if in_4_bits else ""
            suite = ""
            if suites := suites_of(SUITE_KIND_BITS_PER_BYTE):
                suite = st.selectbox("Measure the new version by", ["", *suites], key="evaluate_with")
    return FineTuneSpec(
        output_model=output, base=base, datasets=datasets, options=options, lora=lora, evaluate_with=suite
    )


def more_options(steps: int, rate: float) -> TrainOptions:
    first, second, third = st.columns(3)
    return TrainOptions(
        steps=steps,
        learning_rate=rate,
        micro_batch=int(
            first.number_input("Batch (sequences)", 1, 4096, 8, key="micro_batch", help="Per process and forward pass.")
        ),
        gradient_accumulation=int(
            second.number_input("Gradient accumulation", 1, 4096, 1, key="accumulate", help="Batches per update.")
        ),
        sequence_length=int(
            third.number_input("Sequence length (tokens)", 16, 65_536, 512, key="length", help="Longer rows are cut.")
        ),
        warmup_steps=int(first.number_input("Warm-up steps", 0, 100_000, max(1, steps // 20), key=f"warmup-{steps}")),
        weight_decay=float(second.number_input("Weight decay", 0.0, 1.0, 0.1, 0.01, key="decay")),
        clip_grad_norm=float(
            third.number_input("Clip gradient norm at", 0.0, 100.0, 1.0, 0.1, key="clip", help="0: off.")
        ),
        dropout=float(first.number_input("Dropout", 0.0, 0.95, 0.0, 0.05, key="dropout")),
        precision=second.selectbox("Precision", ["bf16", "fp16", "fp32"], key="precision"),
        optimizer=third.selectbox(
            "Optimizer", ["adamw", "muon"], key="optimizer", help="Muon on the matrices goes with AdamW on the rest."
        ),
        checkpoint_every_steps=int(first.number_input("Checkpoint every (steps)", 1, 100_000, 100, key="checkpoint")),
        seed=int(second.number_input("Seed", 0, 2**53 - 1, 42, key="train_seed")),
    )


main()
