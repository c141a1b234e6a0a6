//! Where tests find the reference data: `$HYBRA_SHARED`, else `../shared` beside the project.
//!
//! A test takes this file in with `#[path = "../../../testdata/shared_dir.rs"] mod shared_dir;`
//! and opens with `let Some(dir) = shared("golden/micro") else { return };`. The notice of a
//! skipped test goes to the real stderr, which the test harness does not capture.

use std::{io::Write, path::PathBuf};

/// The folder or file `sub` of the reference data; `None`, with a notice, where the data is absent.
///
/// # Panics
/// Where `sub` is absent although `HYBRA_REQUIRE_SHARED` is set, or the data is there without it.
pub(crate) fn shared(sub: &str) -> Option<PathBuf> {
    let root = std::env::var_os("HYBRA_SHARED").map(PathBuf::from);
    let root =
        root.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared").into());
    let path = root.join(sub);
    if path.exists() {
        return Some(path);
    }
    let required = root.exists() || std::env::var_os("HYBRA_REQUIRE_SHARED").is_some();
    assert!(!required, "reference data is missing: {}", path.display());
    let _ = writeln!(std::io::stderr(), "SKIPPED (no ../shared): {sub} in {}", module_path!());
    None
}
