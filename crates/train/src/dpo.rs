//! Direct preference optimization: the loss of a pair from four sums of log-probabilities.
//!
//! `L = −log σ(β·m)` with the margin `m = (π⁺ − ref⁺) − (π⁻ − ref⁻)`: exactly ln 2 where policy and
//! reference agree, whatever β. `∂L/∂m = −β·σ(−β·m)`.
//!
//! Source: Rafailov et al. 2023.

/// Log-probabilities of an answer, summed over its tokens, under policy and reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Logps {
    /// Under the model that is trained.
    pub policy: f64,
    /// Under the model that it started from.
    pub reference: f64,
}

/// Loss of a pair and its slope along the margin.
#[must_use]
pub fn dpo_loss(beta: f64, chosen: Logps, rejected: Logps) -> (f64, f64) {
    let margin = (chosen.policy - chosen.reference) - (rejected.policy - rejected.reference);
    let x = beta * margin;
    // −log σ(x) = ln(1 + e^−x), without overflow.
    let loss = (-x).max(0.0) + (-x.abs()).exp().ln_1p();
    (loss, -beta / (1.0 + x.exp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_at_ln_2_and_its_slope_is_the_derivative() {
        let logps = |policy| Logps { policy, reference: -7.5 };
        assert_eq!(dpo_loss(0.1, logps(-7.5), logps(-7.5)).0, std::f64::consts::LN_2);
        let at = |m: f64| dpo_loss(0.3, logps(m), logps(-7.5));
        for m in [-900.0, -8.0, 0.0, 3.0, 900.0] {
            let h = 1e-6;
            let slope = (at(m + h).0 - at(m - h).0) / (2.0 * h);
            assert!((at(m).1 - slope).abs() < 1e-7, "{m}: {} {slope}", at(m).1);
        }
    }
}
