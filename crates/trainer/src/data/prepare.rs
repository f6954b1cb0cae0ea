//! From an image of any size to the pixels that a model takes, and from boxes in the one to boxes in the other.

use image::imageops::FilterType;
use image::{DynamicImage, RgbImage};

/// How an image becomes `side` x `side` pixels; resizing is bilinear, over all pixels that become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepare {
    /// Height and width.
    pub side: usize,
    /// The shorter side first becomes so long, and then the middle is kept; without it the whole image is resized,
    /// whatever its ratio, as in the Score-CAM and Shap-CAM papers.
    pub shorter: Option<usize>,
}

impl Prepare {
    /// The whole image.
    pub fn stretched(side: usize) -> Prepare {
        Prepare { side, shorter: None }
    }

    /// Channels, height, width of what it makes.
    pub fn shape(&self) -> [usize; 3] {
        [3, self.side, self.side]
    }

    /// Size of the resized image (w, h), and where the part that is kept begins in it.
    fn plan(&self, [w, h]: [u32; 2]) -> ([u32; 2], [u32; 2]) {
        let side = self.side as u32;
        let Some(shorter) = self.shorter else { return ([side, side], [0, 0]) };
        let shorter = shorter as u32;
        let long = |long: u32, short: u32| ((u64::from(shorter) * u64::from(long)) / u64::from(short.max(1))) as u32;
        let [w, h] = if w <= h { [shorter, long(h, w)] } else { [long(w, h), shorter] };
        // Rounded to even where the middle falls between two pixels, as torchvision does.
        let middle = |len: u32| (f64::from(len.saturating_sub(side)) / 2.0).round_ties_even() as u32;
        ([w, h], [middle(w), middle(h)])
    }

    /// The image's pixels; grey images become RGB.
    pub fn apply(&self, image: &DynamicImage) -> RgbImage {
        let side = self.side as u32;
        let ([w, h], [x, y]) = self.plan([image.width(), image.height()]);
        if [image.width(), image.height()] == [w, h] {
            return image.crop_imm(x, y, side, side).to_rgb8();
        }
        image.resize_exact(w, h, FilterType::Triangle).crop_imm(x, y, side, side).to_rgb8()
    }

    /// A box (x0, y0, x1, y1) of an image of this size (w, h) in the prepared pixels, whole pixels that it touches;
    /// None if nothing of it is left.
    pub fn bounds(&self, size: [u32; 2], [x0, y0, x1, y1]: [f64; 4]) -> Option<[u32; 4]> {
        let ([w, h], [left, top]) = self.plan(size);
        let side = self.side as f64;
        let scale = [f64::from(w) / f64::from(size[0].max(1)), f64::from(h) / f64::from(size[1].max(1))];
        let x = |x: f64| (x * scale[0] - f64::from(left)).clamp(0.0, side);
        let y = |y: f64| (y * scale[1] - f64::from(top)).clamp(0.0, side);
        let bounds = [x(x0).floor(), y(y0).floor(), x(x1).ceil(), y(y1).ceil()].map(|v| v as u32);
        (bounds[0] < bounds[2] && bounds[1] < bounds[3]).then_some(bounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_follow_their_image() {
        let whole = Prepare::stretched(100);
        assert_eq!(whole.bounds([200, 50], [20.0, 10.0, 60.0, 30.0]), Some([10, 20, 30, 60]));
        assert_eq!(whole.bounds([200, 50], [20.0, 10.0, 20.0, 30.0]), None);
        // 400 x 300 becomes 340 x 256 and loses 58 pixels on the left, 16 above.
        let middle = Prepare { side: 224, shorter: Some(256) };
        assert_eq!(middle.plan([400, 300]), ([341, 256], [58, 16]));
        assert_eq!(middle.bounds([400, 300], [0.0, 0.0, 400.0, 300.0]), Some([0, 0, 224, 224]));
        assert_eq!(middle.bounds([400, 300], [0.0, 0.0, 60.0, 300.0]), None);
    }

    #[test]
    fn a_constant_stays_constant_and_a_part_is_the_middle() {
        let image = DynamicImage::ImageRgb8(RgbImage::from_fn(40, 20, |x, _| image::Rgb([(x * 5) as u8, 7, 200])));
        let out = Prepare { side: 10, shorter: Some(20) }.apply(&image);
        assert_eq!(out.dimensions(), (10, 10));
        assert!(out.enumerate_pixels().all(|(x, _, p)| p.0 == [((x + 15) * 5) as u8, 7, 200]));
        let out = Prepare::stretched(10).apply(&image);
        assert!(out.pixels().all(|p| p.0[1..] == [7, 200]));
    }
}
