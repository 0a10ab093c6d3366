// DPFP features on a GPU, divided by their sum if asked: with y = [relu(x), relu(-x)] of width 2 K,
// feature (i, m) is y_m y_{m-i} for shifts i = 1..nu (indices modulo 2 K); equations in README.md.
//
// One warp: one head of one token. It keeps y in shared memory and makes each shift's 2 K features from
// it, in 4-byte pieces side by side, so neither y nor unnormalised features ever reach the GPU's memory.
// Shared memory of a block, in float32: forward WARPS * 2 K, backward WARPS * (2 + staged) * 2 K.
#include <cfloat>

#include "device.cuh"

namespace {

constexpr int WARPS = 4;

// numbers of a 4-byte access
template <class T> constexpr int PIECE = 4 / sizeof(T);

template <class T> struct alignas(4) Piece {
    T at[PIECE<T>];
};

// index m - i, of those from 0 to width - 1, for |i| < width
__device__ __forceinline__ int around(int m, int width) { return m < 0 ? m + width : m >= width ? m - width : m; }

template <class T> __device__ __forceinline__ void rectify(const T* x, float* y, int K) {
    for (int k = threadIdx.x; k < K; k += 32) {
        // fmaxf would make a number of NaN
        const float value = to_float(x[k]);
        y[k] = value <= 0 ? 0 : value, y[K + k] = value >= 0 ? 0 : -value;
    }
    __syncwarp();
}

template <class T>
__global__ void __launch_bounds__(32 * WARPS)
forward(const T* x, T* features, int64_t rows, int K, int nu, bool normalise) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.y;
    if (row >= rows) return;
    const int width = 2 * K;
    float* y = dynamic_shared<float>() + threadIdx.y * width;
    rectify(x + row * K, y, K);
    float sum = normalise ? 0 : 1;
    if (normalise) {
        for (int m = threadIdx.x; m < width; m += 32)
            for (int i = 1; i <= nu; i++) sum += y[m] * y[around(m - i, width)];
        sum = warp_sum(sum);
        if (sum == 0) sum = 1;
    }
    // a sum below the normal numbers may have no reciprocal
    const bool divide = sum < FLT_MIN;
    const float scale = 1 / sum;
    T* out = features + row * nu * width;
    for (int i = 1; i <= nu; i++, out += width)
        for (int m = threadIdx.x * PIECE<T>; m < width; m += 32 * PIECE<T>) {
            Piece<T> piece;
            #pragma unroll
            for (int c = 0; c < PIECE<T>; c++) {
                const float feature = y[m + c] * y[around(m + c - i, width)];
                piece.at[c] = from_float<T>(divide ? feature / sum : feature * scale);
            }
            *reinterpret_cast<Piece<T>*>(out + m) = piece;
        }
}

// The gradients g of so many shifts as fit, in float32, where all lanes of the warp see them.
template <class T> struct Staged {
    const T* g;
    float* at;
    int width, nu, most;

    // calls `each(shift, its gradients)` for every shift, group after group
    template <class Each> __device__ __forceinline__ void for_each(bool read, Each each) const {
        for (int first = 1; first <= nu; first += most) {
            const int shifts = min(most, nu + 1 - first);
            if (read) {
                __syncwarp();
                for (int n = threadIdx.x * PIECE<T>; n < shifts * width; n += 32 * PIECE<T>) {
                    const Piece<T> piece = *reinterpret_cast<const Piece<T>*>(g + (first - 1) * width + n);
                    #pragma unroll
                    for (int c = 0; c < PIECE<T>; c++) at[n + c] = to_float(piece.at[c]);
                }
                __syncwarp();
            }
            for (int n = 0; n < shifts; n++) each(first + n, at + n * width);
        }
    }
};

// With s the sum of features and c = sum g features / s (1 and 0 where they are not divided):
// dy_m = sum_i ((g_{i,m} - c) y_{m-i} + (g_{i,m+i} - c) y_{m+i}) / s.
template <class T>
__global__ void __launch_bounds__(32 * WARPS)
backward(const T* g, const T* x, T* dx, int64_t rows, int K, int nu, bool normalise, int staged) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.y;
    if (row >= rows) return;
    const int width = 2 * K;
    float* y = dynamic_shared<float>() + threadIdx.y * (2 + staged) * width;
    float* dy = y + width;
    const Staged<T> all{g + row * nu * width, dy + width, width, nu, staged};
    rectify(x + row * K, y, K);
    for (int m = threadIdx.x; m < width; m += 32) dy[m] = 0;
    float sum = normalise ? 0 : 1, c = 0;
    if (normalise) {
        float dot = 0;
        all.for_each(true, [&](int i, const float* g_i) {
            for (int m = threadIdx.x; m < width; m += 32) {
                const float feature = y[m] * y[around(m - i, width)];
                sum += feature, dot += g_i[m] * feature;
            }
        });
        sum = warp_sum(sum), dot = warp_sum(dot);
        if (sum == 0) sum = 1;
        else c = dot / sum;
    }
    // what one group holds is still there
    all.for_each(!normalise || staged < nu, [&](int i, const float* g_i) {
        for (int m = threadIdx.x; m < width; m += 32) {
            const int before = around(m - i, width), after = around(m + i, width);
            dy[m] += (g_i[m] - c) * y[before] + (g_i[after] - c) * y[after];
        }
    });
    __syncwarp();
    for (int k = threadIdx.x; k < K; k += 32) {
        const float positive = y[k] <= 0 ? 0 : dy[k], negative = y[K + k] <= 0 ? 0 : dy[K + k];
        dx[row * K + k] = from_float<T>((positive - negative) / sum);
    }
}

// so many shifts' gradients are on their way together: about a thousand numbers to a warp
int64_t staged_shifts(int64_t K, int64_t nu) { return min(nu, max(int64_t{1}, 512 / K)); }

const char* unfit(int64_t rows, int64_t K, int64_t nu) {
    if (rows < 1 || ceil_div(rows, WARPS) > INT32_MAX) return "dpfp: expected 1 to 2^33 - 4 heads of tokens";
    if (K < 1 || K > 512) return "dpfp: expected heads of 1 to 512";
    return nu < 1 || nu >= 2 * K ? "dpfp: expected 1 to 2 K - 1 shifts" : nullptr;
}

dim3 blocks(int64_t rows) { return dim3(static_cast<unsigned>(ceil_div(rows, WARPS))); }

template <class T>
const char* start_forward(const void* x, void* features, int64_t rows, int64_t K, int64_t nu, int64_t normalise,
                          cudaStream_t stream) {
    return launch(forward<T>, blocks(rows), dim3(32, WARPS), sizeof(float) * WARPS * 2 * K, stream,
                  static_cast<const T*>(x), static_cast<T*>(features), rows, static_cast<int>(K),
                  static_cast<int>(nu), normalise != 0);
}

template <class T>
const char* start_backward(const void* g, const void* x, void* dx, int64_t rows, int64_t K, int64_t nu,
                           int64_t normalise, cudaStream_t stream) {
    const int64_t staged = staged_shifts(K, nu);
    return launch(backward<T>, blocks(rows), dim3(32, WARPS), sizeof(float) * WARPS * (2 + staged) * 2 * K, stream,
                  static_cast<const T*>(g), static_cast<const T*>(x), static_cast<T*>(dx), rows,
                  static_cast<int>(K), static_cast<int>(nu), normalise != 0, static_cast<int>(staged));
}

}  // namespace

// Contiguous tensors of one type, float32 or bfloat16: x (rows, K), features (rows, 2 K nu). Features and
// their gradients g begin at multiples of 4 bytes.
extern "C" const char* dpfp_cuda_forward(const void* x, void* features, int64_t type, int64_t rows, int64_t K,
                                         int64_t nu, int64_t normalise, cudaStream_t stream) {
    if (const char* why = unfit(rows, K, nu)) return why;
    auto start = type == FLOAT32 ? start_forward<float> : type == BFLOAT16 ? start_forward<bf16> : nullptr;
    return start ? start(x, features, rows, K, nu, normalise, stream) : "dpfp: expected float32 or bfloat16";
}

extern "C" const char* dpfp_cuda_backward(const void* g, const void* x, void* dx, int64_t type, int64_t rows,
                                          int64_t K, int64_t nu, int64_t normalise, cudaStream_t stream) {
    if (const char* why = unfit(rows, K, nu)) return why;
    auto start = type == FLOAT32 ? start_backward<float> : type == BFLOAT16 ? start_backward<bf16> : nullptr;
    return start ? start(g, x, dx, rows, K, nu, normalise, stream) : "dpfp: expected float32 or bfloat16";
}
