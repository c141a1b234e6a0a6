//! The kernels' source, and its compilation for one architecture with NVRTC.
//!
//! Compiled code is kept in a folder under a name that is the hash of everything it was made from
//! (source, architecture, options, compiler version), so it is never stale; files end with a hash
//! of what they hold, and one that is damaged or cannot be read or written only costs the
//! compilation again.

use crate::error::CudaError;
use cudarc::nvrtc::{result, sys};
use std::ffi::{CString, c_char, c_int};
use std::io::Write;
use std::path::Path;

macro_rules! sources {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!($name))),*] };
}

/// What all kernels stand on, then the ops; a file may use what an earlier one declares.
const SOURCES: &[(&str, &str)] = sources![
    "device.cuh",
    "ops/embedding.cu",
    "ops/rms_norm.cu",
    "ops/rms_norm_gated.cu",
    "ops/matmul.cu",
    "ops/matmul_f32.cu",
    "ops/causal_conv1d.cu",
    "ops/selective_state_update.cu",
    "ops/ssd.cu",
    "ops/kv_append.cu",
    "ops/attention_decode.cu",
    "ops/attention_prefill.cu",
    "ops/sample.cu",
    "ops/limits.cu",
];

/// The one translation unit that holds every kernel; messages of a compiler name the files.
#[must_use]
pub fn kernel_sources() -> String {
    SOURCES.iter().map(|(name, text)| format!("#line 1 \"{name}\"\n{text}\n")).collect()
}

/// Machine code of all kernels for `architecture` (as `sm_90`), from the folder `cache` where it
/// was compiled before, and the compiler's messages (none if it was).
///
/// # Errors
/// No compiler, or what it says about the source.
pub fn compile(
    architecture: &str,
    options: &[&str],
    cache: Option<&Path>,
) -> Result<(Vec<u8>, String), CudaError> {
    // SAFETY: looks for the library by name; NVRTC's initializers have no preconditions.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoCompiler);
    }
    let source = kernel_sources();
    let target = format!("--gpu-architecture={architecture}");
    // Products and sums are fused where the source says so and nowhere else: two copies of a formula
    // have the same bits.
    let mut all = vec![target.as_str(), "--std=c++17", "--fmad=false"];
    all.extend(options);
    let kept = cache.map(|dir| dir.join(format!("{}.cubin", key(&source, &all))));
    if let Some(code) = kept.as_deref().and_then(kept_code) {
        return Ok((code, String::new()));
    }
    let (code, log) = run(&source, &all, architecture)?;
    if let Some(path) = kept {
        // Without the file the next start compiles again; nothing else depends on it.
        let _ = keep(&path, &code);
    }
    Ok((code, log))
}

/// The name of what these inputs give.
fn key(source: &str, options: &[&str]) -> String {
    let (mut major, mut minor): (c_int, c_int) = (0, 0);
    // SAFETY: both pointers are to live integers. A failure leaves zeros: still a valid name.
    let _ = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    let inputs = format!("nvrtc {major}.{minor}\n{}\n{source}", options.join(" "));
    blake3::hash(inputs.as_bytes()).to_hex()[..32].to_owned()
}

fn keep(path: &Path, code: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().expect("a file in a folder");
    std::fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(code)?;
    file.write_all(blake3::hash(code).as_bytes())?;
    file.persist(path)?;
    Ok(())
}

/// What [`keep`] wrote, if it is whole.
fn kept_code(path: &Path) -> Option<Vec<u8>> {
    let mut code = std::fs::read(path).ok()?;
    let hash = code.split_off(code.len().checked_sub(blake3::OUT_LEN)?);
    (blake3::hash(&code).as_bytes()[..] == hash[..]).then_some(code)
}

/// Compiles; the program is freed whatever happens.
fn run(source: &str, options: &[&str], arch: &str) -> Result<(Vec<u8>, String), CudaError> {
    let failed = |call| move |error: result::NvrtcError| driver_error(call, &error);
    let source = CString::new(source).expect("sources hold no zero byte");
    let program =
        result::create_program(&source, Some(c"hybra.cu")).map_err(failed("nvrtcCreateProgram"))?;
    // SAFETY: the program was created above and is destroyed below, after its last use.
    let (compiled, log) =
        unsafe { (result::compile_program(program, options), result::get_program_log(program)) };
    let log = log.map_or_else(|_| String::new(), |log: Vec<c_char>| text(&log));
    let code = compiled.map(|()| code(program));
    // SAFETY: as above; the code was copied.
    let _ = unsafe { result::destroy_program(program) };
    match code {
        Ok(code) => Ok((code.map_err(failed("nvrtcGetCUBIN"))?, log)),
        Err(_) => Err(CudaError::Compile { architecture: arch.to_owned(), log }),
    }
}

/// A copy of the code of a program that was compiled.
fn code(program: sys::nvrtcProgram) -> Result<Vec<u8>, result::NvrtcError> {
    let mut bytes = 0;
    // SAFETY: the program is alive, and the size is written to a live integer.
    unsafe { sys::nvrtcGetCUBINSize(program, &raw mut bytes) }.result()?;
    let mut code = vec![0u8; bytes];
    // SAFETY: as many bytes are written as the call before it said.
    unsafe { sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast::<c_char>()) }.result()?;
    Ok(code)
}

fn text(log: &[c_char]) -> String {
    let bytes: Vec<u8> = log.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn driver_error(call: &'static str, error: &result::NvrtcError) -> CudaError {
    CudaError::Driver { call, error: format!("{error:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_code_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernels/a.cubin");
        assert_eq!(kept_code(&path), None);
        keep(&path, b"code").unwrap();
        assert_eq!(kept_code(&path).unwrap(), b"code");
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(kept_code(&path), None, "{cut} bytes");
        }
        std::fs::write(&path, [b"kode", &whole[4..]].concat()).unwrap();
        assert_eq!(kept_code(&path), None);
    }
}
