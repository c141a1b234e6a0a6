//! The device that tests run on: the emulated one of `tests/emulator`, or the machine's own GPU
//! where `HYBRA_TEST_GPU` is set. Without a C++ compiler there is none: tests then say so and pass.

use hybra_cuda::Gpu;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The device; `None` where there is no compiler to build the emulator.
pub(crate) fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| {
        if std::env::var_os("HYBRA_TEST_GPU").is_none() {
            let libraries = build()?;
            preload(&libraries.join("libcuda.so.1"));
            preload(&libraries.join("libnvrtc.so.12"));
        }
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator/kernels");
        Some(Gpu::open(0, Some(&cache)).unwrap_or_else(|error| panic!("{error}")))
    })
    .as_ref()
}

/// The emulator's libraries; one process builds them, others wait.
pub(crate) fn build() -> Option<PathBuf> {
    let found = Command::new("c++").arg("--version").output();
    if !cfg!(target_os = "linux") || found.is_err() {
        eprintln!("SKIPPED: the emulated device needs Linux and a C++ compiler (c++)");
        return None;
    }
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
    std::fs::create_dir_all(&out).unwrap();
    let lock = std::fs::File::create(out.join("lock")).unwrap();
    lock.lock().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cuda/tests/emulator/build.sh");
    let built = Command::new("bash").arg(script).arg(&out).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Some(out)
}

/// Loads a library whose name in the file (SONAME) is the one the driver's users ask for: whoever
/// loads that name later gets this one.
pub(crate) fn preload(library: &Path) {
    let path = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: the path is a C string; the library's initializers have no preconditions.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!handle.is_null(), "{} does not load", library.display());
}
