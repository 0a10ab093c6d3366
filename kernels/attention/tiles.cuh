// Tiles of matrices in shared memory and products of them, one warp's 16 rows at a time: on tensor
// cores where numbers have 16 bits, with float32's own multiply-adds where they are float32.
//
// Both keep results as mma.cuh does: with g = lane / 4 and t = lane % 4 a lane holds rows g and g + 8,
// columns 2 t and 2 t + 1 of every 8. Rows of a tile lie 16 bytes further apart than they are wide,
// so that eight of them begin in different banks.
#pragma once

#include "device.cuh"
#include "mma.cuh"

template <class T> constexpr int PAD = 16 / sizeof(T);

// A warp's 16 x 8 N results.
template <int N> struct Block {
    float at[N][4];

    __device__ __forceinline__ void clear() {
        #pragma unroll
        for (int n = 0; n < N; n++)
            #pragma unroll
            for (int i = 0; i < 4; i++) at[n][i] = 0;
    }
};

__device__ __forceinline__ int row_of(int lane, int i) { return lane / 4 + i / 2 * 8; }
__device__ __forceinline__ int column_of(int lane, int n, int i) { return 8 * n + lane % 4 * 2 + i % 2; }

// sums and maxima over the four lanes that share a row
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

// A matrix with a compile-time distance of its rows, in numbers.
template <class T, int LD> struct Rows {
    T* at;
    __device__ __forceinline__ T* operator()(int row, int column = 0) const { return at + row * LD + column; }
};

// --- products: D += A B over DEPTH, a multiple of 16 --------------------------------------------

template <class T> struct Product {  // 16-bit numbers
    // A (i, k), B given as (n, k)
    template <int DEPTH, int N, class A, class B>
    static __device__ __forceinline__ void by_rows(Block<N>& d, A a, B b) {
        const int lane = threadIdx.x % 32, tile = lane / 8, r = lane % 8;
        #pragma unroll 2
        for (int k = 0; k < DEPTH; k += 16) {
            uint32_t a_[4];
            ldmatrix(a_, a(r + tile % 2 * 8, k + tile / 2 * 8));
            #pragma unroll
            for (int n = 0; n < N; n += 2) {
                uint32_t b_[4];
                ldmatrix(b_, b(8 * n + r + tile / 2 * 8, k + tile % 2 * 8));
                pair(d, n, a_, b_);
            }
        }
    }

    // A (i, k), B (k, n)
    template <int DEPTH, int N, class A, class B>
    static __device__ __forceinline__ void by_columns(Block<N>& d, A a, B b) {
        const int lane = threadIdx.x % 32, tile = lane / 8, r = lane % 8;
        #pragma unroll 2
        for (int k = 0; k < DEPTH; k += 16) {
            uint32_t a_[4];
            ldmatrix(a_, a(r + tile % 2 * 8, k + tile / 2 * 8));
            columns(d, a_, b, k, tile, r);
        }
    }

    // A given as (k, i), B (k, n)
    template <int DEPTH, int N, class A, class B>
    static __device__ __forceinline__ void transposed(Block<N>& d, A a, B b) {
        const int lane = threadIdx.x % 32, tile = lane / 8, r = lane % 8;
        #pragma unroll 2
        for (int k = 0; k < DEPTH; k += 16) {
            uint32_t a_[4];
            ldmatrix_transposed(a_, a(k + r + tile / 2 * 8, tile % 2 * 8));
            columns(d, a_, b, k, tile, r);
        }
    }

private:
    template <int N, class B>
    static __device__ __forceinline__ void columns(Block<N>& d, const uint32_t (&a)[4], B b, int k, int tile, int r) {
        #pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t b_[4];
            ldmatrix_transposed(b_, b(k + r + tile % 2 * 8, 8 * n + tile / 2 * 8));
            pair(d, n, a, b_);
        }
    }
    template <int N>
    static __device__ __forceinline__ void pair(Block<N>& d, int n, const uint32_t (&a)[4], const uint32_t (&b)[4]) {
        const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
        mma_k16<T>(d.at[n], a, left);
        mma_k16<T>(d.at[n + 1], a, right);
    }
};

template <> struct Product<float> {
    template <int DEPTH, int N, class A, class B>
    static __device__ __forceinline__ void by_rows(Block<N>& d, A a, B b) {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        #pragma unroll 2
        for (int k = 0; k < DEPTH; k += 4) {
            const float4 top = four(a(g, k)), bottom = four(a(g + 8, k));
            #pragma unroll
            for (int n = 0; n < N; n++) {
                const float4 left = four(b(8 * n + 2 * t, k)), right = four(b(8 * n + 2 * t + 1, k));
                d.at[n][0] += dot(top, left), d.at[n][1] += dot(top, right);
                d.at[n][2] += dot(bottom, left), d.at[n][3] += dot(bottom, right);
            }
        }
    }

    template <int DEPTH, int N, class A, class B>
    static __device__ __forceinline__ void by_columns(Block<N>& d, A a, B b) {
        const int g = threadIdx.x % 32 / 4;
        #pragma unroll 4
        for (int k = 0; k < DEPTH; k++) columns(d, *a(g, k), *a(g + 8, k), b, k);
    }

    template <int DEPTH, int N, class A, class B>
    static __device__ __forceinline__ void transposed(Block<N>& d, A a, B b) {
        const int g = threadIdx.x % 32 / 4;
        #pragma unroll 4
        for (int k = 0; k < DEPTH; k++) columns(d, *a(k, g), *a(k, g + 8), b, k);
    }

private:
    static __device__ __forceinline__ float4 four(const float* p) { return *reinterpret_cast<const float4*>(p); }
    static __device__ __forceinline__ float dot(float4 x, float4 y) {
        return x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
    }
    template <int N, class B>
    static __device__ __forceinline__ void columns(Block<N>& d, float top, float bottom, B b, int k) {
        const int t = threadIdx.x % 4;
        #pragma unroll
        for (int n = 0; n < N; n++) {
            const float2 pair = *reinterpret_cast<const float2*>(b(k, 8 * n + 2 * t));
            d.at[n][0] += top * pair.x, d.at[n][1] += top * pair.y;
            d.at[n][2] += bottom * pair.x, d.at[n][3] += bottom * pair.y;
        }
    }
};

// --- moving tiles -------------------------------------------------------------------------------

// Rows of one head of a tensor in global memory: `count` of them, `stride` numbers apart.
template <class T> struct Source {
    const T* at;
    int64_t stride;
    int count, width;
};

enum class Beyond { ZERO, NEAREST };

// Starts filling rows [0, ROWS) of a tile with rows first.. of a source; columns from its width up
// to WIDTH become zero, and so do rows that it does not have, or they repeat its nearest row.
// All threads take part; `loaded()` waits.
template <int ROWS, int WIDTH, class T, int LD>
__device__ __forceinline__ void load(Rows<T, LD> to, Source<T> from, int first, Beyond beyond = Beyond::ZERO) {
    constexpr int STEP = PAD<T>, CHUNKS = WIDTH / STEP;
    const bool whole = reinterpret_cast<uint64_t>(from.at) % 16 == 0 && from.stride % STEP == 0 && from.width % STEP == 0;
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += blockDim.x) {
        const int row = i / CHUNKS, column = i % CHUNKS * STEP;
        int source = first + row;
        if (beyond == Beyond::NEAREST) source = max(0, min(source, from.count - 1));
        const bool there = source >= 0 && source < from.count;
        const T* at = from.at + (there ? source * from.stride + column : 0);
        if (whole) {
            cp_async<16>(to(row, column), there && column < from.width ? at : from.at,
                         there && column < from.width ? 16 : 0);
        } else {
            #pragma unroll
            for (int c = 0; c < STEP; c++)
                *to(row, column + c) = there && column + c < from.width ? at[c] : from_float<T>(0);
        }
    }
    cp_async_commit();
}

__device__ __forceinline__ void loaded() {
    cp_async_wait<0>();
    __syncthreads();
}

// A warp's results as numbers of type T in shared memory, at columns from `column` on.
template <class T, int LD, int N>
__device__ __forceinline__ void put(Rows<T, LD> to, const Block<N>& d, int row = 0) {
    const int lane = threadIdx.x % 32;
    #pragma unroll
    for (int n = 0; n < N; n++)
        #pragma unroll
        for (int i = 0; i < 4; i++) *to(row + row_of(lane, i), column_of(lane, n, i)) = from_float<T>(d.at[n][i]);
}
