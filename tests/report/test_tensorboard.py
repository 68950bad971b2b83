"""Events for TensorBoard, read back by its own reader."""

import pytest

from mlxhog.errors import EnvironmentLacks
from mlxhog.report.metrics import Progress
from mlxhog.report.tensorboard import TensorBoard


def progress(step, *, loss=2.0, val_loss=None, val_step=None):
    """A run after so many steps."""
    bits = None if val_loss is None else val_loss / 2
    numbers = {"val_loss": val_loss, "val_step": val_step, "val_bits_per_byte": bits}
    return Progress(
        step=step, loss=loss, train_bits_per_byte=loss / 2, tokens_per_s=100.0, **numbers
    )


def scalars(folder):
    """Tag -> (step, value) as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {
        tag: [(event.step, event.value) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def test_evaluations_stand_at_the_step_that_they_scored_and_a_resumed_run_forgets_lost_steps(
    tmp_path,
):
    killed = TensorBoard(tmp_path)
    killed.write(progress(10, loss=3.0))
    killed.write(progress(20, loss=2.5, val_loss=2.0, val_step=12))
    killed.write(progress(30))
    with killed.path.open("ab") as file:
        file.write(b"\x18\x00\x00\x00torn")  # by the kill
    resumed = TensorBoard(tmp_path, first_step=20)
    resumed.write(progress(35))
    resumed.write(progress(35, val_loss=1.5, val_step=35))  # the last evaluation: no step is new
    assert scalars(tmp_path) == {
        "train/loss": [(10, 3.0), (20, 2.5), (35, 2.0)],
        "train/bits_per_byte": [(10, 1.5), (20, 1.25), (35, 1.0)],
        "train/tokens_per_s": [(10, 100.0), (20, 100.0), (35, 100.0)],
        "eval/loss": [(12, 2.0), (35, 1.5)],
        "eval/bits_per_byte": [(12, 1.0), (35, 0.75)],
    }


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(EnvironmentLacks, match=r"writing .*gone/events.* failed"):
        TensorBoard(tmp_path / "gone")
