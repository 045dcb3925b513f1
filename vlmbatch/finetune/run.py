"""Run a training from rows to checkpoint. The same job again continues a killed one."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import shutil
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers

from vlmbatch.checkpoint import find_checkpoint
from vlmbatch.engine.torch.device import find_device, find_dtype, is_out_of_memory, use_device
from vlmbatch.engine.torch.shape import ModelShape
from vlmbatch.engine.torch.weights import pixel_normalization
from vlmbatch.errors import DeviceError, OutOfMemoryError
from vlmbatch.finetune.examples import ExampleDataset, PadRight
from vlmbatch.finetune.folder import TrainingFolder
from vlmbatch.finetune.job import FinetuneJob
from vlmbatch.finetune.log import Steering, TrainingLog
from vlmbatch.finetune.merge import merge_adapter, save_adapter, write_checkpoint
from vlmbatch.finetune.network import load_network, stored_dtype, trainable
from vlmbatch.finetune.plan import TrainingPlan, make_plan
from vlmbatch.finetune.trainer import AnswerTrainer
from vlmbatch.processor import processor_share

report = logging.getLogger("vlmbatch.report")

CHECK_TIMEOUT = datetime.timedelta(hours=6)
"""Time that the other processes wait for the first one to check the rows."""

MAX_READ_WORKERS = 8


@dataclasses.dataclass(frozen=True)
class TrainingOutcome:
    """Result of a training.

    Attributes:
        state: Content of ``finetune.json``: ``status`` is ``training``, ``trained`` (there is an
            adapter) or ``finished`` (there is a checkpoint).
        interrupted: Whether it was stopped before its end.
    """

    state: dict[str, Any]
    interrupted: bool = False


class Finetuning:
    """A training: ``start`` it, and ``stop`` it from anywhere."""

    def __init__(self, job: FinetuneJob) -> None:
        """Check the checkpoint and the device.

        Raises:
            ModelLoadError: The checkpoint is missing, or of another kind.
            DeviceError: The device is missing, or does not support the options.
        """
        self.job = job
        self.checkpoint = find_checkpoint(job.model, job.revision)
        stored_dtype(self.checkpoint)
        self.device = find_device(job.device)
        use_device(self.device)  # cuDNN's attention also gives gradients that are not numbers
        self.dtype = find_dtype(
            job.dtype, self.device, ModelShape.from_checkpoint(self.checkpoint).parameters
        )
        if self.device.type == "mps" and job.dtype == "auto":
            self.dtype = torch.float32  # older Apple GPUs emulate bfloat16
        if self.dtype == torch.float16 and self.device.type != "cuda":
            raise DeviceError(
                f"training in float16 needs CUDA; {self.device} trains in bfloat16 or float32"
            )
        if job.optimizer == "adamw8bit" and self.device.type != "cuda":
            raise DeviceError(
                f"the optimizer adamw8bit needs CUDA; this would train on {self.device}"
            )
        self.folder = TrainingFolder(Path(job.output_path))
        self._stop_wanted = False
        self._steering: Steering | None = None

    def stop(self) -> None:
        """Save and stop soon; the same job continues from there. Safe in a signal handler."""
        self._stop_wanted = True
        if self._steering:
            self._steering.stop_wanted = True

    def start(self) -> TrainingOutcome:
        """Do everything that is not done yet.

        Under torchrun or accelerate every process calls this, and only the first one writes.

        Raises:
            JobError: There are bad rows.
            OutputError: OUT cannot be written, or holds another training.
            OutOfMemoryError: A batch does not fit.
            EngineError: The loss is not finite.
        """
        processes = accelerate.PartialState(cpu=self.device.type == "cpu", timeout=CHECK_TIMEOUT)
        main = processes.is_main_process
        lock = self.folder.open(overwrite=self.job.overwrite) if main else None
        try:
            with processes.main_process_first():
                plan = make_plan(
                    self.job,
                    self.checkpoint,
                    self.folder.verdicts,
                    lambda: self._stop_wanted,
                    says=main,
                )
                if main:
                    self.folder.begin(
                        {
                            **self.job.identity(),
                            "revision": self.checkpoint.revision,
                            **plan.identity(),
                        },
                        self.job.to_dict(),
                    )
                    self.folder.write_held_out(row.as_output() for row in plan.held_out)
            state = self.folder.state() or {}
            interrupted = False
            if state.get("status") == "training":
                interrupted = self._train(plan, processes)
            elif main:
                report.info("%s: trained before", self.folder.path)
            if main and not interrupted:
                self._complete()
            return TrainingOutcome(self.folder.state() or {}, interrupted)
        finally:
            if lock:
                lock.release()
            processes.destroy_process_group()

    def _train(self, plan: TrainingPlan, processes: accelerate.PartialState) -> bool:
        """Train to the end, or until ``stop``.

        Returns:
            Whether it was stopped.
        """
        job, main = self.job, processes.is_main_process
        found = self.folder.last_checkpoint()
        if main:
            self._announce(plan, found.step if found else None, processes.num_processes)
        transformers.set_seed(job.seed)
        # Weights that are trained, or an adapter, are kept in float32; frozen ones need not be.
        frozen_dtype = (
            self.dtype if self.dtype == torch.bfloat16 and not job.full else torch.float32
        )
        model = trainable(load_network(self.checkpoint, frozen_dtype), job)
        self._steering = Steering(measures=bool(plan.held_out))
        self._steering.stop_wanted = self._stop_wanted
        callbacks: list[transformers.TrainerCallback] = [self._steering]
        if main:
            callbacks.append(TrainingLog(self.folder, found.step if found else 0, len(plan.rows)))
        trainer = AnswerTrainer(
            pixel_normalization(self.checkpoint),
            model=model,
            args=self._arguments(
                measures=bool(plan.held_out),
                resumed=found is not None,
                processes=processes.num_processes,
            ),
            data_collator=PadRight(self.checkpoint.config["text_config"].get("pad_token_id") or 0),
            train_dataset=ExampleDataset(plan.rows, plan.maker),
            eval_dataset=ExampleDataset(plan.held_out, plan.held_out_maker)
            if plan.held_out
            else None,
            callbacks=callbacks,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        try:
            if found and found.complete:
                # Killed after the last update: the Trainer would do one update more.
                trainer._load_from_checkpoint(str(found.path))
                trainer.state = transformers.TrainerState.load_from_json(
                    str(found.path / "trainer_state.json")
                )
            else:
                trainer.train(resume_from_checkpoint=str(found.path) if found else None)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"a batch of {job.batch_size} rows of up to {plan.longest} tokens does not fit: "
                f"lower --batch-size ({job.batch_size}) and raise --gradient-accumulation, add "
                "--gradient-checkpointing, or use --detail native"
            ) from error
        if self._steering.stopped:
            return True
        if main:
            self._keep(trainer)
        return False

    def _keep(self, trainer: AnswerTrainer) -> None:
        """Write the trained weights and the result, and remove the Trainer's checkpoints."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        if self.job.full:
            write_checkpoint(model, self.checkpoint, self.folder.path)
        else:
            save_adapter(model, self.checkpoint, self.folder.adapter)
        measured = [entry for entry in trainer.state.log_history if "eval_token_loss" in entry]
        result: dict[str, Any] = {"updates": trainer.state.global_step}
        for when, entry in zip(("first", "last"), (measured[:1] + measured[-1:]), strict=False):
            result |= {f"{when}_eval_loss": entry["eval_token_loss"]}
            result |= {
                f"{when}_{name}": entry[name]
                for name in ("eval_token_accuracy", "eval_answer_accuracy")
            }
        self.folder.write_state(
            {
                **(self.folder.state() or {}),
                "status": "finished" if self.job.full else "trained",
                "result": result,
            }
        )
        shutil.rmtree(self.folder.checkpoints, ignore_errors=True)

    def _complete(self) -> None:
        """Merge the adapter, unless that is done or not wanted."""
        state = self.folder.state() or {}
        if state.get("status") == "trained" and not self.job.no_merge:
            merge_adapter(self.folder.adapter, self.folder.path, self.job.model, self.job.revision)
            self.folder.write_state({**state, "status": "finished"})

    def _announce(self, plan: TrainingPlan, resumed: int | None, processes: int) -> None:
        what = "all weights" if self.job.full else f"an adapter of rank {self.job.lora_rank}"
        parts = ", ".join(self.job.parts)
        held_out = f"{len(plan.held_out)} held out" if plan.held_out else "none held out"
        dtype = str(self.dtype).removeprefix("torch.")
        where = (
            f"{processes} processes on {self.device.type}" if processes > 1 else str(self.device)
        )
        report.info(
            "%d rows to train on, %s; the longest has %d tokens",
            len(plan.rows),
            held_out,
            plan.longest,
        )
        report.info(
            "training %s (%s) of %s on %s in %s", what, parts, self.checkpoint.name, where, dtype
        )
        if processes == 1 and self.device.type == "cuda" and torch.cuda.device_count() > 1:
            count = torch.cuda.device_count()
            report.info(
                "one of %d GPUs is used; `torchrun --nproc-per-node %d -m vlmbatch finetune …` "
                "uses all",
                count,
                count,
            )
        if resumed is not None:
            report.info("going on at update %d", resumed)

    def _arguments(
        self, *, measures: bool, resumed: bool, processes: int
    ) -> transformers.TrainingArguments:
        job, cpu = self.job, self.device.type == "cpu"
        workers = (
            0 if cpu else min(MAX_READ_WORKERS, max(1, processor_share().threads // processes))
        )
        arguments = transformers.TrainingArguments(
            output_dir=str(self.folder.checkpoints),
            num_train_epochs=job.epochs,
            max_steps=job.max_steps or -1,
            per_device_train_batch_size=job.batch_size,
            per_device_eval_batch_size=job.batch_size,
            gradient_accumulation_steps=job.gradient_accumulation,
            learning_rate=job.peak_learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=job.warmup_share,
            weight_decay=job.weight_decay,
            optim="adamw_bnb_8bit" if job.optimizer == "adamw8bit" else "adamw_torch",
            activation_checkpointing=job.gradient_checkpointing,
            activation_checkpointing_kwargs={"use_reentrant": False}
            if job.gradient_checkpointing
            else None,
            bf16=self.dtype == torch.bfloat16,
            fp16=self.dtype == torch.float16,
            use_cpu=cpu,
            seed=job.seed,
            eval_strategy="steps" if measures else "no",
            eval_steps=job.eval_every or 0.1,
            eval_on_start=measures and not resumed,
            save_steps=job.save_every or 0.1,
            save_total_limit=2,  # the last one may be damaged by a kill
            logging_steps=job.log_every,
            logging_first_step=True,
            logging_nan_inf_filter=False,
            log_level="error",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            dataloader_num_workers=workers if job.read_workers is None else job.read_workers,
            ddp_find_unused_parameters=False,
            ddp_timeout=int(CHECK_TIMEOUT.total_seconds()),
        )
        _ = arguments.device
        # One process would split a batch over several GPUs, slowly; torchrun is for these.
        arguments._n_gpu = min(1, arguments.n_gpu)
        return arguments
