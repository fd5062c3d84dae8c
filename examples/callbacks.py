"""Follow a training in Weights & Biases and MLflow, where they are installed, and in a file.

python examples/callbacks.py            a minute on two CPU cores
python examples/callbacks.py --quick    seconds

W&B without an account: WANDB_MODE=offline python examples/callbacks.py
"""

import argparse
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import flashpoint.diffusion as fd

with suppress(ImportError):
    import wandb
with suppress(ImportError):
    import mlflow


class WandbLog(fd.Callback):
    def on_begin(self, settings):
        self.run = wandb.init(project="flashpoint", config=settings)

    def on_log(self, step, values):
        self.run.log(values, step=step)

    def on_end(self):
        self.run.finish()


class MLflowLog(fd.Callback):
    def on_begin(self, settings):
        mlflow.start_run()
        mlflow.log_params(settings)

    def on_log(self, step, values):
        mlflow.log_metrics(values, step=step)

    def on_end(self):
        mlflow.end_run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/callbacks"), help="folder of the table"
    )
    arguments = parser.parse_args()

    callbacks = [fd.CSVLog(arguments.out / "losses.csv", overwrite=True)]
    for name, callback in (("wandb", WandbLog), ("mlflow", MLflowLog)):
        installed = name in globals()
        print(f"{name}: {'told, too' if installed else f'not installed; pip install {name}'}")
        callbacks += [callback()] if installed else []
    recipe = fd.RECIPES["small"][0]
    if arguments.quick:
        recipe = replace(recipe, steps=120, hidden_layers=(32, 32), batch_size=128)
    trainer = fd.Trainer(fd.dataset("moons"), fd.Schedule(500), recipe)
    trainer.run(trainer.total_steps, progress=True, callbacks=callbacks)
    print(f"losses are in {arguments.out / 'losses.csv'}")


if __name__ == "__main__":
    main()
