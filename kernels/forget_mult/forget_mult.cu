// A running mean with a weight for each token on a GPU: c = f z + (1 - f) c; equations in README.md.
//
// One block: 32 neighbouring units of one sequence, a lane each, so that a warp's loads are of
// neighbouring addresses. Its WARPS warps share out time: each holds TOKENS consecutive tokens in
// registers, sums them up as c -> keep c + add, and starts from what the warps before it sum up to,
// so every number is read and written once and WARPS * TOKENS tokens are on their way at a time.
// Shared memory: 2 * 2 * WARPS * 32 floats = 4 KB.
#include "device.cuh"

namespace {

constexpr int LANES = 32, WARPS = 8, TOKENS = 8, STEP = WARPS * TOKENS;

// What a run of tokens does to c.
struct Fold {
    float keep, add;
    __device__ float operator()(float c) const { return keep * c + add; }
};

// Exchanges the warps' folds, one column a lane.
struct Exchange {
    float *keep, *add;
    int lane, warp;

    // c as this warp's tokens find it; `c`, as the block's tokens find it, moves on behind them.
    // Buffers take turns, so one barrier a step is enough.
    __device__ float start(Fold mine, float& c, int64_t turn) {
        int at = static_cast<int>(turn % 2) * WARPS * LANES + lane;
        keep[at + warp * LANES] = mine.keep;
        add[at + warp * LANES] = mine.add;
        __syncthreads();
        float found = c;
        for (int w = 0; w < WARPS; w++) {
            if (w == warp) found = c;
            c = Fold{keep[at + w * LANES], add[at + w * LANES]}(c);
        }
        return found;
    }
};

template <class T, class State>
__global__ void __launch_bounds__(LANES * WARPS)
forward(const T* f, const T* z, const State* state, T* y, State* last, int64_t length, int64_t units) {
    SHARED_ARRAY(float, keep, 2 * WARPS * LANES);
    SHARED_ARRAY(float, add, 2 * WARPS * LANES);
    Exchange exchange{keep, add, static_cast<int>(threadIdx.x), static_cast<int>(threadIdx.y)};
    int64_t panels = ceil_div(units, LANES), b = blockIdx.x / panels;
    int64_t u = blockIdx.x % panels * LANES + threadIdx.x;
    bool inside = u < units;
    float c = inside ? to_float(state[b * units + u]) : 0;
    for (int64_t first = 0; first < length; first += STEP) {
        int64_t t = first + exchange.warp * TOKENS;
        const int64_t at = (b * length + t) * units + u;
        float f_[TOKENS], z_[TOKENS];
        #pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            bool there = inside && t + i < length;
            f_[i] = there ? to_float(f[at + i * units]) : 0;
            z_[i] = there ? to_float(z[at + i * units]) : 0;
        }
        Fold fold{1, 0};
        #pragma unroll
        for (int i = 0; i < TOKENS; i++) fold = {fold.keep * (1 - f_[i]), fold.add * (1 - f_[i]) + f_[i] * z_[i]};
        float running = exchange.start(fold, c, first / STEP);
        #pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            running = running * (1 - f_[i]) + f_[i] * z_[i];
            if (inside && t + i < length) y[at + i * units] = from_float<T>(running);
        }
    }
    if (inside && exchange.warp == 0) last[b * units + u] = from_float<State>(c);
}

// Backwards over tokens, with h the gradient that c_t gets from the tokens after it:
// g = gy + h; dz = f g; df = (z - c_{t-1}) g; h of token t - 1 is (1 - f) g.
template <class T, class State>
__global__ void __launch_bounds__(LANES * WARPS)
backward(const T* gy, const State* glast, const T* f, const T* z, const T* y, const State* state,
         T* df, T* dz, State* dstate, int64_t length, int64_t units) {
    SHARED_ARRAY(float, keep, 2 * WARPS * LANES);
    SHARED_ARRAY(float, add, 2 * WARPS * LANES);
    Exchange exchange{keep, add, static_cast<int>(threadIdx.x), static_cast<int>(threadIdx.y)};
    int64_t panels = ceil_div(units, LANES), b = blockIdx.x / panels;
    int64_t u = blockIdx.x % panels * LANES + threadIdx.x;
    bool inside = u < units;
    float before = inside ? to_float(state[b * units + u]) : 0;
    float h = inside ? to_float(glast[b * units + u]) : 0;
    for (int64_t first = 0; first < length; first += STEP) {
        // the last token comes first
        int64_t t = length - 1 - first - exchange.warp * TOKENS;
        const int64_t at = (b * length + t) * units + u;
        float f_[TOKENS], gy_[TOKENS], z_[TOKENS], c_[TOKENS];
        #pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            bool there = inside && t - i >= 0;
            f_[i] = there ? to_float(f[at - i * units]) : 0;
            gy_[i] = there ? to_float(gy[at - i * units]) : 0;
            z_[i] = there ? to_float(z[at - i * units]) : 0;
            c_[i] = there && t - i > 0 ? to_float(y[at - (i + 1) * units]) : before;
        }
        Fold fold{1, 0};
        #pragma unroll
        for (int i = 0; i < TOKENS; i++) fold = {fold.keep * (1 - f_[i]), (fold.add + gy_[i]) * (1 - f_[i])};
        float running = exchange.start(fold, h, first / STEP);
        #pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            float g = running + gy_[i];
            running = g * (1 - f_[i]);
            if (inside && t - i >= 0) {
                dz[at - i * units] = from_float<T>(g * f_[i]);
                df[at - i * units] = from_float<T>(g * (z_[i] - c_[i]));
            }
        }
    }
    if (inside && exchange.warp == 0) dstate[b * units + u] = from_float<State>(h);
}

dim3 blocks(int64_t batch, int64_t units) { return dim3(static_cast<unsigned>(batch * ceil_div(units, LANES))); }

template <class T, class State>
const char* start_forward(const void* f, const void* z, const void* state, void* y, void* last, int64_t batch,
                          int64_t length, int64_t units, cudaStream_t stream) {
    return launch(forward<T, State>, blocks(batch, units), dim3(LANES, WARPS), 0, stream,
                  static_cast<const T*>(f), static_cast<const T*>(z), static_cast<const State*>(state),
                  static_cast<T*>(y), static_cast<State*>(last), length, units);
}

template <class T, class State>
const char* start_backward(const void* gy, const void* glast, const void* f, const void* z, const void* y,
                           const void* state, void* df, void* dz, void* dstate, int64_t batch, int64_t length,
                           int64_t units, cudaStream_t stream) {
    return launch(backward<T, State>, blocks(batch, units), dim3(LANES, WARPS), 0, stream,
                  static_cast<const T*>(gy), static_cast<const State*>(glast), static_cast<const T*>(f),
                  static_cast<const T*>(z), static_cast<const T*>(y), static_cast<const State*>(state),
                  static_cast<T*>(df), static_cast<T*>(dz), static_cast<State*>(dstate), length, units);
}

// One of three functions by the types of the tensors and of the state; null: no such pair.
template <class Function>
Function by_types(int64_t type, int64_t state_type, Function floats, Function mixed, Function halves) {
    if (type == FLOAT32 && state_type == FLOAT32) return floats;
    if (type == BFLOAT16) return state_type == FLOAT32 ? mixed : state_type == BFLOAT16 ? halves : nullptr;
    return nullptr;
}

constexpr const char* OTHER_TYPES =
    "forget_mult: expected float32, or bfloat16 with a state of bfloat16 or float32";

}  // namespace

// All tensors contiguous: (batch, length, units) of one type, states (batch, units) of the same or float32.
extern "C" const char* forget_mult_cuda_forward(const void* f, const void* z, const void* state, void* y,
                                                void* last, int64_t type, int64_t state_type, int64_t batch,
                                                int64_t length, int64_t units, cudaStream_t stream) {
    auto start = by_types(type, state_type, start_forward<float, float>, start_forward<bf16, float>,
                          start_forward<bf16, bf16>);
    return start ? start(f, z, state, y, last, batch, length, units, stream) : OTHER_TYPES;
}

extern "C" const char* forget_mult_cuda_backward(const void* gy, const void* glast, const void* f,
                                                 const void* z, const void* y, const void* state, void* df,
                                                 void* dz, void* dstate, int64_t type, int64_t state_type,
                                                 int64_t batch, int64_t length, int64_t units,
                                                 cudaStream_t stream) {
    auto start = by_types(type, state_type, start_backward<float, float>, start_backward<bf16, float>,
                          start_backward<bf16, bf16>);
    return start ? start(gy, glast, f, z, y, state, df, dz, dstate, batch, length, units, stream) : OTHER_TYPES;
}
