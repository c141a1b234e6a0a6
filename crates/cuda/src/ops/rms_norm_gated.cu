// Gated root-mean-square norm by groups of columns: u = y silu(z), out = u w / sqrt(mean(u^2) +
// eps), the mean over each group; see rms_norm.rs.

struct RmsNormGatedArgs {
    const float* y;       // [rows, y_stride]
    const float* z;       // [rows, z_stride]
    const float* weight;  // [groups * width]
    void* out;            // [rows, stride], T; columns from groups * width on become zero
    u32 groups;
    u32 width;
    u32 y_stride;
    u32 z_stride;
    u32 stride;
    float eps;
};

// Values that a thread keeps; those beyond are computed twice.
constexpr u32 RMS_NORM_GATED_KEPT = 8;

// One group of one row a block: grid [rows, groups].
template <class T> __device__ void rms_norm_gated(const RmsNormGatedArgs& a) {
    __shared__ float scratch[32];
    u32 from = blockIdx.y * a.width, kept = RMS_NORM_GATED_KEPT * blockDim.x;
    const float* y = a.y + (u64)blockIdx.x * a.y_stride + from;
    const float* z = a.z + (u64)blockIdx.x * a.z_stride + from;
    const float* weight = a.weight + from;
    T* out = (T*)a.out + (u64)blockIdx.x * a.stride + from;
    float u[RMS_NORM_GATED_KEPT], sum = 0.0f;
#pragma unroll
    for (u32 k = 0; k < RMS_NORM_GATED_KEPT; k++) {
        u32 i = threadIdx.x + k * blockDim.x;
        u[k] = i < a.width ? y[i] * silu(z[i]) : 0.0f;
        sum = fmaf(u[k], u[k], sum);
    }
    for (u32 i = threadIdx.x + kept; i < a.width; i += blockDim.x) {
        float value = y[i] * silu(z[i]);
        sum = fmaf(value, value, sum);
    }
    float scale = rsqrtf(block_sum(sum, scratch) / (float)a.width + a.eps);
#pragma unroll
    for (u32 k = 0; k < RMS_NORM_GATED_KEPT; k++) {
        u32 i = threadIdx.x + k * blockDim.x;
        if (i < a.width) out[i] = from_float<T>(u[k] * scale * weight[i]);
    }
    for (u32 i = threadIdx.x + kept; i < a.width; i += blockDim.x)
        out[i] = from_float<T>(y[i] * silu(z[i]) * scale * weight[i]);
    if (blockIdx.y + 1 == a.groups)
        for (u32 i = from + a.width + threadIdx.x; i < a.stride; i += blockDim.x)
            out[i - from] = from_float<T>(0.0f);
}

KERNEL(rms_norm_gated_f32, 256, RmsNormGatedArgs, rms_norm_gated<float>)
KERNEL(rms_norm_gated_bf16, 256, RmsNormGatedArgs, rms_norm_gated<bf16>)
