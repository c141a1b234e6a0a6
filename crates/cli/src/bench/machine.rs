//! What `bench` knows of the machine and of its own process, as far as the system tells.

use serde::Serialize;
use std::fs;

/// The machine, for readers of a result.
#[derive(Serialize)]
pub(crate) struct Machine {
    /// The model of the CPU; `None` where the system does not say.
    pub(crate) cpu: Option<String>,
    /// Cores that this process may use.
    pub(crate) cores: usize,
    /// Bytes of the largest cache of a core, which other cores may share.
    pub(crate) last_cache_bytes: Option<u64>,
    /// Bytes that new work can take without swapping, as of the start: what is free or can be
    /// freed at once, and no more than the control group allows.
    pub(crate) available_bytes: Option<u64>,
    pub(crate) arch: &'static str,
    pub(crate) os: &'static str,
}

impl Machine {
    /// Asks the system.
    pub(crate) fn detect() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let caches = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").into_iter().flatten();
        let sizes = caches
            .flatten()
            .filter_map(|entry| cache_bytes(&fs::read_to_string(entry.path().join("size")).ok()?));
        Self {
            cpu: cpu_model(&cpuinfo),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            last_cache_bytes: sizes.max(),
            available_bytes: available_bytes(
                &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
                fs::read_to_string("/sys/fs/cgroup/memory.max").ok().as_deref(),
            ),
            arch: std::env::consts::ARCH,
            os: std::env::consts::OS,
        }
    }
}

/// The most memory that this process has had resident at once; `None` where the system has no
/// `/proc/self/status`.
pub(crate) fn peak_resident_bytes() -> Option<u64> {
    high_water_mark(&fs::read_to_string("/proc/self/status").ok()?)
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    field(cpuinfo, "model name").or_else(|| field(cpuinfo, "Model")).map(str::to_owned)
}

/// The first `key : value` line's value.
fn field<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
}

/// `32768K`, as the kernel writes the size of a cache.
fn cache_bytes(text: &str) -> Option<u64> {
    text.trim().strip_suffix('K')?.parse::<u64>().ok()?.checked_mul(1024)
}

fn high_water_mark(status: &str) -> Option<u64> {
    kilobytes(field(status, "VmHWM")?)
}

fn available_bytes(meminfo: &str, group_limit: Option<&str>) -> Option<u64> {
    let available = kilobytes(field(meminfo, "MemAvailable")?)?;
    // Without a limit the file says `max`.
    let limit = group_limit.and_then(|limit| limit.trim().parse().ok());
    Some(available.min(limit.unwrap_or(u64::MAX)))
}

fn kilobytes(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_texts_are_read() {
        let cpuinfo = "processor\t: 0\nmodel\t\t: 2\nmodel name\t: Fast CPU @ 3 GHz\n";
        assert_eq!(cpu_model(cpuinfo).as_deref(), Some("Fast CPU @ 3 GHz"));
        assert_eq!(cpu_model("processor : 0\n"), None);
        assert_eq!(cache_bytes("32768K\n"), Some(32 << 20));
        assert_eq!(cache_bytes("unknown"), None);
        let status = "VmPeak:\t  999999 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n";
        assert_eq!(high_water_mark(status), Some(2 << 20));
        assert_eq!(high_water_mark("VmRSS: 1 kB"), None);
        let meminfo = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:   3000 kB\n";
        assert_eq!(available_bytes(meminfo, Some("max\n")), Some(3000 << 10));
        assert_eq!(available_bytes(meminfo, Some("1048576\n")), Some(1 << 20));
        assert_eq!(available_bytes("", None), None);
    }
}
