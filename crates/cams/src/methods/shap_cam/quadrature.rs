//! The integral over the share of players present, by Gauss and Kronrod's pair of rules: the seven nodes of Gauss's lie
//! among the fifteen of Kronrod's, so that the difference of the two, which tells how far either can be trusted, costs
//! nothing. Nodes and weights as in QUADPACK's QK15 (Piessens et al. 1983).

/// A node on [0, 1].
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Where.
    pub t: f64,
    /// Kronrod's weight.
    pub weight: f64,
    /// Gauss's, 0 at the nodes it does not have.
    pub coarse: f64,
}

/// On [-1, 1]: the nodes that are not negative, Kronrod's weights and Gauss's.
const HALF: [(f64, f64, f64); 8] = [
    (0.991_455_371_120_812_6, 0.022_935_322_010_529_224, 0.0),
    (0.949_107_912_342_758_5, 0.063_092_092_629_978_56, 0.129_484_966_168_869_7),
    (0.864_864_423_359_769_1, 0.104_790_010_322_250_18, 0.0),
    (0.741_531_185_599_394_4, 0.140_653_259_715_525_92, 0.279_705_391_489_276_66),
    (0.586_087_235_467_691_1, 0.169_004_726_639_267_9, 0.0),
    (0.405_845_151_377_397_2, 0.190_350_578_064_785_4, 0.381_830_050_505_118_9),
    (0.207_784_955_007_898_47, 0.204_432_940_075_298_9, 0.0),
    (0.0, 0.209_482_141_084_727_82, 0.417_959_183_673_469_4),
];

/// Each node up to the middle, and the one that lies opposite.
pub fn pairs() -> impl Iterator<Item = (Node, Option<Node>)> {
    HALF.iter().map(|&(x, weight, coarse)| {
        let node = |x: f64| Node { t: 0.5 + 0.5 * x, weight: 0.5 * weight, coarse: 0.5 * coarse };
        (node(-x), (x > 0.0).then(|| node(x)))
    })
}

/// Every node.
pub fn nodes() -> impl Iterator<Item = Node> {
    pairs().flat_map(|(node, opposite)| std::iter::once(node).chain(opposite))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gauss's rule is exact to degree 13, Kronrod's to degree 22, and not beyond.
    #[test]
    fn degrees() {
        // On [-1, 1], where odd powers vanish and even ones are larger.
        let off = |weight: fn(&Node) -> f64, degree: i32| {
            let exact = if degree % 2 == 0 { 1.0 / f64::from(degree + 1) } else { 0.0 };
            (nodes().map(|n| weight(&n) * (2.0 * n.t - 1.0).powi(degree)).sum::<f64>() - exact).abs()
        };
        assert_eq!(nodes().count(), 15);
        (0..=22).for_each(|d| assert!(off(|n| n.weight, d) < 1e-15, "{d}: {:.1e}", off(|n| n.weight, d)));
        (0..=13).for_each(|d| assert!(off(|n| n.coarse, d) < 1e-15, "{d}: {:.1e}", off(|n| n.coarse, d)));
        assert!(off(|n| n.coarse, 14) > 1e-9 && off(|n| n.weight, 24) > 1e-12, "{:.1e}", off(|n| n.weight, 24));
    }
}
