"""Names of instruction sets, as far as they change what quantized models answer."""

import platform

import pytest

from runtime.cpu import instruction_set, name_of, saturates_int8


@pytest.mark.parametrize(
    ("machine", "flags", "name"),
    [
        ("x86_64", {"sse2", "avx2", "avx512_vnni"}, "x86_64-vnni"),
        ("AMD64", {"avx2", "avx_vnni"}, "x86_64-vnni"),
        ("x86_64", {"avx2", "avx512f"}, "x86_64-avx2"),
        ("x86_64", {"sse2"}, "x86_64"),
        ("aarch64", set(), "aarch64"),
        ("armv7l", set(), "armv7l"),
    ],
)
def test_an_instruction_set_is_named_by_what_int8_kernels_use(machine: str, flags: set[str], name: str):
    assert name_of(machine, flags) == name


def test_this_machine_has_a_name_and_saturates_only_without_vnni():
    assert instruction_set().startswith(platform.machine().lower())
    assert saturates_int8() == (instruction_set() in ("x86_64", "x86_64-avx2"))
