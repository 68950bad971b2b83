"""Whether MLX multiplies float32 as float32, or as TF32, whose operands have 10 bits.

An M5's GPU multiplies as TF32 unless the environment variable MLX_ENABLE_TF32 is 0 when MLX first
multiplies: the error of a product is then 8e-4 in place of 3e-7 (mlx issues 3534 and 3860). mlxhog
switches it off where it promises numbers (doctor, parity, recorded runs and their replay, runs with
`determinism=rounds`); other runs have MLX's default, for its speed. A value of the user stays.
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
    """Switch TF32 off in this process and its children, unless the user has set the variable.

    Call it before MLX is imported.
    """
    os.environ.setdefault(VARIABLE, "0")


def user_note(environ: Mapping[str, str] = os.environ) -> str:
    """Say what a user's value means for the precision of products; "" if it allows no TF32."""
    number = _NUMBER.match(environ.get(VARIABLE, "0"))
    if number is None or int(number[0]) == 0:
        return ""
    return (
        f"{VARIABLE}={environ[VARIABLE]} is set, so an M5's GPU multiplies float32 of MLX as TF32: "
        f"the error of a product is 8e-4, not 3e-7; unset {VARIABLE}"
    )


def note(backends: Collection[str], machine: Machine, *, disabled: bool) -> str:
    """Say that workers of these backends multiply float32 as TF32 on a machine; "" if they do not.

    They do not if they have `promised`, unless the user set the variable.
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
