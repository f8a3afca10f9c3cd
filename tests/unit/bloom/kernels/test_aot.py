"""Every default configuration compiles for every target, and spills no register on NVIDIA's from sm_80 on."""

import pytest

from bloom.kernels import aot

NVIDIA = [target for target in aot.TARGETS if target.startswith("sm_")]


def test_the_interpreter_and_the_compilers_get_what_the_launchers_launch():
    names = {launch.name for _, launch in aot.default_launches()}
    assert len(names) == 17, names


@pytest.mark.parametrize("group", aot.GROUPS)
def test_the_heaviest_configurations_spill_nothing_on_sm_90(group: str):
    """Heads of 128, the widest rows; the other targets and heads are in `make test-long`."""
    for label, launch in aot.default_launches(groups=[group], heads=[128]):
        resources = aot.compile_for(launch, aot.TARGETS["sm_90"])
        assert resources.spilled == 0, f"{label} {launch.name}: {resources}"


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", aot.TARGETS)
def test_every_default_configuration_compiles_and_spills_nothing_on_sm_80_and_up(target: str):
    for label, launch in aot.default_launches():
        if aot.can_compile(launch, target):
            resources = aot.compile_for(launch, aot.TARGETS[target])
            assert target not in NVIDIA or resources.spilled == 0, f"{label} {launch.name} {target}: {resources}"
