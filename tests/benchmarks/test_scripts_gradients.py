"""Scripts of the group "gradients" run with `--tiny`: see `scripts.py` beside this."""

import pytest

from tests.benchmarks.scripts import TIMEOUT_S


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
def test_scripts_run_at_their_smallest(check_scripts):
    check_scripts("gradients")
