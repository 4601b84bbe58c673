"""A conversion from checkpoint to file: the stages check, calibrate, allocate, quantize, tune and write."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from . import __version__, allocate, memory, plan, writer
from .arch import Kind, Tensor
from .blocks import FLOW_FILES, BlockCalibration
from .calibrate import choose_device, choose_sequences, read_text, sum_up
from .checkpoint import Checkpoint, check_tensors, open_checkpoint, read_rows, read_tensor, row_blocks
from .errors import ConvertError
from .official import OfficialCheckpoint
from .options import Options
from .progress import Progress, duration, size
from .quantize import PARTS, Recipe, estimate_losses
from .sources import TokenizerSource, read_tokenizer
from .sums import GradientFolder, Sums, SumsFile, SumsFiles
from .tune import tune
from .workers import Parts, Task, Workers
from .workfolder import WorkFolder, hash_file, write_atomically

PLAN_FILE = "plan.json"
TUNED_FILE = "tuned.safetensors"
STAGE_FILES = {
    "calibrate": [*SumsFiles.PATTERNS, FLOW_FILES],
    "allocate": [PLAN_FILE],
    "quantize": ["blk.*.safetensors"],
    "tune": [TUNED_FILE],
}
METHOD_COSTS = {  # from docs/QUALITY.md
    "kmeans": "kmeans needs no calibration, but does not know which weights matter: without kept weights, "
    "SmolLM2-135M strays by a KL divergence of 0.33 at 4 bits and 3.35 at 3 bits; guided by 0.06 and 0.28.",
    "rtn": "rtn needs no calibration, but is the crudest way: without kept weights, SmolLM2-135M strays by a "
    "KL divergence of 1.12 at 4 bits and 7.44 at 3 bits; guided by 0.06 and 0.28.",
}


@dataclass
class Job:
    """A conversion whose inputs have been checked."""

    options: Options
    progress: Progress
    checkpoint: Checkpoint
    tensors: list[Tensor]
    tokenizer: TokenizerSource
    work: WorkFolder
    device: str
    sequences: NDArray[np.int64] | None  # [samples, seq_len], where the text is used
    calibration: str  # squeezellm.calibration
    gradients: GradientFolder | None  # with --fisher
    in_blocks: bool  # whether calibration runs block by block
    workers: Workers
    plan: allocate.Plan | None  # where bits differ by matrix, once that is known

    @property
    def matrices(self) -> list[Tensor]:
        return [tensor for tensor in self.tensors if tensor.kind is Kind.MATRIX]

    @property
    def sums_files(self) -> SumsFiles:
        assert self.sequences is not None
        assert self.options.measure is not None
        return SumsFiles(self.work, self.tensors, self.options.measure, len(self.sequences))

    @property
    def sums(self) -> Sums | None:
        """What was measured, where the method uses it."""
        return self.gradients or (self.sums_files if self.options.calibrates else None)

    def block_file(self, block: int) -> Path:
        return self.work.file(f"blk.{block}.safetensors")


def convert(options: Options, progress: Progress) -> None:
    """Converts ``options.model`` to ``options.out``; goes on where an interrupted run of the same stopped."""
    start = time.monotonic()
    job = _check(options, progress)
    with closing(job.workers), job.work.locked():
        for sentence in job.work.keep_matching(_descriptions(job), STAGE_FILES):
            progress.say(sentence)
        plan.check_space(job.options, job.checkpoint, job.tensors, job.in_blocks, job.work.path)
        if options.calibrates:
            _calibrate(job)
        if options.allocates:
            _allocate(job)
        if options.quantizes:
            _quantize(job)
        if options.tune:
            _tune(job)
        _write(job)
    if not options.keep_work:
        job.work.remove()
    progress.say(_summary(job, time.monotonic() - start))


def dry_run(options: Options, progress: Progress) -> None:
    """Says what :func:`convert` would do and need."""
    checkpoint, options = _open(options)
    has_weights = bool(checkpoint.shapes())
    tensors = check_tensors(checkpoint) if has_weights else checkpoint.family.tensors(checkpoint.config)
    options, _ = _with_plan(options, tensors)
    device = choose_device(options.device) if options.uses_device else "cpu"
    for line in plan.describe(options, checkpoint, tensors, device):
        print(line)
    if not has_weights:
        print(f"weights  none in {checkpoint.path} yet; all this is what config.json implies")


def _open(options: Options) -> tuple[Checkpoint, Options]:
    """The checkpoint, and the options; those that a packed checkpoint has settled are as they are in it."""
    checkpoint = open_checkpoint(options.model, options.config)
    if isinstance(checkpoint, OfficialCheckpoint):
        kept = checkpoint.kept_percent
        return checkpoint, replace(
            options, method="squeezellm", bits=checkpoint.bits, outliers=kept, sensitive=0.0
        )
    return checkpoint, options


def _with_plan(options: Options, tensors: list[Tensor]) -> tuple[Options, allocate.Plan | None]:
    """The plan that is to be followed, if any, and the options as it settles them."""
    matrices = [tensor for tensor in tensors if tensor.kind is Kind.MATRIX]
    if (
        options.allocates
        and options.bpw is not None
        and options.bpw < (least := allocate.least_bits(matrices, options.table_bits))
    ):
        raise ConvertError(
            f"--bpw {options.bpw:g}: this model's matrices take {least:.3f} bits a "
            "weight at least, tables included; ask for more."
        )
    if options.plan is None:
        return options, None
    found = allocate.read_plan(options.plan, matrices, options.table_bits)
    bits = max(setting.bits for setting in found.values())
    return replace(options, bits=bits, bpw=allocate.bits_per_weight(matrices, found)), found


# ---- check -----------------------------------------------------------------------------


def _check(options: Options, progress: Progress) -> Job:
    """Everything that can go wrong early: the checkpoint, its tokenizer, the calibration text, the device."""
    checkpoint, options = _open(options)
    tensors = check_tensors(checkpoint)
    options, settings = _with_plan(options, tensors)
    if options.quantizes and options.method in METHOD_COSTS:
        progress.say(METHOD_COSTS[options.method])
    for name in plan.f16_tables(options, tensors):
        progress.say(
            f"{name}: stored in F16, since its rows are no multiple of {writer.Q8_BLOCK} (--head-bits 8)."
        )
    tokenizer = read_tokenizer(checkpoint)
    progress.say(f"check: {tokenizer.verdict}")
    device, sequences, calibration, gradients = "cpu", None, "", None
    if options.packed:
        calibration = f"{options.model.name}, packed by the original SqueezeLLM"
    if options.fisher:
        gradients = GradientFolder(options.fisher, tensors)
        calibration = f"gradient checkpoint {gradients.path.resolve().name}"
    if options.uses_device:
        device = choose_device(options.device)
    if options.reads_text:
        sequences, text = _calibration(options, checkpoint, tokenizer)
        calibration = f"{calibration}; tuned on {text}" if calibration else text
    if options.tune:
        memory.check_tuning(options, checkpoint, tensors, device)
    return Job(
        options,
        progress,
        checkpoint,
        tensors,
        tokenizer,
        WorkFolder(options.out),
        device,
        sequences,
        calibration,
        gradients,
        memory.calibrates_in_blocks(options, checkpoint, tensors, device),
        Workers(options.workers, options.cluster, options.threads),
        settings,
    )


def _calibration(
    options: Options, checkpoint: Checkpoint, tokenizer: TokenizerSource
) -> tuple[NDArray[np.int64], str]:
    """The token ids to calibrate on, and what squeezellm.calibration says of them."""
    context = checkpoint.config.max_position_embeddings
    if options.seq_len > context:
        raise ConvertError(
            f"--seq-len {options.seq_len}: the model's context is {context} tokens; give at most that."
        )
    name, content = read_text(options.calibration)
    sequences = choose_sequences(
        tokenizer.tokenizer, name, content, options.samples, options.seq_len, options.seed
    )
    if int(sequences.max()) >= checkpoint.config.vocab_size:
        raise ConvertError(
            f"The tokenizer knows token {int(sequences.max())}, the model only "
            f"{checkpoint.config.vocab_size} tokens: they do not belong together."
        )
    digest = hashlib.sha256(content).hexdigest()
    return sequences, f"{name} sha256:{digest}, {options.samples} sequences of {options.seq_len} tokens"


def _descriptions(job: Job) -> dict[str, dict[str, Any]]:
    """What each stage's result depends on, for the manifest."""
    options = job.options
    groups = {"": job.checkpoint.files(), "--fisher ": job.gradients.files() if job.gradients else []}
    inputs: dict[str, Any] = {}
    n_bytes = sum(path.stat().st_size for paths in groups.values() for path in paths)
    with job.progress.stage("check", n_bytes, "bytes") as step:
        for prefix, paths in groups.items():
            for path in paths:
                inputs[prefix + path.name] = hash_file(path, step.advance)
    calibrate = {
        **inputs,
        "sq_convert": __version__,
        "measure": options.measure.name if options.measure else "",
        "torch": metadata.version("torch") if options.calibrates else "",
        "calibration": job.calibration,
        "seed": options.seed if options.calibrates else 0,
        "device": job.device,
    }
    allocation = {**calibrate, "bpw": options.bpw, "method": options.method}
    quantize = {
        **allocation,
        "plan": {name: [s.bits, s.outliers] for name, s in job.plan.items()} if job.plan else None,
        "bits": options.bits,
        "method": options.method,
        "outliers": options.outliers,
        "sensitive": options.sensitive,
    }
    tuning = {**quantize, "steps": options.tune, "seed": options.seed, "torch": metadata.version("torch")}
    return {"calibrate": calibrate, "allocate": allocation, "quantize": quantize, "tune": tuning}


# ---- calibrate, quantize and tune --------------------------------------------------------------------------


def _calibrate(job: Job) -> None:
    assert job.sequences is not None
    files = job.sums_files
    if files.complete():
        job.progress.say("calibrate: done already.")
    elif job.in_blocks:
        _calibrate_in_blocks(job, job.sequences, files)
    else:
        _calibrate_whole(job, job.sequences, files.whole)


def _calibrate_whole(job: Job, sequences: NDArray[np.int64], file: SumsFile) -> None:
    done = file.n_sequences()
    if done:
        job.progress.say(f"calibrate: going on after sequence {done}.")
    with job.progress.stage("calibrate", len(sequences), "sequences") as step:
        step.resume(done)
        sum_up(job.checkpoint, job.tensors, sequences, file, job.device, job.options.threads, step.advance)


def _calibrate_in_blocks(job: Job, sequences: NDArray[np.int64], files: SumsFiles) -> None:
    job.progress.say("calibrate: block by block, since the whole model does not fit into free memory.")
    blocks = BlockCalibration(job.checkpoint, job.tensors, sequences, files, job.work, job.device)
    if blocks.n_passes_done:
        job.progress.say(f"calibrate: going on after pass {blocks.n_passes_done} of {blocks.n_passes}.")
    with job.progress.stage("calibrate", blocks.n_passes, "passes") as step:
        step.resume(blocks.n_passes_done)
        blocks.run(job.options.threads, step.advance)


def _allocate(job: Job) -> None:
    """Estimates what each matrix loses in each setting, and shares the bits out."""
    options, matrices, path = job.options, job.matrices, job.work.file(PLAN_FILE)
    assert options.bpw is not None
    if path.is_file():
        job.progress.say("allocate: done already.")
    else:
        losses = {}
        with job.progress.stage("allocate", sum(t.n_weights for t in matrices), "weights") as step:
            for tensor in matrices:
                losses[tensor.name] = _estimate(job, tensor)
                step.advance(tensor.n_weights)
        found = allocate.allocate(matrices, losses, options.bpw)
        write_atomically(path, lambda partial: allocate.write_plan(partial, found))
        job.progress.show(plan.table(matrices, found, losses))
    job.plan = allocate.read_plan(path, matrices, options.table_bits)
    if options.plan_out:
        allocate.write_plan(options.plan_out, job.plan)
    reached = allocate.bits_per_weight(matrices, job.plan)
    job.progress.say(f"allocate: {reached:.3f} bits a weight, tables and kept weights included.")


def _estimate(job: Job, tensor: Tensor) -> dict[allocate.Setting, float]:
    assert job.sums is not None
    values, measured = read_tensor(job.checkpoint, tensor), job.sums.read(tensor)
    settings = allocate.settings(job.options.table_bits)
    recipes = [_recipe(job, setting) for setting in settings]
    with threadpool_limits(1, "blas"):  # whose last bits depend on the number of its threads
        losses = estimate_losses(values, measured, recipes, job.options.threads)
    return dict(zip(settings, losses, strict=True))


def _recipe(job: Job, setting: allocate.Setting) -> Recipe:
    return Recipe(setting.bits, job.options.method, setting.outliers, job.options.sensitive)


def _setting(job: Job, tensor: Tensor) -> allocate.Setting:
    options = job.options
    return (
        job.plan[tensor.name]
        if job.plan
        else allocate.Setting(options.bits, options.outliers, options.table_bits)
    )


def _quantize(job: Job) -> None:
    """Quantizes block by block; a block whose file is there is done."""
    from safetensors.numpy import save_file

    blocks = sorted({tensor.block for tensor in job.matrices if tensor.block is not None})
    todo = [block for block in blocks if not job.block_file(block).is_file()]
    if len(todo) < len(blocks):
        job.progress.say(f"quantize: {len(blocks) - len(todo)} of {len(blocks)} blocks are done already.")
    n_weights = {block: sum(t.n_weights for t in job.matrices if t.block == block) for block in blocks}
    matrices = [tensor for block in todo for tensor in job.matrices if tensor.block == block]
    made = zip(matrices, _quantized(job, matrices), strict=True)
    with job.progress.stage("quantize", sum(n_weights.values()), "weights") as step:
        step.resume(sum(n_weights[block] for block in blocks if block not in todo))
        for block in todo:
            results: dict[str, NDArray[Any]] = {}
            for tensor, parts in islice(made, sum(t.block == block for t in matrices)):
                results |= {f"{tensor.name}.{part}": data for part, data in parts.items()}
                step.advance(tensor.n_weights)
            write_atomically(job.block_file(block), functools.partial(save_file, results))


def _quantized(job: Job, matrices: Sequence[Tensor]) -> Iterator[Parts]:
    """The parts of each matrix, in order."""
    if isinstance(job.checkpoint, OfficialCheckpoint):
        return map(job.checkpoint.read_parts, matrices)
    sums = job.sums
    # Other processes, or machines, have no share of a GPU.
    here = job.options.workers == 1 and not job.options.cluster
    torch_device = job.device if job.device != "cpu" and here else None
    return job.workers.run(
        Task(
            read_tensor(job.checkpoint, tensor),
            sums.read(tensor) if sums else None,
            _recipe(job, _setting(job, tensor)),
            job.workers.threads,
            torch_device,
        )
        for tensor in matrices
    )


def _tune(job: Job) -> None:
    from safetensors.numpy import save_file

    options, path = job.options, job.work.file(TUNED_FILE)
    if path.is_file():
        job.progress.say("tune: done already.")
        return
    assert job.sequences is not None
    with job.progress.stage("tune", options.tune, "steps") as step:
        found = tune(
            job.checkpoint,
            job.tensors,
            functools.partial(_read_parts, job),
            job.sequences,
            options.tune,
            options.seed,
            job.device,
            options.threads,
            step.advance,
        )
    kept = f"{found.end:.4f} after step {found.step}, which is kept" if found.step else "no step is better"
    job.progress.say(f"tune: KL divergence on held-out text {found.start:.4f} at first; {kept}.")
    write_atomically(path, functools.partial(save_file, found.values))


def _read_parts(job: Job, tensor: Tensor) -> dict[str, NDArray[Any]]:
    """What quantization has made of a matrix."""
    from safetensors import safe_open

    assert tensor.block is not None
    with safe_open(job.block_file(tensor.block), framework="numpy") as file:
        present = set(file.keys())
        names = {part: f"{tensor.name}.{part}" for part in PARTS}
        return {part: file.get_tensor(name) for part, name in names.items() if name in present}


# ---- write -----------------------------------------------------------------------------


def _write(job: Job) -> None:
    from safetensors.numpy import load_file

    entries = [entry for tensor in job.tensors for entry in _entries(job, tensor)]
    for name, values in job.checkpoint.family.vectors(job.checkpoint.config).items():
        entries.append(writer.f32_entry(name, values.shape, functools.partial(list, [values])))
    tuned = load_file(job.work.file(TUNED_FILE)) if job.options.tune else {}
    for i, entry in enumerate(entries):
        if entry.name in tuned:
            entries[i] = replace(entry, load=functools.partial(list, [tuned[entry.name]]))
    with job.progress.stage("write", writer.file_bytes(entries), "bytes") as step:
        writer.write_file(
            job.options.out,
            job.checkpoint.family.gguf_name,
            lambda file: _add_keys(job, file),
            entries,
            step.advance,
        )


def _entries(job: Job, tensor: Tensor) -> list[writer.Entry]:
    """The tensors of the file that hold one of the model's."""

    def read() -> Iterator[NDArray[np.float32]]:
        return (read_rows(job.checkpoint, tensor, *rows) for rows in row_blocks(tensor.shape))

    if tensor.kind is Kind.VECTOR:
        return [writer.f32_entry(tensor.name, tensor.shape, read)]
    if tensor.kind is Kind.TABLE:
        return [writer.table_entry(tensor.name, tensor.shape, job.options.head_bits, read)]
    if tensor.kind is Kind.EXACT or not job.options.quantizes:
        return [writer.f16_entry(tensor.name, tensor.shape, read)]
    return _quantized_entries(job, tensor)


def _quantized_entries(job: Job, tensor: Tensor) -> list[writer.Entry]:
    from safetensors import safe_open

    assert tensor.block is not None
    path = job.block_file(tensor.block)
    dtypes = {"I8": np.int8, "F16": np.float16, "I16": np.int16, "I32": np.int32}

    def load(name: str) -> Callable[[], list[NDArray[Any]]]:
        def read() -> list[NDArray[Any]]:
            with safe_open(path, framework="numpy") as file:
                return [file.get_tensor(name)]

        return read

    entries = []
    with safe_open(path, framework="numpy") as file:
        present = set(file.keys())
        for name in (f"{tensor.name}.{part}" for part in PARTS):
            if name in present:
                piece = file.get_slice(name)
                entries.append(
                    writer.Entry(name, tuple(piece.get_shape()), dtypes[piece.get_dtype()], load(name))
                )
    return entries


def _add_keys(job: Job, file: gguf.GGUFWriter) -> None:
    options, checkpoint = job.options, job.checkpoint
    file.add_type("model")
    file.add_name(checkpoint.name)
    writer.add_numbers(file, checkpoint.family.keys(checkpoint.config))
    file.add_uint32("squeezellm.version", writer.FORMAT_VERSION)
    writer.add_text(file, "squeezellm.method", options.method if options.quantizes else "none")
    settings = [_setting(job, tensor) for tensor in job.matrices] if options.quantizes else []
    file.add_uint32("squeezellm.bits", max((setting.bits for setting in settings), default=options.bits))
    file.add_float32("squeezellm.outliers", max((s.outliers for s in settings), default=options.outliers))
    file.add_float32("squeezellm.sensitive", options.sensitive)
    writer.add_text(file, "squeezellm.calibration", job.calibration)
    file.add_uint64("squeezellm.seed", options.seed)
    if options.tune:
        file.add_uint32("squeezellm.tune", options.tune)
    if options.quantizes:
        file.add_array("squeezellm.matrix.names", [tensor.name for tensor in job.matrices])
        writer.add_u32_array(file, "squeezellm.matrix.bits", [setting.bits for setting in settings])
        writer.add_u32_array(file, "squeezellm.matrix.inputs", [tensor.shape[1] for tensor in job.matrices])
    job.tokenizer.write(file, checkpoint)


def _summary(job: Job, seconds: float) -> str:
    options = job.options
    return (
        f"{options.out}: {size(options.out.stat().st_size)}, {plan.quantization(options)}, "
        f"made in {duration(seconds)}. Try: sq-run {options.out}"
    )
