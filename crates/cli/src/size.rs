//! Sizes, counts and rates as people write and read them.
//!
//! Reading: bytes take `KiB`, `MiB`, `GiB`, `TiB` and the bare letters `K`, `M`, `G`, `T` as
//! powers of 1024, and `kB`, `MB`, `GB`, `TB` as powers of 1000 (as coreutils do); numbers of
//! tokens take `k` and `M` as 1024 and 1024², because context lengths are powers of two (`128k`
//! is 131,072). Fractions and exponents are allowed. Printing: bytes in powers of 1024, counts
//! with thousands separators.

use std::time::Duration;

const BYTE_UNITS: [(&str, f64); 14] = [
    ("", 1.0),
    ("b", 1.0),
    ("k", 1024.0),
    ("kib", 1024.0),
    ("kb", 1e3),
    ("m", 1_048_576.0),
    ("mib", 1_048_576.0),
    ("mb", 1e6),
    ("g", 1_073_741_824.0),
    ("gib", 1_073_741_824.0),
    ("gb", 1e9),
    ("t", 1_099_511_627_776.0),
    ("tib", 1_099_511_627_776.0),
    ("tb", 1e12),
];

const TOKEN_UNITS: [(&str, f64); 3] = [("", 1.0), ("k", 1024.0), ("m", 1_048_576.0)];

/// Largest number that is exact on the way through `f64`.
const MAX: f64 = 9_007_199_254_740_992.0;

/// Bytes, such as `19.66GiB`, `22G`, `512MiB` or `8e9`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    parse(text, &BYTE_UNITS)
        .ok_or_else(|| format!("expected a size such as 19.66GiB, 22G or 8e9, found {text:?}"))
}

/// A number of tokens, at least 1, such as `4096`, `128k` or `1M`.
pub(crate) fn parse_tokens(text: &str) -> Result<u64, String> {
    parse(text, &TOKEN_UNITS)
        .filter(|&tokens| tokens > 0)
        .ok_or_else(|| format!("expected a number of tokens such as 4096 or 128k, found {text:?}"))
}

/// A number and one of the units (compared in lower case), rounded to a whole.
fn parse(text: &str, units: &[(&str, f64)]) -> Option<u64> {
    let text = text.trim().to_lowercase();
    let is_unit = |c: char| c.is_alphabetic();
    // An exponent's `e` is followed by a digit or a sign; no unit begins with `e`.
    let end = text.char_indices().find(|&(at, c)| is_unit(c) && !(c == 'e' && at > 0));
    let (number, unit) = text.split_at(end.map_or(text.len(), |(at, _)| at));
    let factor = units.iter().find(|(name, _)| *name == unit.trim())?.1;
    let value = number.trim().parse::<f64>().ok()? * factor;
    (value.is_finite() && (0.0..=MAX).contains(&value)).then(|| value.round() as u64)
}

/// `16.56 GiB`, `138.80 MiB`, `16.00 KiB`, `12 B`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.995 would print as 1024.00.
    while value >= 1023.995 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

/// `8,888,227,328`.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `8.89 B`, `555.0 M`, `312.4 K` parameters: three or four digits are enough to recognise a size.
pub(crate) fn short_count(count: u64) -> String {
    let value = count as f64;
    match count {
        1_000_000_000.. => format!("{:.2} B", value / 1e9),
        1_000_000.. => format!("{:.1} M", value / 1e6),
        1_000.. => format!("{:.1} K", value / 1e3),
        _ => count.to_string(),
    }
}

/// `4.2 s`, `310 ms`, `2 min 5 s`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        s if s < 59.95 => format!("{s:.1} s"),
        s => format!("{} min {:.0} s", (s.round() as u64) / 60, s.round() as u64 % 60),
    }
}

/// `1.21 GiB/s`.
pub(crate) fn byte_rate(amount: u64, time: Duration) -> String {
    let rate = amount as f64 / time.as_secs_f64().max(1e-9);
    format!("{}/s", bytes(rate as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_binary_and_decimal_units() {
        let gib = 1u64 << 30;
        let cases = [
            ("0", 0),
            ("8e9", 8_000_000_000),
            ("1.5e+3", 1500),
            ("512MiB", 512 << 20),
            ("512 mib", 512 << 20),
            ("22G", 22 * gib),
            ("22GB", 22_000_000_000),
            ("19.66GiB", (19.66 * gib as f64).round() as u64),
            ("1e1KiB", 10 << 10),
            ("16k", 16 << 10),
            ("2TiB", 2 << 40),
        ];
        for (text, want) in cases {
            assert_eq!(parse_bytes(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn tokens_are_read_in_powers_of_two() {
        assert_eq!(parse_tokens("128k"), Ok(131_072));
        assert_eq!(parse_tokens("1M"), Ok(1 << 20));
        assert_eq!(parse_tokens("4096"), Ok(4096));
        for bad in ["0", "", "k", "12G", "-1", "1e400", "nan", "inf", "e5", "1 2"] {
            assert!(parse_tokens(bad).is_err(), "{bad}");
        }
        for bad in ["", "GiB", "-1G", "12XB", "1e30", "0x10"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_are_printed_for_reading() {
        assert_eq!(bytes(17_776_454_656), "16.56 GiB");
        assert_eq!(bytes(16_384), "16.00 KiB");
        assert_eq!(bytes(1_048_575), "1.00 MiB");
        assert_eq!(bytes(12), "12 B");
        assert_eq!(count(8_888_227_328), "8,888,227,328");
        assert_eq!(count(100), "100");
        assert_eq!(count(1000), "1,000");
        assert_eq!(short_count(8_888_227_328), "8.89 B");
        assert_eq!(short_count(12_000), "12.0 K");
        assert_eq!(duration(Duration::from_millis(310)), "310 ms");
        assert_eq!(duration(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(byte_rate(3 << 30, Duration::from_secs(2)), "1.50 GiB/s");
    }
}
