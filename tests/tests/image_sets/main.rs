//! ImageNet and PASCAL VOC as they are distributed, in small sets made here.

mod voc;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use image::{ImageFormat, Rgb, RgbImage};
use testkit::program::call;
use trainer::checkpoint::File;
use trainer::data::prepare::Prepare;
use trainer::data::{Source, Split};

/// A file of PASCAL VOC's and ImageNet's form: the image's size, and in it objects (class, box, difficult).
fn annotation([w, h]: [u32; 2], objects: &[(&str, [u32; 4], u8)]) -> String {
    let object = |(class, [x0, y0, x1, y1], difficult): &(&str, [u32; 4], u8)| {
        format!(
            "<object><name>{class}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>\
             <xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        )
    };
    let objects: String = objects.iter().map(object).collect();
    format!("<annotation><size><width>{w}</width><height>{h}</height></size>{objects}</annotation>")
}

/// A JPEG with both of its ends and tables that decode nothing: whole as far as that is seen without decoding it.
fn undecodable(path: &Path) -> Result<()> {
    picture(40, 40).save(path)?;
    let mut bytes = fs::read(path)?;
    // The start of the scan names a Huffman table that is not there.
    let scan = bytes.windows(2).position(|pair| pair == [0xff, 0xda]).context("a scan")?;
    bytes[scan + 6] = 0x33;
    Ok(fs::write(path, bytes)?)
}

/// A picture whose right half is white.
fn picture(w: u32, h: u32) -> RgbImage {
    RgbImage::from_fn(w, h, |x, _| Rgb([if x >= w / 2 { 255 } else { 0 }; 3]))
}

fn imagenet(dir: &Path) -> Result<()> {
    fs::create_dir(dir.join("images"))?;
    picture(400, 200).save(dir.join("images/a.JPEG"))?;
    image::DynamicImage::ImageRgb8(picture(100, 300))
        .to_luma8()
        .save_with_format(dir.join("images/b.JPEG"), ImageFormat::Jpeg)?;
    let whole = fs::read(dir.join("images/a.JPEG"))?;
    fs::write(dir.join("images/cut.JPEG"), &whole[..whole.len() / 2])?;
    picture(50, 50).save(dir.join("images/outside.JPEG"))?;
    fs::write(dir.join("LOC_synset_mapping.txt"), "n02 second\nn01 first\n")?;
    let solution = "ImageId,PredictionString\na,n01 200 0 400 200 \nb,n02 0 0 50 150 n02 50 150 100 300 \n\
                    cut,n01 0 0 10 10 \noutside,n01 0 0 90 10 \nabsent,n01 0 0 1 1 \n";
    Ok(fs::write(dir.join("LOC_val_solution.csv"), solution)?)
}

fn source(name: &str, dir: &Path, size: usize) -> Result<Source> {
    Ok(Source::parse(&format!("{name}:{}", dir.display()))?.of_size(size))
}

#[test]
fn imagenet_s_classes_boxes_and_what_is_wrong_with_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    imagenet(dir.path())?;
    let images = source("imagenet", dir.path(), 32)?.load(Split::Test)?;
    // The mapping's line is the class, whatever the order of the synsets.
    assert_eq!((images.labels.clone(), images.classes, images.shape), (vec![1, 0], 2, [3, 32, 32]));
    let objects = images.objects.as_ref().context("boxes")?;
    assert_eq!(objects[0].iter().map(|o| o.bounds).collect::<Vec<_>>(), [[16, 0, 32, 32]]);
    assert_eq!(objects[1].iter().map(|o| o.bounds).collect::<Vec<_>>(), [[0, 0, 16, 16], [16, 16, 32, 32]]);
    // The box holds what is white.
    let image = images.image(0)?;
    assert!(image[..32 * 32].iter().enumerate().all(|(p, v)| (*v > 128) == (p % 32 >= 16)));
    let notes = images.notes.join("\n");
    assert!(notes.contains("1 of 5 images") && notes.contains("2 images are left out"), "{notes}");
    assert!(notes.contains("truncated") && notes.contains("does not lie in an image of 50 x 50"), "{notes}");
    let error = format!("{:#}", source("imagenet", dir.path(), 32)?.load(Split::Train).unwrap_err());
    assert!(error.contains("validation images only"), "{error}");
    // More that is wrong leaves out what it is about, and says so.
    undecodable(&dir.path().join("images/odd.JPEG"))?;
    fs::copy(dir.path().join("images/a.JPEG"), dir.path().join("images/stranger.JPEG"))?;
    let path = dir.path().join("LOC_val_solution.csv");
    let text = fs::read_to_string(&path)?;
    fs::write(&path, text + "c,n01 0 0 1 1,too,many\nodd,n01 0 0 10 10\n")?;
    let more = source("imagenet", dir.path(), 32)?.load(Split::Test)?;
    assert_eq!((&more.labels, &more.objects), (&images.labels, &images.objects));
    let notes = more.notes.join("\n");
    let parts = ["4 images are left out", "odd.JPEG cannot be decoded", "1 image files are passed over", "(stranger, "];
    for part in parts.into_iter().chain(["line: 7"]) {
        assert!(notes.contains(part), "{notes}");
    }
    fs::write(&path, "ImageId,PredictionString\na;n01 0 0 1 1\n")?;
    let error = format!("{:#}", source("imagenet", dir.path(), 32)?.load(Split::Test).unwrap_err());
    assert!(error.contains("no image of") && error.contains("line: 2"), "{error}");
    fs::write(&path, "ImageId,PredictionString\n")?;
    let error = format!("{:#}", source("imagenet", dir.path(), 32)?.load(Split::Test).unwrap_err());
    assert!(error.contains("LOC_val_solution.csv holds no image"), "{error}");
    Ok(())
}

/// Classes of folders or of the annotations themselves, boxes of XML files, here or there.
#[test]
fn imagenet_s_annotations() -> Result<()> {
    for by_class in [true, false] {
        let dir = tempfile::tempdir()?;
        let (images, boxes) = (dir.path().join("val"), dir.path().join("Annotations/CLS-LOC/val"));
        fs::create_dir_all(&boxes)?;
        let put = |synset: &str, name: &str, xml: Option<String>| -> Result<()> {
            let folder = if by_class { images.join(synset).join("more") } else { images.clone() };
            fs::create_dir_all(&folder)?;
            picture(40, 20).save(folder.join(format!("{name}.JPEG")))?;
            Ok(xml.map_or(Ok(()), |xml| fs::write(boxes.join(format!("{name}.xml")), xml))?)
        };
        put("n03", "a", Some(annotation([40, 20], &[("n03", [20, 0, 40, 20], 0)])))?;
        put("n01", "b", Some(annotation([40, 20], &[("n01", [0, 0, 10, 10], 0), ("n01", [0, 0, 41, 20], 0)])))?;
        put("n01", "small", Some(annotation([80, 40], &[("n01", [0, 0, 10, 10], 0)])))?;
        put("n01", "bare", None)?;
        put("n01", "odd", Some("<annotation>".into()))?;
        fs::create_dir_all(images.join("other"))?;
        picture(40, 20).save(images.join("other/passed-over.JPEG"))?;
        let set = source("imagenet", dir.path(), 20)?.load(Split::Test)?;
        // In the order of the folders, or of the names.
        let order = if by_class { [1, 0] } else { [0, 1] };
        assert_eq!((set.labels.clone(), set.classes), (if by_class { vec![0, 1] } else { vec![1, 0] }, 2));
        let objects = set.objects.as_ref().context("boxes")?;
        let bounds = |i: usize| objects[order[i]].iter().map(|o| o.bounds).collect::<Vec<_>>();
        assert_eq!(bounds(0), [[10, 0, 20, 20]]);
        assert_eq!(bounds(1), [[0, 0, 5, 10], [0, 0, 20, 20]]);
        let notes = set.notes.join("\n");
        for part in
            ["3 images are left out", "an image of 80 x 40, and it has 40 x 20", "bare.JPEG: it has no annotation"]
        {
            assert!(notes.contains(part), "{notes}");
        }
        assert!(notes.contains("odd.xml is no annotation"), "{notes}");
        fs::remove_dir_all(dir.path().join("Annotations"))?;
        let bare = source("imagenet", dir.path(), 20)?.load(Split::Test);
        if by_class {
            assert!(bare?.objects.is_none());
        } else {
            let error = format!("{:#}", bare.unwrap_err());
            assert!(error.contains("nor annotations (XML) of the images"), "{error}");
        }
    }
    Ok(())
}

/// Four channels of ink are the colours that they print.
#[test]
fn printers_colours() -> Result<()> {
    let dir = tempfile::tempdir()?;
    fs::create_dir_all(dir.path().join("val/n01"))?;
    fs::copy(testkit::fixture("cmyk.jpg"), dir.path().join("val/n01/a.JPEG"))?;
    let set = source("imagenet", dir.path(), 16)?.load(Split::Test)?;
    let image = set.image(0)?;
    let at = |x: usize| [0, 1, 2].map(|c| image[(c * 16 + 8) * 16 + x]);
    for (found, expected) in at(2).iter().zip([255, 0, 0]).chain(at(13).iter().zip([0, 255, 0])) {
        assert!(found.abs_diff(expected) <= 2, "{:?} {:?}", at(2), at(13));
    }
    Ok(())
}

/// Labels of one set are not those of a model of another.
#[test]
fn a_model_of_other_classes_is_told() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for synset in ["n01", "n02"] {
        fs::create_dir_all(dir.path().join("val").join(synset))?;
        picture(40, 40).save(dir.path().join("val").join(synset).join("0.JPEG"))?;
    }
    let config = dir.path().join("config.toml");
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/wrn-16-2-cifar10.safetensors");
    let images = format!("imagenet:{}:test[0..2]", dir.path().display());
    let write = |part: &str| {
        let text = format!("[model]\ncheckpoint = '{}'\nimages = '{images}'\n{part}\n", checkpoint.display());
        fs::write(&config, text)
    };
    let config = config.display().to_string();
    write("[sanity]\nmethods = ['grad_cam']\nclass = 'label'")?;
    call(&["evaluate", "sanity", &config]).assert_fails(1, &["tells 10 classes apart", "has 2", "class = \"top1\""]);
    write("[localization]\nmethods = ['grad_cam']")?;
    call(&["evaluate", "localization", &config]).assert_fails(1, &["tells 10 classes apart", "has 2"]);
    write("[faithfulness]\nmethods = ['grad_cam']\nsteps = 0")?;
    let found = call(&["evaluate", "faithfulness", &config, "--json"]).json();
    assert_eq!((&found["rows"][0]["n"], &found["rows"][0]["average_drop_n"]), (&2.into(), &2.into()));
    for resize in ["0", "31", "5000"] {
        let set = format!("model.resize={resize}");
        let call = call(&["evaluate", "faithfulness", &config, "--set", &set]);
        call.assert_fails(1, &[&format!("resize is {resize}: 32 to 4096")]);
    }
    Ok(())
}

#[test]
fn the_middle_is_kept_with_its_boxes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    imagenet(dir.path())?;
    let mut middle = source("imagenet", dir.path(), 100)?;
    middle.shorter = Some(200);
    let images = middle.load(Split::Test)?;
    // 400 x 200 stays, and its middle 100 x 100 pixels begin at 150, 50.
    assert_eq!(images.objects.as_ref().context("boxes")?[0][0].bounds, [50, 0, 100, 100]);
    // There is no middle of 100 pixels in 99, for a model or for a training.
    middle.shorter = Some(99);
    let error = format!("{:#}", middle.load(Split::Test).unwrap_err());
    assert!(error.contains("resize is 99: 100 to 4096"), "{error}");
    Ok(())
}

#[test]
fn a_folder_for_each_synset() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (synset, n) in [("n03", 1), ("n01", 2)] {
        fs::create_dir_all(dir.path().join("val").join(synset))?;
        for i in 0..n {
            picture(40, 40).save(dir.path().join("val").join(synset).join(format!("{i}.JPEG")))?;
        }
    }
    let images = source("imagenet", dir.path(), 32)?.load(Split::Test)?;
    assert_eq!((images.labels, images.classes), (vec![0, 0, 1], 2));
    let error = format!("{:#}", source("imagenet", &dir.path().join("val/n01"), 32)?.load(Split::Test).unwrap_err());
    assert!(error.contains("neither LOC_val_solution.csv nor folders"), "{error}");
    Ok(())
}

/// What Pillow makes of the same images (`scripts/make_resize.py`), to within a grey level.
#[test]
fn images_are_resized_as_by_pillow() -> Result<()> {
    let file = File::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/resize.safetensors"))?;
    for (name, shape) in file.shapes()? {
        let (w, h) = name.split_once('x').context("a name like 61x47")?;
        let pixel = |x: u32, y: u32| {
            Rgb(std::array::from_fn(|c| {
                let c = c as u32;
                let noise = (x * 7919 + y * 104_729 + c * 1_299_709 + x * y * (c + 1) * 31) % 97;
                ((x * (c + 2) + y * 3 + noise) % 256) as u8
            }))
        };
        let image = image::DynamicImage::ImageRgb8(RgbImage::from_fn(w.parse()?, h.parse()?, pixel));
        let ours = Prepare::stretched(shape[0]).apply(&image);
        let pairs = ours.as_raw().iter().zip(file.integers(&name, 255)?);
        let off = pairs.map(|(a, b)| u32::from(*a).abs_diff(b)).max();
        assert!(off.is_some_and(|off| off <= 1), "{name}: off by {off:?} grey levels");
    }
    Ok(())
}

/// What a camera says of its position is not applied, as by torchvision, and is said.
#[test]
fn a_rotation_that_is_not_applied_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    fs::create_dir_all(dir.path().join("train/a"))?;
    fs::create_dir_all(dir.path().join("test/a"))?;
    let plain = dir.path().join("train/a/plain.jpg");
    picture(40, 20).save(&plain)?;
    // Behind the first marker: an Exif segment whose only entry is the orientation, 6 (a quarter turn).
    let exif = b"\xff\xe1\x00\x22Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let bytes = fs::read(&plain)?;
    fs::write(dir.path().join("train/a/turned.jpg"), [&bytes[..2], exif, &bytes[2..]].concat())?;
    fs::copy(&plain, dir.path().join("test/a/plain.jpg"))?;
    let train = source("folder", dir.path(), 16)?.load(Split::Train)?;
    assert_eq!(train.image(0)?, train.image(1)?);
    assert!(
        train.notes.iter().any(|note| note.contains("1 of 2 images") && note.contains("EXIF")),
        "{:?}",
        train.notes
    );
    assert!(!source("folder", dir.path(), 16)?.load(Split::Test)?.notes.iter().any(|note| note.contains("EXIF")));
    Ok(())
}
