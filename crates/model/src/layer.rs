//! One layer's configuration: its kind and its widths, and the lengths derived from them.
//!
//! A model is a list of these; layers of one kind may differ in width, because pruning makes
//! them differ. Symbols: h hidden size, H Mamba heads, P Mamba head dim, G groups, N state size,
//! k conv kernel, f FFN width, q / kv attention heads, hd attention head dim.

use crate::error::ConfigError;

/// The three kinds of block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// Mamba-2 state space mixer, letter `M`.
    Mamba2,
    /// Grouped-query attention without positions, letter `*`.
    Attention,
    /// Squared-ReLU MLP without gate, letter `-`.
    Mlp,
}

impl LayerKind {
    /// The letter in `hybrid_override_pattern`.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::Mamba2 => 'M',
            Self::Attention => '*',
            Self::Mlp => '-',
        }
    }

    /// The word in `layers_block_type`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Mamba2 => "mamba",
            Self::Attention => "attention",
            Self::Mlp => "mlp",
        }
    }

    /// Reads one letter or one word; `key` and `index` go into the error.
    pub(crate) fn parse(
        found: &str,
        origin: &str,
        key: &str,
        index: usize,
    ) -> Result<Self, ConfigError> {
        let (origin, key, text) = (origin.to_owned(), key.to_owned(), found.to_owned());
        match found {
            "M" | "mamba" | "linear_attention" => Ok(Self::Mamba2),
            "*" | "attention" | "full_attention" => Ok(Self::Attention),
            "-" | "mlp" => Ok(Self::Mlp),
            "E" | "moe" => Err(ConfigError::MixtureOfExperts { origin, key, index, found: text }),
            _ => Err(ConfigError::UnknownLayerKind { origin, key, index, found: text }),
        }
    }
}

/// Widths of a Mamba-2 layer. Its two projections have no bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mamba2Config {
    /// H.
    pub num_heads: usize,
    /// P.
    pub head_dim: usize,
    /// G; divides H. Head j uses B and C of group ⌊j / (H/G)⌋.
    pub n_groups: usize,
    /// N.
    pub state_size: usize,
    /// k.
    pub conv_kernel: usize,
    /// Whether the convolution has a bias.
    pub use_conv_bias: bool,
}

impl Mamba2Config {
    /// HP, the width of z, x and y.
    #[must_use]
    pub fn d_inner(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// G·N, the width of B and of C.
    #[must_use]
    pub fn groups_width(&self) -> usize {
        self.n_groups * self.state_size
    }

    /// HP + 2GN, the channels of the convolution: `x | B | C`.
    #[must_use]
    pub fn conv_dim(&self) -> usize {
        self.d_inner() + 2 * self.groups_width()
    }

    /// 2HP + 2GN + H, the rows of `in_proj`: `z | x | B | C | dt`.
    #[must_use]
    pub fn in_proj_rows(&self) -> usize {
        self.d_inner() + self.conv_dim() + self.num_heads
    }

    /// HP / G, the values normalized together by the gated norm.
    #[must_use]
    pub fn norm_group_len(&self) -> usize {
        self.d_inner() / self.n_groups
    }
}

/// Widths of an attention layer. Scale is 1/√hd; causal, no positions, no bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionConfig {
    /// q.
    pub num_heads: usize,
    /// kv; divides q.
    pub num_kv_heads: usize,
    /// hd; never derived from the hidden size.
    pub head_dim: usize,
}

impl AttentionConfig {
    /// q·hd, the rows of `q_proj` and columns of `o_proj`.
    #[must_use]
    pub fn q_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// kv·hd, the rows of `k_proj` and of `v_proj`.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}

/// Width of an MLP layer: `down(relu(up(x))²)`, no gate, no bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlpConfig {
    /// f.
    pub intermediate_size: usize,
}

/// One block: kind and widths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerConfig {
    /// A Mamba-2 block.
    Mamba2(Mamba2Config),
    /// An attention block.
    Attention(AttentionConfig),
    /// An MLP block.
    Mlp(MlpConfig),
}

impl LayerConfig {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> LayerKind {
        match self {
            Self::Mamba2(_) => LayerKind::Mamba2,
            Self::Attention(_) => LayerKind::Attention,
            Self::Mlp(_) => LayerKind::Mlp,
        }
    }

    /// Its widths if it is a Mamba-2 block.
    #[must_use]
    pub fn as_mamba2(&self) -> Option<&Mamba2Config> {
        if let Self::Mamba2(mamba) = self { Some(mamba) } else { None }
    }

    /// Its widths if it is an attention block.
    #[must_use]
    pub fn as_attention(&self) -> Option<&AttentionConfig> {
        if let Self::Attention(attention) = self { Some(attention) } else { None }
    }

    /// Its width if it is an MLP block.
    #[must_use]
    pub fn as_mlp(&self) -> Option<&MlpConfig> {
        if let Self::Mlp(mlp) = self { Some(mlp) } else { None }
    }
}

/// One width of each kind, to be repeated along a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerWidths {
    /// For every `M`.
    pub mamba: Mamba2Config,
    /// For every `*`.
    pub attention: AttentionConfig,
    /// For every `-`.
    pub mlp: MlpConfig,
}

/// The layers of a pattern string, all layers of one kind alike.
///
/// # Errors
/// A letter other than `M`, `*` and `-`, named with its index.
pub fn layers_from_pattern(
    pattern: &str,
    widths: &LayerWidths,
) -> Result<Vec<LayerConfig>, ConfigError> {
    let kinds = parse_pattern(pattern, "pattern", "hybrid_override_pattern")?;
    Ok(kinds
        .into_iter()
        .map(|kind| match kind {
            LayerKind::Mamba2 => LayerConfig::Mamba2(widths.mamba),
            LayerKind::Attention => LayerConfig::Attention(widths.attention),
            LayerKind::Mlp => LayerConfig::Mlp(widths.mlp),
        })
        .collect())
}

/// The kinds of a pattern string.
pub(crate) fn parse_pattern(
    pattern: &str,
    origin: &str,
    key: &str,
) -> Result<Vec<LayerKind>, ConfigError> {
    let letter = |(index, c): (usize, char)| {
        LayerKind::parse(c.encode_utf8(&mut [0; 4]), origin, key, index)
    };
    pattern.chars().enumerate().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_of_the_9b() {
        let m = Mamba2Config {
            num_heads: 128,
            head_dim: 80,
            n_groups: 8,
            state_size: 128,
            conv_kernel: 4,
            use_conv_bias: true,
        };
        assert_eq!(m.d_inner(), 10240);
        assert_eq!(m.conv_dim(), 12288);
        assert_eq!(m.in_proj_rows(), 22656);
        assert_eq!(m.norm_group_len(), 1280);
    }

    #[test]
    fn letters_and_words_read_back() {
        for kind in [LayerKind::Mamba2, LayerKind::Attention, LayerKind::Mlp] {
            let letter = kind.letter().to_string();
            assert_eq!(LayerKind::parse(&letter, "o", "k", 0).unwrap(), kind);
            assert_eq!(LayerKind::parse(kind.word(), "o", "k", 0).unwrap(), kind);
        }
    }

    #[test]
    fn a_pattern_error_names_index_and_letter() {
        let e = parse_pattern("M-E", "f", "p").unwrap_err();
        assert_eq!(
            e.to_string(),
            "f: `p`: layer 2 is `E`, a mixture of experts: not supported yet"
        );
        let e = parse_pattern("M|*", "f", "p").unwrap_err();
        assert!(e.to_string().contains("layer 1 has unknown kind `|`"), "{e}");
    }
}
