"""The executor of CUDA kernels finds faults in kernels and names the line."""
import re

import numpy as np
import pytest

from tests.cuda_on_cpu import KernelError, Module
from tests.test_cuda_on_cpu import device, kernels, needs_compiler

pytestmark = needs_compiler

# Each kernel has one fault, in the line that says so; where two threads are at fault, the other is in the line "other".
FAULTS = r"""
const unsigned ALL = 0xffffffff;

KERNEL(write_beside) {
    y[threadIdx.x + 1] = x[threadIdx.x];                    // fault
}
KERNEL(write_before) {
    y[(int)threadIdx.x - 2] = x[threadIdx.x];               // fault
}
KERNEL(read_beside) {
    y[threadIdx.x] = x[threadIdx.x + 1];                    // fault
}
KERNEL(write_elsewhere) {
    y[threadIdx.x + (n << 40)] = x[threadIdx.x];            // fault
}
KERNEL(shared_overrun) {
    __shared__ float a[32], b[32];
    float *p = a;
    if (threadIdx.x < 32) b[threadIdx.x] = x[threadIdx.x];
    p[threadIdx.x] = x[threadIdx.x];                        // fault
    __syncthreads();
    y[threadIdx.x] = a[threadIdx.x % 32] + b[threadIdx.x % 32];
}
KERNEL(shared_overrun_of_the_other) {
    __shared__ float a[32], b[32];
    float *p = b;
    if (threadIdx.x < 32) a[threadIdx.x] = x[threadIdx.x];
    p[threadIdx.x] = x[threadIdx.x];                        // fault
    __syncthreads();
    y[threadIdx.x] = a[threadIdx.x % 32] + b[threadIdx.x % 32];
}
KERNEL(shared_read_overrun) {
    __shared__ float a[32];
    float *p = a;
    if (threadIdx.x < 32) a[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = p[threadIdx.x];                        // fault
}
KERNEL(dynamic_read_overrun) {
    DYN_SHARED(float, a);
    if (threadIdx.x < 32) a[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = a[threadIdx.x];                        // fault
}
KERNEL(row_overrun) {
    __shared__ float a[8][8];
    a[0][threadIdx.x] = x[threadIdx.x];                     // fault
    __syncthreads();
    y[threadIdx.x] = a[7][7];
}
KERNEL(dynamic_overrun) {
    DYN_SHARED(float, a);
    a[threadIdx.x] = x[threadIdx.x];                        // fault
    y[threadIdx.x] = a[threadIdx.x];
}
KERNEL(local_overrun) {
    float a[4] = {x[0], x[1], x[2], x[3]};
    for (int i = 0; i < 4; i++) a[i] += x[i + 1];
    y[threadIdx.x] = a[threadIdx.x];                        // fault
}
KERNEL(no_syncthreads) {
    __shared__ float a[64];
    for (int i = 0; i < 2; i++) {
        a[threadIdx.x] = x[threadIdx.x] + i;                // other
        __syncthreads();
        y[threadIdx.x] = a[63 - threadIdx.x];               // fault
    }
}
KERNEL(no_syncwarp) {
    __shared__ float a[32];
    a[threadIdx.x] = 0;
    __syncthreads();
    a[threadIdx.x] = x[threadIdx.x];                        // fault
    y[threadIdx.x] = a[threadIdx.x ^ 1];                    // other
}
KERNEL(shuffle_orders_nothing) {
    __shared__ float a[32];
    a[threadIdx.x] = x[threadIdx.x];                        // other
    float zero = __shfl_xor_sync(ALL, 0.f, 1);
    y[threadIdx.x] = a[threadIdx.x ^ 1] + zero;             // fault
}
KERNEL(half_a_syncwarp) {
    __shared__ float a[32];
    a[threadIdx.x] = x[threadIdx.x];                        // other
    __syncwarp(threadIdx.x < 16 ? 0xffff : 0xffff0000);
    if (threadIdx.x >= 16) y[threadIdx.x] = a[threadIdx.x ^ 16];        // fault
}
KERNEL(a_lane_that_did_not_synchronize) {
    __shared__ float a;
    if (threadIdx.x == 0) a = x[0];                         // other
    if (threadIdx.x <= 1) __syncwarp(0x3);
    if (threadIdx.x == 1) y[1] = a;
    float later = __shfl_xor_sync(ALL, 0.f, 1);
    if (threadIdx.x == 2) y[2] = a + later;                 // fault
}
KERNEL(blocks_race) {
    y[threadIdx.x] = x[blockIdx.x];                         // fault other
}
KERNEL(accumulate) {
    y[0] += x[blockIdx.x];                                  // fault other
}
KERNEL(atomic_and_plain) {
    if (threadIdx.x == 0) y[0] = x[0];                      // other
    else atomicAdd(y, 1.f);                                 // fault
}
KERNEL(plain_after_atomics) {
    atomicAdd(y, 1.f);                                      // other
    __syncthreads();
    if (blockIdx.x == 1) y[1 + threadIdx.x] = y[0];         // fault
}
KERNEL(write_what_all_have_read) {
    float all = y[0];                                       // other
    __syncthreads();
    if (blockIdx.x == 1 && threadIdx.x == 0) y[0] = all;    // fault
}
KERNEL(write_what_the_warp_has_read) {
    y[threadIdx.x + 1] = y[0];                              // other
    if (threadIdx.x == 31) y[0] = x[0];                     // fault
}
KERNEL(write_what_another_warp_has_read) {
    float all = y[0];                                       // other
    __syncwarp();
    if (threadIdx.x == 63) y[0] = all;                      // fault
}
KERNEL(masks_that_overlap) {
    if (threadIdx.x <= 2) __syncwarp(threadIdx.x ? 0x7 : 0x3);          // fault other
}
KERNEL(never_written) {
    __shared__ float a[64];
    if (n < 0) a[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = a[threadIdx.x];                        // fault
}
KERNEL(written_by_a_block_before) {
    __shared__ float a[64];
    if (blockIdx.x == 0) a[threadIdx.x] = x[threadIdx.x];
    if (blockIdx.x == 1) y[threadIdx.x] = a[threadIdx.x];   // fault
}
KERNEL(added_to_nothing) {
    __shared__ float a;
    atomicAdd(&a, x[threadIdx.x]);                          // fault
    __syncthreads();
    y[threadIdx.x] = a;
}
KERNEL(misaligned) {
    float4 v = *(const float4 *)(x + n % 4 + 1);            // fault
    y[threadIdx.x] = v.x + v.y + v.z + v.w;
}
KERNEL(overflow) {
    int large = (int)n * 40000;
    y[threadIdx.x] = large * 1000;                          // fault
}
KERNEL(divergent_barrier) {
    if (threadIdx.x < 32) __syncthreads();                  // fault
    y[threadIdx.x] = x[threadIdx.x];
}
KERNEL(two_barriers) {
    if (threadIdx.x < 32)
        __syncthreads();                                    // other
    else
        __syncthreads();                                    // fault
}
KERNEL(divergent_shuffle) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 2)
        y[threadIdx.x] = __shfl_xor_sync(ALL, v, 1);        // other
    else
        y[threadIdx.x] = __shfl_xor_sync(ALL, v, 1);        // fault
}
KERNEL(shuffle_of_exited_lanes) {
    if (threadIdx.x >= 16) return;
    y[threadIdx.x] = __shfl_xor_sync(ALL, x[0], 1);         // fault
}
KERNEL(shuffle_in_a_branch) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(ALL, x[0], 1);       // fault
    __syncthreads();                                                            // other
}
KERNEL(mask_without_caller) {
    y[threadIdx.x] = __ballot_sync(0xffff, x[0] > 0);       // fault
}
KERNEL(mask_beyond_block) {
    __syncwarp();                                           // fault
    y[threadIdx.x] = x[threadIdx.x];
}
KERNEL(source_outside_mask) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(0xffff, x[0], 20);       // fault
}
"""

# kernel: what is found, and the launch where it is not one block of 64
IN_EVERY_BUILD = {
    "dynamic_overrun": ("memcheck: write .*, 0 bytes past the end of the dynamic shared memory", dict(shared_mem=252)),
    "write_beside": ("memcheck: write .*, 0 bytes past the end of the array of argument 0", {}),
    "write_before": ("memcheck: write .*, [48] bytes before the start of the array of argument 0", {}),
    "write_elsewhere": ("memcheck: (write of 4 bytes|access) outside every buffer", {}),
    "divergent_barrier": ("synccheck: __syncthreads is not reached by every thread", {}),
    "two_barriers": ("synccheck: __syncthreads is reached at two lines", {}),
    "divergent_shuffle": ("synccheck: __shfl_xor_sync is not reached by every lane .*which waits, too", {}),
    "shuffle_of_exited_lanes": ("synccheck: __shfl_xor_sync is not reached by every lane .*which has exited", {}),
    "shuffle_in_a_branch": ("synccheck: __shfl_xor_sync is not reached by every lane .*which waits, too", {}),
    "masks_that_overlap": ("synccheck: __syncwarp is not reached by every lane .*which waits, too", {}),
    "mask_without_caller": ("synccheck: __ballot_sync has a mask without the calling lane", {}),
    "mask_beyond_block": ("synccheck: __syncwarp has a mask with lanes that the block does not", dict(block=(40,))),
    "source_outside_mask": ("synccheck: __shfl_sync reads from a lane outside its mask", {}),
}
WHEN_CHECKED = {
    "read_beside": ("memcheck: read of 4 bytes .*, 0 bytes past the end of the array of argument 1", {}),
    "shared_overrun": ("memcheck: write of 4 bytes .*, 0 bytes past the end of the shared array a", {}),
    "shared_overrun_of_the_other": ("memcheck: write of 4 bytes .*, 0 bytes past the end of the shared array b", {}),
    "shared_read_overrun": ("memcheck: read of 4 bytes .*, 0 bytes past the end of the shared array a", {}),
    "dynamic_read_overrun": ("memcheck: read of 4 bytes .*, 0 bytes past the end of the dynamic", dict(shared_mem=128)),
    "row_overrun": ("memcheck: index outside the bounds of an array", {}),
    "local_overrun": ("memcheck: index outside the bounds of an array", {}),
    "no_syncthreads": (r"racecheck: read at byte \d+ of the shared array a: .* unordered with the write by", {}),
    "no_syncwarp": ("racecheck: write at .* unordered with the read by", dict(block=(32,))),
    "shuffle_orders_nothing": ("racecheck: read at .* unordered with the write by", dict(block=(32,))),
    "half_a_syncwarp": ("racecheck: read at .* unordered with the write by", dict(block=(32,))),
    "a_lane_that_did_not_synchronize": ("racecheck: read at .* with the write by", dict(block=(32,))),
    "blocks_race": ("racecheck: write at byte 0 of the array of argument 0: .* with the write by", dict(grid=(2,))),
    "accumulate": ("racecheck: read at .* unordered with the write by", dict(grid=(2,), block=(1,))),
    "atomic_and_plain": ("racecheck: atomic operation at .* unordered with the write by", {}),
    "plain_after_atomics": ("racecheck: read at .* unordered with the atomic operation", dict(grid=(2,), block=(32,))),
    "write_what_the_warp_has_read": ("racecheck: write at .* unordered with the read by", dict(block=(32,))),
    "write_what_another_warp_has_read": ("racecheck: write at .* unordered with the read by", {}),
    "write_what_all_have_read": ("racecheck: write at .* unordered with the read by", dict(grid=(2,))),
    "never_written": ("initcheck: read before any write at byte 0 of the shared array a", {}),
    "written_by_a_block_before": ("initcheck: read before any write", dict(grid=(2,))),
    "added_to_nothing": ("initcheck: read before any write", {}),
    "misaligned": ("memcheck: misaligned access, which needs a multiple of 16", {}),
    "overflow": ("overflow of an integer product", {}),
}


@pytest.fixture(scope="module")
def faults():                                               # [fast, checked]
    return [Module('#line 1 "faults.cu"' + kernels(FAULTS), checked=checked) for checked in (False, True)]


def launch_fault(module, name, grid=(1,), block=(64,), **options):
    y, x = device(np.ones(64, np.float32)), device(np.ones(64, np.float32))
    module.get_function(name)(grid, block, (y, x, 64), **options)


def lines(name, mark):
    """faults.cu:N of the lines of a kernel that are marked so."""
    of_kernel = False
    for n, line in enumerate(FAULTS.splitlines()):
        of_kernel = f"KERNEL({name})" in line or (of_kernel and not line.startswith("}"))
        if of_kernel and mark in line.partition("//")[2].split():
            return f"faults.cu:{n}"
    return ""


@pytest.mark.parametrize("name", IN_EVERY_BUILD | WHEN_CHECKED)
def test_checked_build_finds(name, faults):
    what, options = (IN_EVERY_BUILD | WHEN_CHECKED)[name]
    with pytest.raises(KernelError, match="^" + what) as error:
        launch_fault(faults[True], name, **options)
    here, _, other = str(error.value).partition(f" at {lines(name, 'fault')}")
    assert re.search(rf": kernel {name}, block \(\d, 0, 0\) thread \(\d+, 0, 0\)$", here)
    assert re.search(rf"block \(\d, 0, 0\) thread \(\d+, 0, 0\) at {lines(name, 'other')}", other) or "which" in other \
        or not lines(name, "other")


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize("name", IN_EVERY_BUILD)
def test_every_build_finds(name, order, faults):
    what, options = IN_EVERY_BUILD[name]
    with pytest.raises(KernelError, match="^" + what):
        launch_fault(faults[False], name, order=order, **options)
