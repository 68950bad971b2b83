"""TF32 in MLX: float32 matmuls with operands of 10 bits on an M5's GPU.

MLX uses TF32 there unless the environment variable MLX_ENABLE_TF32 is 0 at its first matmul: the
error of a product is then 8e-4 in place of 3e-7 (mlx issues 3534 and 3860). mlxhog disables it for
exact results (doctor, parity, recorded runs and their replay, runs with `determinism=rounds`);
other runs keep MLX's default, for its speed. A value of the user stays.
"""

import os
import re
from collections.abc import Collection, Mapping

from mlxhog.base.machine import Machine

VARIABLE = "MLX_ENABLE_TF32"
FIRST_CHIP = 5
_M_CHIP = re.compile(r"Apple M(\d+)")
_NUMBER = re.compile(r"\s*[+-]?\d+")  # MLX reads the variable by atoi: other text is 0


def disable_tf32() -> None:
    """Disable TF32 in this process and its children, unless the user has set the variable.

    Call it before MLX is imported.
    """
    os.environ.setdefault(VARIABLE, "0")


def user_note(environ: Mapping[str, str] = os.environ) -> str:
    """Return the effect of a user's value on precision; "" if it disables TF32."""
    number = _NUMBER.match(environ.get(VARIABLE, "0"))
    if number is None or int(number[0]) == 0:
        return ""
    return (
        f"{VARIABLE}={environ[VARIABLE]} is set, so an M5's GPU multiplies float32 of MLX as TF32: "
        f"the error of a product is 8e-4, not 3e-7; unset {VARIABLE}"
    )


def note(backends: Collection[str], machine: Machine, *, disabled: bool) -> str:
    """Return a note that workers of these backends use TF32 on a machine; "" if they do not.

    `disabled` says that they call `disable_tf32`.
    """
    chip = _M_CHIP.match(machine.chip)
    if "mlx:gpu" not in backends or chip is None or int(chip[1]) < FIRST_CHIP:
        return ""
    if disabled or VARIABLE in os.environ:
        return user_note()
    return (
        "mlx:gpu multiplies float32 as TF32 from macOS 26.2 on (MLX's default here): the error of "
        f"a product is 8e-4, not 3e-7; {VARIABLE}=0 switches that off"
    )
