// Root-mean-square norm of rows; see rms_norm.rs.

struct RmsNormArgs {
    const float* x;       // [rows, width]
    const float* weight;  // [width]
    void* out;            // [rows, stride], T; columns from `width` on become zero
    u32 width;
    u32 stride;
    float eps;
};

// One block a row.
template <class T> __device__ void rms_norm(const RmsNormArgs& a) {
    __shared__ float scratch[32];
    const float* x = a.x + (u64)blockIdx.x * a.width;
    T* out = (T*)a.out + (u64)blockIdx.x * a.stride;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < a.width; i += blockDim.x) sum = fmaf(x[i], x[i], sum);
    float scale = rsqrtf(block_sum(sum, scratch) / (float)a.width + a.eps);
    for (u32 i = threadIdx.x; i < a.stride; i += blockDim.x)
        out[i] = from_float<T>(i < a.width ? x[i] * scale * a.weight[i] : 0.0f);
}

KERNEL(rms_norm_f32, 256, RmsNormArgs, rms_norm<float>)
KERNEL(rms_norm_bf16, 256, RmsNormArgs, rms_norm<bf16>)
