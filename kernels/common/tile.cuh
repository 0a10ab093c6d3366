// Products of tiles in shared memory by one warp: 16 x 16 blocks of float32, whatever the tiles hold.
//
// bf16 goes through the tensor cores as it is; float32 as three tf32 products (high x high, high x
// low, low x high), whose error is that of float32 within a factor of four. A tile's rows are PAD
// numbers apart more than they are wide, an odd multiple of 16 bytes, so that no two of the eight
// rows that ldmatrix reads at once share a bank; widths are multiples of 16.
#pragma once

#include "mma.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS;

template <class T> constexpr int PAD = 16 / sizeof(T);

template <class T> struct FragmentA { uint32_t r[4]; };
template <class T> struct FragmentB { uint32_t r[4]; };
template <> struct FragmentA<float> { uint32_t high[2][4], low[2][4]; };
template <> struct FragmentB<float> { uint32_t high[2][2][2], low[2][2][2]; };

// 16 rows and 16 of the inner dimension; TRANSPOSED: the tile is stored inner dimension first
template <bool TRANSPOSED, class T>
__device__ __forceinline__ void load(FragmentA<T>& a, const T* at, int stride) {
    const int lane = lane_of(threadIdx.x), r = lane % 8, j = lane / 8;
    if constexpr (TRANSPOSED)
        ldmatrix_transposed(a.r, at + (r + j / 2 * 8) * stride + j % 2 * 8);
    else
        ldmatrix(a.r, at + (r + j % 2 * 8) * stride + j / 2 * 8);
}
// 16 of the inner dimension and 16 columns; TRANSPOSED: the tile is stored columns first
template <bool TRANSPOSED, class T>
__device__ __forceinline__ void load(FragmentB<T>& b, const T* at, int stride) {
    const int lane = lane_of(threadIdx.x), r = lane % 8, j = lane / 8;
    if constexpr (TRANSPOSED)
        ldmatrix(b.r, at + (r + j / 2 * 8) * stride + j % 2 * 8);
    else
        ldmatrix_transposed(b.r, at + (r + j % 2 * 8) * stride + j / 2 * 8);
}

__device__ __forceinline__ void split(float x, uint32_t& high, uint32_t& low) {
    high = to_tf32(x);
    low = to_tf32(x - __uint_as_float(high));
}
template <bool TRANSPOSED>
__device__ __forceinline__ void load(FragmentA<float>& a, const float* at, int stride) {
    const int lane = lane_of(threadIdx.x), g = lane / 4, t = lane % 4;
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = g + i % 2 * 8, inner = 8 * s + t + i / 2 * 4;
            split(at[TRANSPOSED ? inner * stride + row : row * stride + inner], a.high[s][i], a.low[s][i]);
        }
}
template <bool TRANSPOSED>
__device__ __forceinline__ void load(FragmentB<float>& b, const float* at, int stride) {
    const int lane = lane_of(threadIdx.x), g = lane / 4, t = lane % 4;
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int column = 8 * n + g, inner = 8 * s + t + 4 * i;
                split(at[TRANSPOSED ? column * stride + inner : inner * stride + column],
                      b.high[s][n][i], b.low[s][n][i]);
            }
}

// a block of 16 x 16: two tiles of the tensor core side by side
using Block = float[2][4];

template <class T>
__device__ __forceinline__ void multiply(Block& d, const FragmentA<T>& a, const FragmentB<T>& b) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const uint32_t column[2] = {b.r[2 * n], b.r[2 * n + 1]};
        mma_k16<T>(d[n], a.r, column);
    }
}
__device__ __forceinline__ void multiply(Block& d, const FragmentA<float>& a, const FragmentB<float>& b) {
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
        for (int n = 0; n < 2; n++) {
            mma_k8(d[n], a.low[s], b.high[s][n]);
            mma_k8(d[n], a.high[s], b.low[s][n]);
            mma_k8(d[n], a.high[s], b.high[s][n]);
        }
}

template <int N> __device__ __forceinline__ void clear(Block (&d)[N]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 8; i++) d[n][i / 4][i % 4] = 0.0f;
}

// d[n] += A B for the column blocks first, first + step, ... below `blocks`; `from` and `to` bound
// the inner dimension. A is 16 rows (stored inner first if TA), B is stored columns first if TB.
template <bool TA, bool TB, class T, int N>
__device__ __forceinline__ void product(Block (&d)[N], const T* a, int a_stride, const T* b, int b_stride,
                                        int from, int to, int first, int step, int blocks) {
    for (int k = from; k < to; k += 16) {
        FragmentA<T> fa;
        load<TA>(fa, a + (TA ? k * a_stride : k), a_stride);
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int column = 16 * (first + n * step);
            if (first + n * step >= blocks) break;
            FragmentB<T> fb;
            load<TB>(fb, b + (TB ? column * b_stride + k : k * b_stride + column), b_stride);
            multiply(d[n], fa, fb);
        }
    }
}

// calls f(row, column, value) for what this lane holds of a block
template <class F> __device__ __forceinline__ void each(Block& d, F f) {
    const int lane = lane_of(threadIdx.x);
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) f(lane / 4 + i / 2 * 8, 8 * n + lane % 4 * 2 + i % 2, d[n][i]);
}

// the sum of x over the four lanes that hold a row
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Starts the copy of a tile: `rows` x `columns` numbers (columns: a multiple of 16) of which the
// first given_rows x given_columns exist, the others become zero. `vector`: rows begin at multiples
// of 16 bytes, and so many numbers are given. To be committed and waited for as cp.async is.
template <class T>
__device__ __forceinline__ void load_tile(T* to, int stride, const T* from, int64_t pitch, int rows,
                                          int columns, int64_t given_rows, int64_t given_columns, bool vector) {
    if (vector) {
        const unsigned parts = unsigned(columns) / PAD<T>;
        for (unsigned i = threadIdx.x; i < unsigned(rows) * parts; i += blockDim.x) {
            const unsigned r = i / parts, c = (i - r * parts) * PAD<T>;
            const bool is = r < given_rows && c < given_columns;
            cp_async<16>(to + r * stride + c, is ? from + r * pitch + c : from, is ? 16 : 0);
        }
    } else {
        for (unsigned i = threadIdx.x; i < unsigned(rows * columns); i += blockDim.x) {
            const unsigned r = i / columns, c = i - r * columns;
            const bool is = r < given_rows && c < given_columns;
            to[r * stride + c] = is ? from[r * pitch + c] : from_float<T>(0.0f);
        }
    }
}
