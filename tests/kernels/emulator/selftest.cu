// What the emulator must do and must find, one kernel each: test_emulator.py says which.
#include "mma.cuh"

template <class T> __global__ void matmul(const T* a_MK, const T* b_KN, float* d_MN) {
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; i++) {
        const T* at = a_MK + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
        a[i] = pack(at[0], at[1]);
    }
    for (int i = 0; i < 2; i++) b[i] = pack(b_KN[(2 * t + 8 * i) * 8 + g], b_KN[(2 * t + 8 * i + 1) * 8 + g]);
    float d[4] = {0, 0, 0, 0};
    mma_k16<T>(d, a, b);
    for (int i = 0; i < 4; i++) d_MN[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}
extern "C" const char* matmul_bf16(const bf16* a, const bf16* b, float* d, cudaStream_t s) {
    return launch(matmul<bf16>, 1, 32, 0, s, a, b, d);
}
extern "C" const char* matmul_fp16(const fp16* a, const fp16* b, float* d, cudaStream_t s) {
    return launch(matmul<fp16>, 1, 32, 0, s, a, b, d);
}

// the same product through cp.async and ldmatrix; PAD: 16-bit numbers added to each row of a
template <int PAD> __global__ void matmul_shared(const bf16* a_MK, const bf16* b_KN, float* d_MN) {
    const int lane = threadIdx.x;
    bf16* a_s = dynamic_shared<bf16>();
    bf16* b_s = a_s + 16 * (16 + PAD);
    cp_async<16>(a_s + lane / 2 * (16 + PAD) + lane % 2 * 8, a_MK + lane * 8);
    if (lane < 16) cp_async<16>(b_s + lane * 8, b_KN + lane * 8);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    uint32_t a[4], both[4];
    ldmatrix(a, a_s + lane % 16 * (16 + PAD) + lane / 16 * 8);
    ldmatrix_transposed(both, b_s + lane % 16 * 8);
    const uint32_t b[2] = {both[0], both[1]};
    float d[4] = {0, 0, 0, 0};
    mma_k16<bf16>(d, a, b);
    for (int i = 0; i < 4; i++) d_MN[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}
extern "C" const char* matmul_padded(const bf16* a, const bf16* b, float* d, cudaStream_t s) {
    return launch(matmul_shared<8>, 1, 32, (16 * 24 + 16 * 8) * sizeof(bf16), s, a, b, d);
}
extern "C" const char* matmul_conflicting(const bf16* a, const bf16* b, float* d, cudaStream_t s) {
    return launch(matmul_shared<48>, 1, 32, (16 * 64 + 16 * 8) * sizeof(bf16), s, a, b, d);
}

__global__ void matmul_tf32_kernel(const float* a_MK, const float* b_KN, float* d_MN) {
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; i++) a[i] = to_tf32(a_MK[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
    for (int i = 0; i < 2; i++) b[i] = to_tf32(b_KN[(t + 4 * i) * 8 + g]);
    float d[4] = {0, 0, 0, 0};
    mma_k8(d, a, b);
    for (int i = 0; i < 4; i++) d_MN[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}
extern "C" const char* matmul_tf32(const float* a, const float* b, float* d, cudaStream_t s) {
    return launch(matmul_tf32_kernel, 1, 32, 0, s, a, b, d);
}

// a sum over n numbers: shuffles within warps, static and dynamic shared memory, atomics between blocks
__global__ void sum_kernel(const float* x, float* total, int64_t n) {
    SHARED_ARRAY(float, parts, 32);
    float* all = dynamic_shared<float>();
    const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    all[threadIdx.x] = at < n ? x[at] : 0.0f;
    __syncthreads();
    const float part = warp_sum(all[blockDim.x - 1 - threadIdx.x]);
    if (lane_of(threadIdx.x) == 0) parts[threadIdx.x / 32] = part;
    __syncthreads();
    if (threadIdx.x < 32) {
        const float mine = threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : 0.0f;
        const float sum = warp_sum(mine);
        if (threadIdx.x == 0) atomicAdd(total, sum);
    }
}
extern "C" const char* sum(const float* x, float* total, int64_t n, cudaStream_t s) {
    return launch(sum_kernel, unsigned(ceil_div(n, 128)), 128, 128 * sizeof(float), s, x, total, n);
}

// reads what a neighbour wrote; wrong: without a barrier between
__global__ void race_kernel(float* y) {
    float* all = dynamic_shared<float>();
    all[threadIdx.x] = float(threadIdx.x);
    y[threadIdx.x] = all[(threadIdx.x + 1) % blockDim.x];
}
extern "C" const char* race(float* y, cudaStream_t s) { return launch(race_kernel, 1, 64, 256, s, y); }

// a block reads what another one wrote
__global__ void blocks_kernel(float* y) {
    if (blockIdx.x == 0) y[0] = 1.0f;
    if (blockIdx.x == 1) y[1] = y[0];
}
extern "C" const char* blocks(float* y, cudaStream_t s) { return launch(blocks_kernel, 2, 1, 0, s, y); }

__global__ void divergent_kernel(int64_t how) {
    if (how == 0 && threadIdx.x < 32) __syncthreads();
    if (how == 1) {
        if (threadIdx.x % 2) __syncthreads();
        else __syncthreads();
    }
    if (how == 2 && threadIdx.x % 32 < 16) __syncwarp();
    if (how == 3) __shfl_sync(0xFFFFu, threadIdx.x, 3);
    if (how == 4) {
        if (threadIdx.x % 32 == 0) __syncwarp();
        else __any_sync(ALL_LANES, true);
    }
    if (how == 5) {
        if (threadIdx.x == 0) return;
        __syncthreads();
    }
}
extern "C" const char* divergent(int64_t how, cudaStream_t s) {
    return launch(divergent_kernel, 1, 64, 0, s, how);
}

__global__ void outside_kernel(int64_t how, const float* x, float* y) {
    float* all = dynamic_shared<float>();
    SHARED_ARRAY(float, few, 4);
    if (threadIdx.x != 3) return;
    if (how == 0) all[64] = 1.0f;
    if (how == 1) few[4] = 1.0f;
    if (how == 2) y[0] = x[64];
    if (how == 3) y[64] = 0.0f;
    if (how == 4) const_cast<float*>(x)[0] = 0.0f;
    if (how == 5) y[0] = all[5] + few[0];
    if (how == 6) *reinterpret_cast<volatile float*>(how) = 1.0f;
}
extern "C" const char* outside(int64_t how, const float* x, float* y, cudaStream_t s) {
    return launch(outside_kernel, 1, 32, 256, s, how, x, y);
}

__global__ void unwaited_kernel(const float* x, float* y, int64_t wait) {
    float* all = dynamic_shared<float>();
    cp_async<4>(all + threadIdx.x, x + threadIdx.x);
    cp_async_commit();
    if (wait) cp_async_wait<0>();
    y[threadIdx.x] = all[threadIdx.x];
    cp_async_wait<0>();
}
extern "C" const char* unwaited(const float* x, float* y, int64_t wait, cudaStream_t s) {
    return launch(unwaited_kernel, 1, 64, 256, s, x, y, wait);
}
