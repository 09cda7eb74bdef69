"""numpy's own tests of indexing and arrays, run over the class.

What they find different is listed below, each with its reason; everything else must pass. The lists
were made with one numpy and say nothing about another one's tests.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from tests.numpys_own import dense
from tests.numpys_own import tests_of as _tests_of

RECORDED_WITH = "2.4"

if not np.__version__.startswith(RECORDED_WITH + "."):
    pytest.skip(
        f"what differs is recorded for the tests of numpy {RECORDED_WITH}", allow_module_level=True
    )

# numpy warns who shuffles what is no ndarray
pytestmark = pytest.mark.filterwarnings("ignore:you are shuffling:UserWarning")

MEMORY = "is about memory, which a compressed array has not got: strides, flags, buffers, addresses"
READS = "writes into what a read returned, and a read is a copy"
VIEW = "sees the elements as another dtype or class by view(), which needs them in memory"
RESIZE = "resizes in place, and the number of slots is fixed"
TEXT = "compares repr(), and the class has its own"
MAKER = "tests what makes arrays, which this shim replaces"
OF_NDARRAY = (
    "gives the array to an ndarray's own method or to C code, which refuse what is no ndarray"
)
F_ORDER = "asks for Fortran order where a copy would have to be made, which is refused"
MANY_AXES = "expects a limit of numpy's that is none here"
IDENTITY = "asks which object is whose base, and a result is an array of its own"
SLOW = "takes long over single elements"
FLAT = "uses keys of flat that numpy itself is giving up: single booleans and floats"

# Classes that are not run, or single tests of others.
NOT_RUN = {
    "multiarray": {
        **dict.fromkeys(
            (
                "TestFlags", "TestCAPI", "TestNeighborhoodIter", "TestStackedNeighborhoodIter",
                "TestFromBuffer", "TestPEP3118Dtype", "TestNewBufferProtocol", "TestArrayInterface",
                "TestCTypes", "TestWritebackIfCopy", "TestArrayFinalize", "TestAlignment",
                "TestViewDtype", "TestAsCArray", "TestTemporaryElide", "TestDevice", "TestSizeOf",
                "TestArrayCreationCopyArgument", "TestResize", "TestHashing",
                "TestTextSignatures",
            ),
            MEMORY,
        ),
        "TestCreation.test_zeros_big": SLOW,
        "TestDot.test_huge_vectordot": SLOW,
        "TestMethods.test_partition_iterative": SLOW,
        "TestMethods.test_partition_fuzz": SLOW,
    },
    "indexing": {},
    "item_selection": {},
}  # fmt: skip

# Tests that fail.
DIFFERENT: dict[str, dict[str, str]] = {
    "indexing": {
        "TestIndexing.test_empty_tuple_index": IDENTITY,
        "TestIndexing.test_ellipsis_index": IDENTITY,
        "TestIndexing.test_gh_26844": READS,
        "TestIndexing.test_gh_26844_segfault": READS,
        "TestIndexing.test_nonbaseclass_values": VIEW,
        "TestIndexing.test_unaligned": VIEW,
        "TestIndexing.test_array_like_values": MEMORY,
        "TestIndexing.test_memory_order": MEMORY,
        "TestSubclasses.test_basic": VIEW,
        "TestSubclasses.test_fancy_on_read_only": VIEW,
        "TestSubclasses.test_finalize_gets_full_info": VIEW,
        "TestFlatiterIndexing.test_flatiter_indexing_boolean": FLAT,
        "TestFlatiterIndexing."
        "test_flatiter_indexing_not_supported_newaxis_mutlidimensional_float": FLAT,
        "TestFlatiterIndexing.test_flatiter_indexing_boolean_assign": FLAT,
        "TestFlatiterIndexing."
        "test_flatiter_indexing_not_supported_newaxis_mutlid_float_assign": FLAT,
    },
    "multiarray": {
        "TestAttributes.test_attributes": MEMORY,
        "TestAttributes.test_stridesattr": MEMORY,
        "TestAttributes.test_set_stridesattr": MEMORY,
        "TestAttributes.test_fill_readonly": MEMORY,
        "TestArrayConstruction.test_array_copy_false": MAKER,
        "TestArrayConstruction.test_array_copy_if_needed": MAKER,
        "TestArrayConstruction.test_array_as_keyword": MAKER,
        "TestArrayConstruction.test_array_signature": MAKER,
        "TestDtypedescr.test_structured_non_void": TEXT,
        "TestCreation.test_array_too_big": MEMORY,
        "TestStructured.test_setfield": READS,
        "TestStructured.test_base_attr": IDENTITY,
        "TestStructured.test_assignment": VIEW,
        "TestBool.test_count_nonzero": VIEW,
        "TestBool.test_count_nonzero_all": VIEW,
        "TestZeroSizeFlexible.test_resize": RESIZE,
        "TestZeroSizeFlexible.test_view": VIEW,
        "TestZeroSizeFlexible.test_pickle_with_buffercallback": MEMORY,
        "TestMethods.test_choose": MEMORY,
        "TestMethods.test_copy": MEMORY,
        "TestMethods.test__deepcopy__": MEMORY,
        "TestMethods.test_no_dgemv": MEMORY,
        "TestMethods.test_dot_out_mem_overlap": MEMORY,
        "TestMethods.test_put": MEMORY,
        "TestMethods.test_ravel": MEMORY,
        "TestMethods.test_swapaxes": MEMORY,
        "TestMethods.test_reshape": F_ORDER,
        "TestMethods.test_searchsorted_return_type": VIEW,
        "TestMethods.test_dot_matmul_out": VIEW,
        "TestMethods.test_trace_subclass": VIEW,
        "TestMethods.test_ravel_subclass": VIEW,
        "TestMethods.test_partition": READS,
        "TestMethods.test_matmul_out": IDENTITY,
        "TestBinop.test_ufunc_binop_interaction": VIEW,
        "TestBinop.test_ufunc_binop_bad_array_priority": VIEW,
        "TestBinop.test_out_override": VIEW,
        "TestPickling.test_non_contiguous_array": MEMORY,
        "TestPickling.test_datetime64_byteorder": VIEW,
        "TestArgmaxArgminCommon.test_np_vs_ndarray": OF_NDARRAY,
        "TestPutmask.test_record_array": READS,
        "TestPutmask.test_overlaps": READS,
        "TestPutmask.test_writeable": MEMORY,
        "TestFlat.test_contiguous": MEMORY,
        "TestFlat.test_discontiguous": MEMORY,
        "TestFlat.test___array__": MEMORY,
        "TestFlat.test_refcount": MEMORY,
        "TestFlat.test_maxdims": MANY_AXES,
        "TestRecord.test_field_names": READS,
        "TestRecord.test_record_hash": MEMORY,
        "TestRecord.test_multifield_indexing_view": IDENTITY,
        "TestView.test_basic": VIEW,
        "TestStats.test_out": OF_NDARRAY,
        "TestStats.test_subclass": VIEW,
        "TestDot.test_dot_3args_errors": MEMORY,
        "TestDot.test_accelerate_framework_sgemv_fix": MEMORY,
        "TestDot.test_dot_out_result": OF_NDARRAY,
        "TestDot.test_dot_out_aliasing": OF_NDARRAY,
        "TestMatmul.test_out_contiguous": IDENTITY,
        "TestMatmul.test_matmul_bool": VIEW,
        "TestArrayAttributeDeletion.test_multiarray_flags_writable_attribute_deletion": MEMORY,
        "TestArrayAttributeDeletion.test_multiarray_flags_not_writable_attribute_deletion": MEMORY,
        "TestArrayPriority.test_ndarray_subclass": VIEW,
        "TestArrayPriority.test_subclass_subclass": VIEW,
        "TestArrayPriority.test_subclass_other": VIEW,
    },
    "item_selection": {},
}


def _without(cls: type, names: dict[str, str], module: str) -> type:
    """Take tests out of a class, and mark those that fail."""
    for name, test in list(vars(cls).items()):
        full = f"{cls.__name__}.{name}"
        if full in names:
            delattr(cls, name)
            continue
        marks = getattr(test, "pytestmark", [])
        if marks:
            test.pytestmark = list(map(_with_a_list, marks))
        if full in DIFFERENT[module]:
            strict = not any(mark.name == "parametrize" for mark in marks)
            mark = pytest.mark.xfail(reason=DIFFERENT[module][full], strict=strict)
            setattr(cls, name, mark(test))
    return cls


def _with_a_list(mark: pytest.Mark) -> pytest.Mark:
    """Give parameters that come as an iterator as a list, as pytest wants them."""
    if mark.name != "parametrize" or isinstance(mark.args[1], Collection):
        return mark
    names, values, *rest = mark.args
    return pytest.mark.parametrize(names, list(values), *rest, **mark.kwargs).mark


def _collect() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module, left_out in NOT_RUN.items():
        for name, value in _tests_of(f"test_{module}").items():
            if isinstance(value, type) and name.startswith("Test") and name not in left_out:
                found[f"Test_{module}_{name}"] = _without(value, left_out, module)
    return found


globals().update(_collect())


class Test_indexing_TestMultiIndexingAutomated(  # noqa: N801 # as the others are named
    globals()["Test_indexing_TestMultiIndexingAutomated"]
):
    """Its model of indexing looks for ndarrays in keys, and expects reads to be views."""

    def _create_complex_indices(self) -> list[Any]:
        return list(map(dense, super()._create_complex_indices()))

    def _check_multi_index(self, arr: Any, index: Any) -> None:
        super()._check_multi_index(arr, dense(index))

    def _compare_index_result(self, arr: Any, index: Any, mimic_get: Any, no_copy: bool) -> None:
        super()._compare_index_result(arr, index, mimic_get, False)


def test_what_is_left_out_exists() -> None:
    for module, names in NOT_RUN.items():
        namespace = _tests_of(f"test_{module}")
        for full in [*names, *DIFFERENT[module]]:
            cls, _, test = full.partition(".")
            assert cls in namespace, full
            assert not test or hasattr(namespace[cls], test), full
