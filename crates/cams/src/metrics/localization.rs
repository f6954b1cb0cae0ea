//! Whether a map finds the object. A map is (height, width) in the image's own pixels, a box is (x0, y0, x1, y1), x0 <=
//! x < x1.

use super::is_finite;

/// A box, or several of one class: pixels that lie in any of them.
pub fn inside(boxes: &[[u32; 4]], height: usize, width: usize) -> Vec<bool> {
    let mut inside = vec![false; height * width];
    for [x0, y0, x1, y1] in boxes {
        for y in (*y0 as usize).min(height)..(*y1 as usize).min(height) {
            inside[y * width + (*x0 as usize).min(width)..y * width + (*x1 as usize).min(width)].fill(true);
        }
    }
    inside
}

/// The energy-based pointing game (Wang et al. 2020, section 4.3), 0 to 1: `sum_{p inside} ReLU(E(p)) / sum_p ReLU(E(p))`. None of a
/// map without positive values, or that is not finite.
pub fn energy(map: &[f64], inside: &[bool]) -> Option<f64> {
    let sums = map.iter().zip(inside).fold([0.0; 2], |[within, all], (value, inside)| {
        let value = value.max(0.0);
        [within + if *inside { value } else { 0.0 }, all + value]
    });
    (sums[1] > 0.0 && sums[1].is_finite() && is_finite(map)).then(|| sums[0] / sums[1])
}

/// The part of the image that is inside: the energy of a map that is the same everywhere.
pub fn area(inside: &[bool]) -> f64 {
    inside.iter().filter(|i| **i).count() as f64 / inside.len().max(1) as f64
}

/// The pointing game (Zhang et al. 2018): whether the highest pixel lies inside, or within `tolerance` pixels of it. Of
/// several highest pixels each counts with its part. None of a map that is the same everywhere, which points at nothing,
/// or that is not finite.
pub fn hit(map: &[f64], inside: &[bool], width: usize, tolerance: f64) -> Option<f64> {
    let highest = map.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lowest = map.iter().copied().fold(f64::INFINITY, f64::min);
    if highest <= lowest || !is_finite(map) {
        return None;
    }
    let (peaks, reach) = (map.iter().enumerate().filter(|(_, v)| **v == highest), tolerance.ceil() as isize);
    let near = |at: usize| {
        let (y, x) = ((at / width) as isize, (at % width) as isize);
        let height = (map.len() / width) as isize;
        (-reach..=reach).flat_map(|dy| (-reach..=reach).map(move |dx| (dy, dx))).any(|(dy, dx)| {
            let (y, x) = (y + dy, x + dx);
            let there = (0..height).contains(&y) && (0..width as isize).contains(&x);
            ((dy * dy + dx * dx) as f64) <= tolerance * tolerance && there && inside[(y * width as isize + x) as usize]
        })
    };
    let (hits, count) =
        peaks.fold((0.0, 0.0), |(hits, count), (at, _)| (hits + f64::from(u8::from(near(at))), count + 1.0));
    Some(hits / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_by_hand() {
        let one = inside(&[[1, 0, 3, 2]], 3, 4);
        assert_eq!(one.iter().filter(|i| **i).count(), 4);
        assert!(one[1] && one[2] && one[5] && one[6]);
        // Boxes that overlap count once; what leaves the image is cut off.
        assert!((area(&inside(&[[1, 0, 3, 2], [2, 1, 9, 9]], 3, 4)) - 7.0 / 12.0).abs() < 1e-15);
    }

    #[test]
    fn energy_by_hand() {
        let within = inside(&[[0, 0, 1, 2]], 2, 2);
        assert_eq!(energy(&[3.0, 1.0, -5.0, 0.0], &within), Some(0.75));
        assert_eq!(energy(&[0.0, -1.0, 0.0, 0.0], &within), None);
        assert_eq!(energy(&[1.0; 4], &within), Some(area(&within)));
    }

    #[test]
    fn pointing_by_hand() {
        let within = inside(&[[0, 0, 1, 1]], 3, 3);
        let mut map = [0.0; 9];
        map[0] = 1.0;
        assert_eq!(hit(&map, &within, 3, 0.0), Some(1.0));
        map[8] = 1.0;
        assert_eq!(hit(&map, &within, 3, 0.0), Some(0.5));
        assert_eq!(hit(&map, &within, 3, 2.9), Some(1.0));
        assert_eq!(hit(&[0.5; 9], &within, 3, 0.0), None);
    }

    #[test]
    fn what_is_not_finite_has_no_figure() {
        let within = inside(&[[0, 0, 1, 2]], 2, 2);
        for broken in [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(energy(&[3.0, 1.0, broken, 0.0], &within), None);
            assert_eq!(hit(&[3.0, 1.0, broken, 0.0], &within, 2, 0.0), None);
        }
    }
}
