// Tensor cores and the copies that feed them: one warp's 16 x 8 tile, PTX on a GPU and the same
// layout of fragments spelled out on a CPU.
//
// With g = lane / 4 and t = lane % 4 a lane holds, of A (16 x K, row major), B (K x 8) and D (16 x 8):
//   K = 16, two 16-bit numbers to a register:
//     a[0] (g, 2t..2t+1)   a[1] (g + 8, 2t..)   a[2] (g, 2t + 8..)   a[3] (g + 8, 2t + 8..)
//     b[0] (2t..2t+1, g)   b[1] (2t + 8.., g)
//   K = 8, one tf32 to a register:
//     a[0] (g, t)   a[1] (g + 8, t)   a[2] (g, t + 4)   a[3] (g + 8, t + 4)
//     b[0] (t, g)   b[1] (t + 4, g)
//   D, float32, either way:
//     d[0], d[1] (g, 2t..2t+1)   d[2], d[3] (g + 8, 2t..2t+1)
#pragma once

#include "device.cuh"

#ifdef __CUDACC__

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

#define WORKBENCH_MMA(shape) \
    asm volatile("mma.sync.aligned." shape " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// D += A B
template <class T>
__device__ __forceinline__ void mma_k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma_k16<bf16>(float (&d)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[2]) {
    WORKBENCH_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
template <>
__device__ __forceinline__ void mma_k16<fp16>(float (&d)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[2]) {
    WORKBENCH_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}
__device__ __forceinline__ void mma_k8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    WORKBENCH_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef WORKBENCH_MMA

// rounds to 10 bits after the leading one, ties away from zero
__device__ __forceinline__ uint32_t to_tf32(float x) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

// Four 8 x 8 tiles of 16-bit numbers out of shared memory: lane 8 j + r brings the address of row r
// of tile j, and gets in register j the numbers (g, 2t..2t+1) of tile j; transposed: (2t..2t+1, g).
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

// Starts a copy of BYTES (4, 8, 16) from global to shared memory; of the first `given` bytes, the
// rest becomes zero. Both addresses are multiples of BYTES. The copies since the last commit form a
// group; `cp_async_wait<N>` waits until at most N groups of this thread are on their way.
template <int BYTES> __device__ __forceinline__ void cp_async(void* to, const void* from, int given = BYTES) {
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n"
                     :: "r"(shared_address(to)), "l"(from), "r"(given) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;\n"
                     :: "r"(shared_address(to)), "l"(from), "r"(given), "n"(BYTES) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int GROUPS> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" :: "n"(GROUPS) : "memory");
}

#else
#include "emulated_mma.h"
#endif
