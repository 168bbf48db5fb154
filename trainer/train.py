"""Runs a whole job: data, base, encoding, training, files. Each stage is a function in another module."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial

from convert.errors import JobError, UsageError
from trainer import plan
from trainer.base.facts import is_miniature, picture_side
from trainer.base.load import Base, load_base
from trainer.base.sd15 import SCRIBBLE_NARROW
from trainer.cli import Job
from trainer.data.records import Dataset
from trainer.encoding.encode import encode_dataset
from trainer.inspect import check_job, inspect
from trainer.kernels import training_kernels
from trainer.kernels.compile import LEAST_PASSES, training_forward
from trainer.lora import adapter, export
from trainer.lora.lora_file import read_lora, start_from
from trainer.recipe import Recipe, home
from trainer.runs.loss_curve import draw_curve
from trainer.runs.outputs import OutputClaim, claim, is_sound_png, outputs
from trainer.runs.record import Record
from trainer.runs.run_folder import RunFolder, identity_of
from trainer.sample.during_run import choose_actions
from trainer.sample.preview import sampler_for, write_preview
from trainer.terminal import Say, say, say_nothing
from trainer.training import checkpoints, devices
from trainer.training.devices import Compute
from trainer.training.loop import train
from trainer.training.low_memory import choose_checkpointing
from trainer.training.metrics import Metrics, open_tracker, read_lines
from trainer.training.micro_batch import choose_micro_batch
from trainer.training.objective import choose_objective
from trainer.training.processes import Processes, join
from trainer.training.state import State, Training, prepare
from trainer.training.stop import StopRequest

STOPPED = 130
"""Exit status of a run that was saved and stopped after a signal."""


def run(recipe: Recipe, job: Job) -> int:
    """Do the job; returns the exit status. Raises JobError and UsageError for errors that the user can fix."""
    processes = join(job.device)
    tell = say if processes.main else say_nothing
    if job.note:
        tell(job.note)
    pictures = check_job(recipe, job, tell)
    if job.out is None:
        return _contact_sheet(recipe, job, tell)
    compute = devices.choose(job.device, processes.local_rank)
    folder = RunFolder(job.run)
    with folder.lock() if processes.main else nullcontext(), claim(job.out) if processes.main else nullcontext() as claimed:
        processes.wait()
        return _work(recipe, job, pictures, compute, processes, claimed, tell)


def _work(recipe: Recipe, job: Job, pictures: int | None, compute: Compute, processes: Processes, claimed: OutputClaim | None,
          tell: Say) -> int:  # fmt: skip
    """Train, while the run folder and `--out` are locked; returns the exit status. pictures: see `check_job`."""
    assert job.out is not None
    started, folder = time.time(), RunFolder(job.run)
    finished = folder.finished(recipe, job.out, tell)
    if finished and pictures is not None:  # otherwise a folder's pictures may have changed: checked below
        return _nothing_to_do(recipe, job, tell)
    _check_device(recipe, job, compute, pictures)
    with processes.main_first():
        dataset = inspect(recipe, job, tell, decoding=processes.main and not finished)
    if finished and folder.trained_on(dataset):
        return _nothing_to_do(recipe, job, tell)
    _check_device(recipe, job, compute, dataset.per_epoch)
    if processes.main and job.overwrite and not folder.trained_on(dataset):
        folder.start_anew()
        tell(f"{job.run}: the pictures or captions have changed: training anew")
    if job.contact_sheet and processes.main:
        _write_contact_sheet(dataset, recipe, job, tell)
    tell("loading the base, and encoding pictures and captions")
    base = load_base(recipe, dtype=compute.base_dtype, say=tell)
    adapter.layers(base.unet, recipe)  # names bad --targets before the encoding
    adapter.check_dora(base.unet, base.text_encoder, recipe, narrow=base.family == SCRIBBLE_NARROW)
    identity = identity_of(recipe, base, dataset)
    if processes.main:
        folder.bind(identity)
    training, state = prepare_training(recipe, job, base, dataset, compute, processes, tell, identity)
    return _train_and_export(training, state, job, base, dataset, started, tell, claimed)


def _nothing_to_do(recipe: Recipe, job: Job, tell: Say) -> int:
    tell(f"{job.out} is finished (run {job.run}): nothing to do. Give another --out or --run to start a new run")
    return _contact_sheet(recipe, job, tell) if job.contact_sheet else 0


def _check_device(recipe: Recipe, job: Job, compute: Compute, pictures: int | None) -> None:
    """Refuse SD1.5 on a CPU unless --device cpu was given: before anything is fetched if `pictures` is known."""
    if pictures and compute.device.type == "cpu" and job.device == "auto" and not is_miniature(recipe.base):
        samples = plan.plan(recipe, pictures).samples
        plan.refuse_cpu_by_accident(recipe, samples, devices.flops_per_second(compute))


def prepare_training(recipe: Recipe, job: Job, base: Base, dataset: Dataset, compute: Compute, processes: Processes,
                     tell: Say, identity: Record) -> tuple[Training, State]:  # fmt: skip
    """Encode, attach the LoRA, choose the micro-batch, restore the newest checkpoint."""
    encode = partial(encode_dataset, base=base, recipe=recipe, device=compute.device, cache=job.cache, say=tell)
    with processes.main_first():
        encoded = encode(dataset.train)
        held_out = encode(dataset.held_out) if dataset.held_out else None
    if not (recipe.text_encoder or processes.main and (job.sample_every or job.preview)):
        base.release_encoders()
    factors = adapter.attach(base.unet, recipe)
    base.unet.to(compute.device)
    learning = base.text_encoder.to(compute.device) if recipe.text_encoder else None
    if learning:
        factors += adapter.attach_text_encoder(learning, recipe)
    training, state = prepare(
        recipe=recipe, unet=base.unet, factors=factors, identity=identity, encoded=encoded, held_out=held_out, compute=compute,
        objective=choose_objective(recipe, base.scheduler, compute.device, learning), processes=processes,
        run=job.run, total=recipe.total_steps(dataset.per_epoch), checkpoint_every=job.checkpoint_every,
        kernels=training_kernels(base.unet, compute.device, attention=job.attention, compile=job.compile),
        least_passes=0 if job.compile == "on" else LEAST_PASSES,
        forward=training_forward(base.unet, compute.device, compile=job.compile, cuda_graphs=job.cuda_graphs,
                                 cache=job.cache, say=tell))
    _, measured = choose_checkpointing(training, job.gradient_checkpointing, tell)
    record = checkpoints.restore(job.run / "checkpoints", state, identity, tell)
    if processes.all_reduce_min(state.step, compute.device) != state.step:
        raise JobError(f"--run {job.run}: the processes see different checkpoints there: give a folder that all of them share")
    if state.step > training.total:
        raise UsageError(f"--run {job.run}: has {state.step} steps, more than the {training.total} of this command: give more "
                         "--steps, or another --run")
    state.micro_batch = choose_micro_batch(training, job.micro_batch, record, measured)
    if recipe.init and not record:
        start_from(factors, read_lora(home(recipe.init)).fitting(base))
    modules = sum(".lora_A." in name for name, _ in factors)
    tell(f"{len(encoded)} pictures, {state.micro_batch} at once, {modules} modules, "
         f"{state.gradient.numel():,} numbers to learn, {training.total} steps"
         + (f", continuing after step {state.step}" if record else ""))
    return training, state


def _train(training: Training, state: State, job: Job, base: Base, dataset: Dataset, started: float, tell: Say) -> None:
    """Drive the loop to its end or to a requested stop: write metrics, samples, LoRA files on the way."""
    folder, main = RunFolder(job.run), training.processes.main
    actions = choose_actions(training.recipe, job, base, dataset, training.compute, total=training.total,
                             started=started) if main else []
    metrics = Metrics(folder.metrics, first=state.step, total=training.total,
                      tracker=open_tracker(job.track, job.run, training.recipe.as_dict()), say=tell) if main else None
    for action in actions:
        action.resume(state.step)
    with StopRequest(tell) as stop, metrics or nullcontext():
        for step in train(training, state, stop):
            if metrics:
                for report in step.reports:
                    metrics.report(report)
                if step.held_out is not None:
                    metrics.held_out(step.done, step.held_out)
            for action in actions:
                action(step.done)


def _train_and_export(training: Training, state: State, job: Job, base: Base, dataset: Dataset, started: float,
                      tell: Say, claimed: OutputClaim | None) -> int:  # fmt: skip
    folder = RunFolder(job.run)
    _train(training, state, job, base, dataset, started, tell)
    if claimed is None:  # not the first process
        return 0 if state.step == training.total else STOPPED
    draw_curve(read_lines(folder.metrics), folder.curve)
    if state.step < training.total:
        tell(f"stopped and saved at step {state.step} of {training.total}: the same command continues it")
        return STOPPED
    claimed.check(job.run)
    _export(training, folder, job, base, dataset, started, tell)
    return 0


def _export(training: Training, folder: RunFolder, job: Job, base: Base, dataset: Dataset, started: float, tell: Say) -> None:
    """Write the LoRA, its card and its picture. The user's changes since this run last ended are kept."""
    assert job.out is not None
    recipe, again, picture = training.recipe, folder.was_finished(job.out), outputs(job.out)[2]
    folder.claim(job.out)
    report = export.write_lora(job.run, job.out, recipe, base, dataset, steps=training.total, started=started)
    export.write_card(job.out, recipe, base, dataset, tell, again=again)
    if job.preview and (job.overwrite or not again or not is_sound_png(picture)):
        tell("drawing the preview")
        write_preview(sampler_for(dataset, base, training.compute, recipe.resolution), dataset, picture)
    folder.finish(job.out, training.identity)
    modules = f"{report.unet} modules" + (f" of the UNet and {report.text_encoder} of the text encoder" if report.text_encoder
                                          else "")  # fmt: skip
    tell(f"wrote {job.out} ({report.size / 1e6:.1f} MB, {modules}, sshs_model_hash {report.model_hash[:10]}); "
         f"beside it the card{' and the picture' if job.preview else ''}; run folder {job.run}")


def _contact_sheet(recipe: Recipe, job: Job, tell: Say) -> int:
    dataset = inspect(recipe, job, tell)
    _write_contact_sheet(dataset, recipe, job, tell)
    return 0


def _write_contact_sheet(dataset: Dataset, recipe: Recipe, job: Job, tell: Say) -> None:
    from trainer.runs.contact_sheet import write_contact_sheet

    assert job.contact_sheet
    write_contact_sheet(dataset, job.contact_sheet, resolution=picture_side(recipe), seed=recipe.seed)
    tell(f"wrote {job.contact_sheet}")
