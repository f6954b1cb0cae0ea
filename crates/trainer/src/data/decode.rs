//! Image files: which are read, and that a file is whole. Decoders fill what is missing with grey and say nothing, or
//! do not look at what is behind the last pixel; a picture of which a part is made up must not be explained or trained
//! on.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::{ImageDecoder as _, ImageFormat};

use super::prepare::Prepare;

/// Kinds that are read, by the endings of their names.
const KINDS: [(&str, &[&str]); 5] = [
    ("PNG", &["png"]),
    ("JPEG", &["jpg", "jpeg", "jpe", "jfif"]),
    ("BMP", &["bmp", "dib"]),
    ("WebP", &["webp"]),
    ("GIF (its first frame)", &["gif"]),
];

/// The longest side of an image, in pixels.
const SIDE: u32 = 30_000;

/// A few hundred bytes can claim to be an image of gigabytes. Images of one colour take a byte for some hundred pixels;
/// more than this many a byte, beyond the first million, are no picture.
const PIXELS_PER_BYTE: u64 = 1024;
const PIXELS_OF_ANY_FILE: u64 = 1 << 20;

/// What a decoder may take for each of them: four channels of 16 bits, and as much again between its steps.
const BYTES_PER_PIXEL: u64 = 16;

/// Whether a file's name says that it is an image of a kind that is read.
pub fn is_image(path: &Path) -> bool {
    let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default().to_lowercase();
    KINDS.iter().any(|(_, endings)| endings.contains(&ending.as_str()))
}

/// The kinds that are read, as words.
pub fn kinds() -> String {
    KINDS.map(|(kind, _)| kind).join(", ")
}

/// Decodes an image file and prepares it (None: as it is): RGB, channels first, and its height and width.
///
/// # Errors
/// Names the file: if it is of another kind, damaged, or ends before its image does.
pub fn read_image(path: &Path, prepare: Option<Prepare>) -> Result<(Vec<u8>, [usize; 3])> {
    of_file(path, |bytes| decode(bytes, prepare))
}

/// What is made of a file's bytes; an error names the file.
pub(super) fn of_file<T>(path: &Path, make: impl Fn(&[u8]) -> Result<T>) -> Result<T> {
    let name = path.display();
    let bytes = fs::read(path).with_context(|| format!("reading {name}"))?;
    make(&bytes).with_context(|| format!("{name} cannot be decoded (read are {})", kinds()))
}

/// Whether a file's EXIF data asks for a turn or a mirror. It is not applied, as it is not by torchvision: boxes are
/// given in the pixels as they are stored.
pub(super) fn is_turned(bytes: &[u8]) -> Result<bool> {
    let orientation = open(bytes)?.into_decoder()?.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    Ok(orientation != image::metadata::Orientation::NoTransforms)
}

/// Width and height of an image file, from its header.
pub fn dimensions(path: &Path) -> Result<[u32; 2]> {
    let (w, h) = image::image_dimensions(path).with_context(|| format!("reading the size of {}", path.display()))?;
    Ok([w, h])
}

/// The same of a file's bytes.
pub fn decode(bytes: &[u8], prepare: Option<Prepare>) -> Result<(Vec<u8>, [usize; 3])> {
    let image = open(bytes)?.decode()?;
    let image = prepare.map_or_else(|| image.to_rgb8(), |prepare| prepare.apply(&image));
    let (w, h) = (image.width() as usize, image.height() as usize);
    let raw = image.as_raw();
    let pixels = (0..3 * h * w).map(|i| raw[i % (h * w) * 3 + i / (h * w)]).collect();
    Ok((pixels, [3, h, w]))
}

/// A decoder of a whole image of a plausible size.
fn open(bytes: &[u8]) -> Result<image::ImageReader<std::io::Cursor<&[u8]>>> {
    let format = image::guess_format(bytes).context("it is no image of a known kind")?;
    ensure!(is_whole(bytes, format), "it is truncated: its end is missing");
    let reader = || image::ImageReader::with_format(std::io::Cursor::new(bytes), format);
    let (w, h) = reader().into_dimensions()?;
    let most = PIXELS_PER_BYTE * bytes.len() as u64 + PIXELS_OF_ANY_FILE;
    ensure!(
        w.max(h) <= SIDE && u64::from(w) * u64::from(h) <= most,
        "it claims to be {w} x {h} pixels; sides of up to {SIDE} and {most} pixels are read from a file of {} bytes",
        bytes.len()
    );
    let mut reader = reader();
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(BYTES_PER_PIXEL * most);
    reader.limits(limits);
    Ok(reader)
}

/// Whether the file has its own end. (BMP has no mark of one; its decoder misses every pixel that is not there.)
fn is_whole(bytes: &[u8], format: ImageFormat) -> bool {
    match format {
        ImageFormat::Jpeg => jpeg_ends(bytes).is_some(),
        ImageFormat::Png => png_ends(bytes).is_some(),
        ImageFormat::Gif => gif_ends(bytes).is_some(),
        ImageFormat::WebP => {
            let length = bytes.get(4..8).map(|l| u32::from_le_bytes([l[0], l[1], l[2], l[3]]));
            length.is_some_and(|length| bytes.len() as u64 >= u64::from(length) + 8)
        }
        _ => true,
    }
}

/// Walks the segments to the end-of-image marker, which no compressed data can hold.
fn jpeg_ends(bytes: &[u8]) -> Option<()> {
    const END: u8 = 0xd9;
    let mut at = 2;
    loop {
        // A marker, perhaps behind fill bytes.
        while *bytes.get(at)? != 0xff {
            at += 1;
        }
        while *bytes.get(at)? == 0xff {
            at += 1;
        }
        let marker = bytes[at];
        at += 1;
        match marker {
            END => return Some(()),
            // Stuffed zero, restart markers, and those without a length.
            0x00 | 0x01 | 0xd0..=0xd8 => {}
            _ => {
                let length = usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
                at += length.max(2);
            }
        }
    }
}

/// Walks the chunks to IEND.
fn png_ends(bytes: &[u8]) -> Option<()> {
    let mut at = 8;
    loop {
        let head = bytes.get(at..at + 8)?;
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        at = at.checked_add(length.checked_add(12)?)?;
        if at > bytes.len() {
            return None;
        }
        if &head[4..] == b"IEND" {
            return Some(());
        }
    }
}

/// Walks the blocks to the trailer.
fn gif_ends(bytes: &[u8]) -> Option<()> {
    let table = |flags: u8| if flags & 0x80 != 0 { 3 << ((flags & 7) + 1) } else { 0 };
    let mut at = 13 + table(*bytes.get(10)?);
    loop {
        let kind = *bytes.get(at)?;
        at += match kind {
            b';' => return Some(()),
            b'!' => 2,
            b',' => 11 + table(*bytes.get(at + 9)?),
            _ => return None,
        };
        loop {
            let length = usize::from(*bytes.get(at)?);
            at += 1 + length;
            if length == 0 {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, RgbImage};

    fn picture() -> DynamicImage {
        let pixel = |x: u32, y: u32| image::Rgb([(x * 19) as u8, (y * 23) as u8, ((x * y * 7) % 251) as u8]);
        DynamicImage::ImageRgb8(RgbImage::from_fn(21, 17, pixel))
    }

    #[test]
    fn a_file_short_of_whole_is_refused_at_every_length() -> Result<()> {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp, ImageFormat::WebP, ImageFormat::Gif] {
            let mut file = std::io::Cursor::new(Vec::new());
            picture().write_to(&mut file, format)?;
            let bytes = file.into_inner();
            let (pixels, shape) = decode(&bytes, None)?;
            assert_eq!((pixels.len(), shape), (3 * 17 * 21, [3, 17, 21]), "{format:?}");
            for len in 0..bytes.len() {
                assert!(decode(&bytes[..len], None).is_err(), "{format:?} cut to {len} of {} bytes", bytes.len());
            }
            // What other programs append does no harm.
            assert_eq!(decode(&[&bytes[..], b"more"].concat(), None)?.0, pixels, "{format:?}");
        }
        Ok(())
    }

    #[test]
    fn names_say_what_is_an_image() {
        assert!(["a.png", "b.JPG", "c.d.webp", "f.gif", "g.bmp"].iter().all(|n| is_image(Path::new(n))));
        assert!(!["a.txt", "png", "b.heic", "c.png.txt", "e.tiff"].iter().any(|n| is_image(Path::new(n))));
    }
}
