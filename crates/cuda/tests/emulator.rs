//! The emulated device keeps its own promises.

#[allow(dead_code)]
mod emulated;

use std::process::Command;

#[test]
fn the_self_test_passes() {
    let Some(out) = emulated::build() else { return };
    let run = Command::new(out.join("selftest")).arg(&out).output().unwrap();
    let said = [&run.stdout[..], &run.stderr].concat();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&said));
}
