//! Views: view v of image i is a pure function of (data seed, i, v), so what a teacher says about it can
//! be kept.

use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::random::{Purpose, stream};

/// What lies outside the image when it is shifted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// The image, mirrored at its edge.
    #[default]
    Reflect,
    /// Black.
    Zero,
}

/// Random shift, flip and cutout. The default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Shift by up to this many pixels in each direction (pad, then crop).
    pub pad: usize,
    /// What comes in from outside.
    pub padding: Padding,
    /// Mirror left and right with probability 1/2.
    pub flip: bool,
    /// Side of a grey square at a random place (DeVries & Taylor 2017); 0 for none.
    pub cutout: usize,
}

impl Augment {
    /// The usual CIFAR augmentation: reflect-pad 4, crop, flip.
    pub fn standard() -> Self {
        Augment { pad: 4, padding: Padding::Reflect, flip: true, cutout: 0 }
    }

    /// Writes view `view` of image `index` of shape (c, h, w) into `out`.
    pub fn apply(&self, seed: u64, index: u64, view: u64, [c, h, w]: [usize; 3], image: &[u8], out: &mut [u8]) {
        if *self == Augment::default() {
            out.copy_from_slice(image);
            return;
        }
        // A view's stream must not meet another image's: the index takes the upper half of the key.
        let mut rng = stream(seed ^ index.rotate_left(32), Purpose::View, view);
        let (dy, dx) = (rng.random_range(0..=2 * self.pad), rng.random_range(0..=2 * self.pad));
        let flip = self.flip && rng.random::<bool>();
        let source = |at: usize, shift: usize, len: usize| -> Option<usize> {
            let p = (at + shift) as isize - self.pad as isize;
            if (0..len as isize).contains(&p) {
                return Some(p as usize);
            }
            match self.padding {
                Padding::Zero => None,
                Padding::Reflect => Some(reflect(p, len)),
            }
        };
        for y in 0..h {
            let from_y = source(y, dy, h);
            for x in 0..w {
                let from_x = source(if flip { w - 1 - x } else { x }, dx, w);
                for channel in 0..c {
                    let value = from_y.zip(from_x).map_or(0, |(fy, fx)| image[(channel * h + fy) * w + fx]);
                    out[(channel * h + y) * w + x] = value;
                }
            }
        }
        if self.cutout > 0 {
            let (cy, cx) = (rng.random_range(0..h), rng.random_range(0..w));
            let half = self.cutout / 2;
            for y in cy.saturating_sub(half)..(cy + self.cutout - half).min(h) {
                for x in cx.saturating_sub(half)..(cx + self.cutout - half).min(w) {
                    (0..c).for_each(|channel| out[(channel * h + y) * w + x] = 128);
                }
            }
        }
    }
}

/// Mirrors a position at the edge pixels' centres, as often as needed.
fn reflect(p: isize, len: usize) -> usize {
    if len == 1 {
        return 0;
    }
    let period = 2 * (len as isize - 1);
    let p = p.rem_euclid(period);
    p.min(period - p) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reflects_like_torch() {
        // torch.nn.functional.pad([0, 1, 2, 3], (3, 3), mode="reflect")
        let padded: Vec<_> = (-3..7).map(|p| reflect(p, 4)).collect();
        assert_eq!(padded, [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]);
    }

    #[test]
    fn a_view_is_a_shifted_and_perhaps_mirrored_image() {
        let image: Vec<u8> = (0..3 * 8 * 8).map(|i| i as u8).collect();
        let zero = Augment { pad: 2, padding: Padding::Zero, flip: true, cutout: 0 };
        let mut seen = std::collections::HashSet::new();
        for view in 0..200 {
            let mut out = vec![0; image.len()];
            zero.apply(1, 7, view, [3, 8, 8], &image, &mut out);
            let matches = (0..5usize).flat_map(|dy| (0..5usize).map(move |dx| (dy, dx))).any(|(dy, dx)| {
                [false, true].iter().any(|flip| {
                    (0..3 * 64).all(|i| {
                        let (c, y, x) = (i / 64, i / 8 % 8, i % 8);
                        let x0 = if *flip { 7 - x } else { x };
                        let (sy, sx) = (y as isize + dy as isize - 2, x0 as isize + dx as isize - 2);
                        let inside = (0..8).contains(&sy) && (0..8).contains(&sx);
                        out[i] == if inside { image[c * 64 + sy as usize * 8 + sx as usize] } else { 0 }
                    })
                })
            });
            assert!(matches, "view {view}");
            let mut again = vec![0; image.len()];
            zero.apply(1, 7, view, [3, 8, 8], &image, &mut again);
            assert_eq!(out, again);
            seen.insert(out);
        }
        assert!(seen.len() > 40, "of 50 possible views only {} were seen", seen.len());
    }
}
