//! Why a GPU cannot be used, or stopped being used.

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The feature `cuda` was left out.
    #[error("this program was built without CUDA; build it with the feature `cuda`")]
    NotBuilt,
    /// The driver's library is not installed.
    #[error("no NVIDIA driver: libcuda cannot be loaded; install the driver, or use --device cpu")]
    NoDriver,
    /// The run-time compiler's library is not installed.
    #[error(
        "libnvrtc cannot be loaded: the kernels are compiled for the device at its first use; \
         install the CUDA runtime libraries, or use --device cpu"
    )]
    NoCompiler,
    /// The driver sees fewer devices.
    #[error("no device cuda:{ordinal}: the driver sees {count}")]
    NoDevice {
        /// As asked for.
        ordinal: usize,
        /// Devices there are.
        count: usize,
    },
    /// Tensor cores with bf16 came with compute capability 8.0.
    #[error("{name} has compute capability {major}.{minor}; 8.0 or later is needed")]
    Capability {
        /// The device.
        name: String,
        /// Major version.
        major: u32,
        /// Minor version.
        minor: u32,
    },
    /// The device's memory is full.
    #[error("out of device memory: {bytes} bytes asked for, {free} of {total} bytes free")]
    OutOfMemory {
        /// Asked for.
        bytes: u64,
        /// Free when it was asked for.
        free: u64,
        /// Of the device.
        total: u64,
    },
    /// A call of the driver failed.
    #[error("{call}: {error}")]
    Driver {
        /// The call.
        call: &'static str,
        /// The driver's name for what happened.
        error: String,
    },
    /// The kernels do not compile for the device.
    #[error("the kernels do not compile for {architecture}:\n{log}")]
    Compile {
        /// As sm_90.
        architecture: String,
        /// The compiler's output.
        log: String,
    },
}
