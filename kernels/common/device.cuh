// What every device source stands on: compiled by nvcc for a GPU, and by a C++ compiler against the
// emulation of tests/kernels/emulator, which runs the same threads on a CPU.
//
// Rules that keep both true: pointers and plain numbers, no PyTorch header; shared memory through
// `dynamic_shared` or SHARED_ARRAY; a kernel starts through `launch`; tensor cores, ldmatrix and
// cp.async through mma.cuh; every thread of a block reaches every barrier.
//
// A launcher is `extern "C" const char* name(pointers, int64_t and double numbers..., cudaStream_t)`
// and returns null, or what went wrong.
#pragma once

#ifdef __CUDACC__
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "emulator.h"
#endif

#include <utility>

using bf16 = __nv_bfloat16;
using fp16 = __half;

// a tensor's type, as launchers are told it
enum Type : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

constexpr unsigned ALL_LANES = 0xFFFFFFFFu;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(fp16 x) { return __half2float(x); }

template <class T> struct From;
template <> struct From<float> { static __device__ __forceinline__ float of(float x) { return x; } };
template <> struct From<bf16> {
    static __device__ __forceinline__ bf16 of(float x) { return __float2bfloat16_rn(x); }
};
template <> struct From<fp16> {
    static __device__ __forceinline__ fp16 of(float x) { return __float2half_rn(x); }
};
// rounds to T, to nearest even
template <class T> __device__ __forceinline__ T from_float(float x) { return From<T>::of(x); }

// the bits of two 16-bit numbers side by side, the first in the low half: as fragments hold them
template <class T> __device__ __forceinline__ uint32_t pack(T low, T high) {
    union { T parts[2]; uint32_t bits; } both = {{low, high}};
    return both.bits;
}

#ifdef __CUDACC__
#define SHARED_ARRAY(T, name, count) __shared__ T name[count]
template <class T> __device__ __forceinline__ T* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
    return reinterpret_cast<T*>(dynamic_shared_bytes);
}
#else
#define SHARED_ARRAY(T, name, count) \
    static char name##_token; \
    T* const name = static_cast<T*>(emulator::static_shared(&name##_token, sizeof(T) * (count)))
template <class T> T* dynamic_shared() { return reinterpret_cast<T*>(emulator::machine.dynamic.begin); }
#endif

__device__ __forceinline__ int lane_of(int thread) { return thread & 31; }

__device__ __forceinline__ float warp_sum(float x) {
    for (int by = 16; by > 0; by /= 2) x += __shfl_xor_sync(ALL_LANES, x, by);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int by = 16; by > 0; by /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, by));
    return x;
}

// Starts `kernel` on `stream`; null, or what went wrong. Nothing waits and nothing is allocated.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Arguments... arguments) {
#ifdef __CUDACC__
    cudaError_t error = cudaSuccess;
    if (shared_bytes > 48 * 1024)  // more than this must be asked for
        error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(shared_bytes));
    if (error == cudaSuccess) {
        kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
        error = cudaGetLastError();
    }
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#else
    (void)stream;
    auto thread = [=] { kernel(static_cast<Parameters>(arguments)...); };
    return emulator::launch(grid, block, shared_bytes,
                            [](void* it) { (*static_cast<decltype(thread)*>(it))(); },
                            const_cast<void*>(static_cast<const void*>(&thread)));
#endif
}
